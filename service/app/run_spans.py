"""Sends the spans of runs once they have ended, whatever has ended them.

The journal knows which runs owe theirs (`journal.contract.traces`): those of which an attempt or a
step was sent. Most are told of as they end; what ends a run without an attempt (an operator's
cancel, a command while the service was down) is found in a round every 30 seconds, and at a start.
A span is sent until the collector takes it, then noted as sent at once: it would be sent twice only
after a kill -9 between these two, while the answer is on its way.
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
_AT_ONCE = 256
_MOST_TOLD = 10_000
"""So many ended runs are remembered; a round finds the others."""
_CLOSE_SECONDS = 5.0


def open_tracing(environ: Mapping[str, str]) -> tuple[Sampler, Exporter] | None:
    """Return what decides about traces and what sends them, None where tracing is off.

    Raises `SetupError` for variables that cannot be used.
    """
    sampler = sampler_of(environ)
    return None if sampler is None else (sampler, Exporter())


class RunSpans:
    """The spans of runs; `tracer` makes those of attempts and steps."""

    def __init__(self, journal: Traces, sampler: Sampler, exporter: Exporter) -> None:
        self._journal = journal
        self._sampler = sampler
        self._exporter = exporter
        self._told: deque[int] = deque(maxlen=_MOST_TOLD)
        self._to_note: dict[int, Run] = {}  # sent, while the disk is full
        self._wakes = asyncio.Event()
        self._stopped = asyncio.Event()
        self.tracer = Tracer(sampler, send=exporter.send, owe=journal.owe_span, ended=self._ended)

    def _ended(self, run_seq: int) -> None:
        self._told.append(run_seq)
        self._wakes.set()

    def stop(self) -> None:
        """Let `run` send what is left, for a few seconds at most; the next start sends the rest."""
        self._stopped.set()
        self._wakes.set()

    async def run(self) -> None:
        """Send the spans of the runs that end, until `stop`."""
        with suppress(JournalError):
            await self._journal.take_notes()
        loop = asyncio.get_running_loop()
        next_round = loop.time()
        while not self._stopped.is_set():
            if loop.time() >= next_round:
                await self._round()
                next_round = loop.time() + _ROUND_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_round):
                    await self._wakes.wait()
            if self._wakes.is_set():
                await self._let_more_end()
                await self._send_told()
        if not await asyncio.to_thread(self._exporter.close, _CLOSE_SECONDS):
            log.warning("traces.not_sent", hint="the collector does not answer")

    async def _let_more_end(self) -> None:
        """Wait, so that many spans go in one request; not if the service stops."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._exporter.delay_seconds):
                await self._stopped.wait()

    async def _send_told(self) -> None:
        self._wakes.clear()
        while self._told:
            seqs = [self._told.popleft() for _ in range(min(_AT_ONCE, len(self._told)))]
            with suppress(JournalError):  # told elsewhere; a round finds them again
                owed = await self._journal.owed_spans(seqs, limit=_AT_ONCE, links=MOST_LINKS)
                if not await self._send(owed):
                    self._told.clear()  # the collector is away: a round finds them

    async def _round(self) -> None:
        """Send all that is owed by runs that have ended."""
        after = 0
        with suppress(JournalError):
            while owed := await self._journal.owed_spans(
                after=after, limit=_AT_ONCE, links=MOST_LINKS
            ):
                if not await self._send(owed):
                    return
                after = owed[-1].run.seq

    async def _send(self, owed: Sequence[EndedTrace]) -> bool:
        """Send these spans, and note it; returns whether they were taken."""
        spans = []
        owed = [each for each in owed if each.run.seq not in self._to_note]
        for each in owed:
            run = each.run
            trace = trace_of_run(
                run.id, each.event.trace, self._sampler, is_caused=run.window_seq is None
            )
            spans.append(span_of_run(trace, run, each.event, ends=each.ends, members=each.members))
        if spans and not await asyncio.to_thread(self._deliver, spans, [each.run for each in owed]):
            return False
        self._to_note |= {each.run.seq: each.run for each in owed}
        if self._to_note:
            await self._journal.sent_spans([*self._to_note.values()])
            self._to_note.clear()
        return True

    def _deliver(self, spans: Sequence[Span], runs: Sequence[Run]) -> bool:
        """Send spans, and note it before anything else can happen; blocks."""
        is_taken = self._exporter.deliver(spans)
        if is_taken:
            self._journal.note_sent(runs)
        return is_taken
