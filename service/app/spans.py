"""Sends spans to a collector: those of attempts and steps, and those of runs once they have ended.

What comes within a few seconds goes in one request. The spans of attempts and steps wait in a queue
of limited length; those that do not fit, or that the collector does not take, are lost, which is
logged.

The journal knows which runs owe theirs (`journal.contract.traces`): those of which an attempt or a
step was sent. Most are told of as they end; what ends a run without an attempt (an operator's
cancel, a command while the service was down) is found in a round every 30 seconds, and at a start.
A run's span is sent until the collector takes it, then noted as sent at once: it would be sent
twice only after a kill -9 between these two, while the answer is on its way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress

from turnout.service.domain.errors import JournalError
from turnout.service.domain.run import Run
from turnout.service.domain.trace_context import Sampler
from turnout.service.journal.contract import Traces
from turnout.service.journal.records import EndedTrace
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.otlp import Exporter, sampler_of
from turnout.service.telemetry.traces import MOST_LINKS, Span, Tracer, span_of_run, trace_of_run

log = get_logger("turnout.traces")

_ROUND_SECONDS = 30.0
_MOST_RUNS = 256
"""So many spans of runs go in one request at most, since each is read from the journal."""
_MOST_TOLD = 10_000
"""So many ended runs are remembered; a round finds the others."""
_CLOSE_SECONDS = 5.0
_LOST_SECONDS = 60.0
"""So often at most it is logged that the queue is full."""


def open_tracing(environ: Mapping[str, str]) -> tuple[Sampler, Exporter] | None:
    """Return what decides about traces and what sends them, None where tracing is off.

    Raises `SetupError` for variables that cannot be used.
    """
    sampler = sampler_of(environ)
    return None if sampler is None else (sampler, Exporter(environ))


class SpanSender:
    """Sends the spans that `tracer` makes, and those of runs."""

    def __init__(self, journal: Traces, sampler: Sampler, exporter: Exporter) -> None:
        self._journal = journal
        self._sampler = sampler
        self._exporter = exporter
        half = max(exporter.most_together // 2, 1)  # the rest is for those that wait
        self._most_runs = self._in_round = min(_MOST_RUNS, half)
        self._after = 0  # where the next round begins
        self._waiting: deque[Span] = deque()
        self._told: deque[int] = deque(maxlen=_MOST_TOLD)
        self._to_note: dict[int, Run] = {}  # sent, while the disk is full
        self._lost = 0
        self._lost_told_at = float("-inf")
        self._wakes = asyncio.Event()
        self._hurries = asyncio.Event()
        self._is_stopping = False
        self.tracer = Tracer(sampler, send=self._wait, owe=journal.owe_span, ended=self._ended)

    def _wait(self, span: Span) -> None:
        if len(self._waiting) < self._exporter.most_waiting:
            self._waiting.append(span)
        else:
            self._lost += 1
        self._wakes.set()
        self._hurry_if_full()

    def _ended(self, run_seq: int) -> None:
        self._told.append(run_seq)
        self._wakes.set()
        self._hurry_if_full()

    def _hurry_if_full(self) -> None:
        if len(self._waiting) + len(self._told) >= self._exporter.most_together:
            self._hurries.set()

    def stop(self) -> None:
        """Let `run` send what waits; the next start sends the spans of runs that are left."""
        self._is_stopping = True
        self._wakes.set()
        self._hurries.set()
        asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._exporter.close)

    async def run(self) -> None:
        """Send spans until `stop`."""
        loop = asyncio.get_running_loop()
        next_round = loop.time()
        while not self._is_stopping:
            if loop.time() >= next_round:
                await self._round()
                next_round = loop.time() + _ROUND_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_round):
                    await self._wakes.wait()
            if self._wakes.is_set():
                await self._let_more_come()
                if not self._is_stopping:
                    await self._send_together()
        with suppress(JournalError):
            # A span waits until its run's is noted as owed. This write comes after those notes.
            await self._record_sent()
        while (self._told or self._waiting) and await self._send_together():
            pass
        self._exporter.close()

    async def _let_more_come(self) -> None:
        """Wait until a request is full, or for a few seconds; not if the service stops."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._exporter.delay_seconds):
                await self._hurries.wait()

    async def _send_together(self) -> bool:
        """Send one request; returns whether it was taken."""
        self._wakes.clear()
        self._hurries.clear()
        self._tell_lost()
        count = min(self._most_runs, len(self._told))
        # A run that an operator has had tried again may be told of twice.
        seqs = [*{self._told.popleft() for _ in range(count)}]
        is_taken = True
        with suppress(JournalError):  # told elsewhere; a round finds them again
            owed = await self._owed(seqs) if seqs else []
            is_taken = await self._send(owed, self._exporter.most_together - len(owed))
        if is_taken:
            self._hurry_if_full()
        else:
            self._told.clear()  # the collector is away: a round finds them
        if self._told or self._waiting:
            self._wakes.set()
        return is_taken

    async def _round(self) -> None:
        """Send all that is owed by runs that have ended, until a request is not taken.

        The collector may be away, or refuse a request for its size or for one run. So the next
        round asks for fewer, and begins behind a run that was refused alone.
        """
        with suppress(JournalError):
            await self._record_sent()  # at first those that an earlier process has noted
            while owed := await self._owed(after=self._after):
                is_taken = await self._send(owed, 0)
                if is_taken or len(owed) == 1:
                    self._after = owed[-1].run.seq
                if not is_taken:
                    self._in_round = max(self._in_round // 2, 1)
                    return
                self._in_round = min(self._in_round * 2, self._most_runs)
        self._after = 0

    async def _owed(self, seqs: Sequence[int] | None = None, *, after: int = 0) -> list[EndedTrace]:
        limit = self._in_round if seqs is None else self._most_runs
        return await self._journal.owed_spans(seqs, after=after, limit=limit, links=MOST_LINKS)

    async def _send(self, owed: Sequence[EndedTrace], more: int) -> bool:
        """Send the spans of these runs, and up to so many that wait; and note it.

        Returns whether they were taken.
        """
        owed = [each for each in owed if each.run.seq not in self._to_note]
        runs = [each.run for each in owed]
        spans = [self._span_of_run(each) for each in owed]
        spans += [self._waiting.popleft() for _ in range(min(more, len(self._waiting)))]
        if spans and not await asyncio.to_thread(self._deliver, spans, runs):
            return False
        self._to_note |= {run.seq: run for run in runs}
        if self._to_note:
            await self._record_sent()
        return True

    async def _record_sent(self) -> None:
        await self._journal.sent_spans([*self._to_note.values()])
        self._to_note.clear()

    def _span_of_run(self, owed: EndedTrace) -> Span:
        run, event = owed.run, owed.event
        is_caused = run.window_seq is None
        trace = trace_of_run(run.id, event.trace, self._sampler, is_caused=is_caused)
        return span_of_run(trace, run, event, ends=owed.ends, members=owed.members)

    def _deliver(self, spans: Sequence[Span], runs: Sequence[Run]) -> bool:
        """Send spans, and note those of runs before anything else can happen; blocks."""
        is_taken = self._exporter.deliver(spans)
        if is_taken and runs:
            self._journal.note_sent(runs)
        return is_taken

    def _tell_lost(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._lost and now >= self._lost_told_at + _LOST_SECONDS:
            hint = "more come than are sent: sample fewer, or raise OTEL_BSP_MAX_QUEUE_SIZE"
            log.warning("traces.lost", spans=self._lost, hint=hint)
            self._lost, self._lost_told_at = 0, now
