"""The promises that every trigger kind keeps, as one suite that each kind's tests inherit.

A kind plugs in with a `TriggerCase` (how to make input for it, how to read what it has
acknowledged) and a class in its own test file:

    class TestFilesKeepTheContract(TriggerContract):
        @pytest.fixture
        def case(self, tmp_path: Path) -> TriggerCase:
            return FilesCase(tmp_path)

`RecordingEmitter` replaces the router and the journal: a dict of events and positions that changes
completely or not at all, and that can be full or slow on request.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any, Protocol

import pytest

from turnout.service.domain.errors import (
    JournalFull,
    Overloaded,
    PositionsMoved,
    TurnoutError,
)
from turnout.service.domain.event import Event
from turnout.service.domain.run import Outcome
from turnout.service.domain.trigger import HandBack, ReadTrigger, Receipt
from turnout.service.domain.units import utc_now

PATIENCE_SECONDS = 30.0
"""How long a test waits for a fact before it fails."""


class RecordingEmitter:
    """An `Emitter` over two dicts: events by (source, id) and positions, in one transaction.

    `events` holds each event once; `deliveries` every event of every successful emit, so a
    redelivery shows there and not in `events`. `fail` makes every emit raise, `hold` makes every
    emit wait before anything is stored; `refused` and `held` count those met.
    """

    def __init__(self, now: Callable[[], datetime] = utc_now) -> None:
        self._now = now
        self._open = asyncio.Event()
        self._open.set()
        self._failure: TurnoutError | None = None
        self._before: list[dict[str, str]] = []
        self.by_identity: dict[tuple[str, str], Event] = {}
        self.deliveries: list[Event] = []
        self.stored_positions: dict[str, str] = {}
        self.results: dict[str, Outcome] = {}
        self.rejected: Counter[str] = Counter()
        self.lags: dict[str, float] = {}
        self.figures: dict[str, float] = {}
        self.connections: dict[str, Mapping[str, Any]] = {"files": {}}
        self.told_at = 0.0
        self.late_seconds: list[float] = []
        self.is_up = False
        self.down_reason: str | None = None
        self.refused = 0
        self.held = 0

    # ---- the Emitter

    async def __call__(
        self,
        events: Sequence[Event],
        positions: Mapping[str, str | None] | None = None,
        *,
        after: Awaitable[object] | None = None,
    ) -> Sequence[Receipt]:
        if after is not None:
            await asyncio.shield(after)
        if not self._open.is_set():
            self.held += 1
            await self._open.wait()
        await asyncio.sleep(0)
        if self._failure is not None:
            self.refused += 1
            raise self._failure
        return self._commit(events, positions or {})

    def _commit(
        self, events: Sequence[Event], positions: Mapping[str, str | None]
    ) -> Sequence[Receipt]:
        receipts = [self._store(event) for event in events]
        if positions:
            self._before.append(dict(self.stored_positions))
        for partition, value in positions.items():
            if value is None:
                self.stored_positions.pop(partition, None)
            else:
                self.stored_positions[partition] = value
        return receipts

    def _store(self, event: Event) -> Receipt:
        identity = (event.source, event.id)
        first = self.by_identity.setdefault(identity, event)
        self.deliveries.append(event)
        return Receipt(
            event=event.id,
            runs=(f"run-of-{event.id}",),
            duplicate=first is not event,
            conflict=first.body != event.body,
        )

    async def credit(self) -> int:
        """Return a constant: no back-pressure here."""
        return 100

    async def positions(self) -> dict[str, str]:
        return dict(self.stored_positions)

    keeps_order = False

    def handing_back(self) -> AbstractAsyncContextManager[HandBack]:
        raise NotImplementedError("nothing waits here")

    async def until_ended(self, partitions: Sequence[str], seconds: float) -> None:
        """Nothing runs here."""

    async def result(self, receipt: Receipt, timeout_seconds: float) -> Outcome | None:
        return self.results.get(receipt.runs[0])

    def now(self) -> datetime:
        return self._now()

    def up(self) -> None:
        self.is_up = True

    def down(self, reason: str) -> None:
        self.is_up = False
        self.down_reason = reason

    def up_to_date(self, seconds_ago: float = 0) -> None:
        self.told_at = asyncio.get_running_loop().time() - seconds_ago

    def late(self, seconds: float) -> None:
        self.late_seconds.append(seconds)

    def lag(self, partition: str, count: float) -> None:
        self.lags[partition] = count

    def reject(self, result: str, count: int = 1) -> None:
        self.rejected[result] += count

    def show(self, figure: str, value: float) -> None:
        self.figures[figure] = value

    def connection(self, kind: str) -> Mapping[str, Any]:
        return self.connections[kind]

    # ---- what a test does with it

    @property
    def events(self) -> list[Event]:
        """The events stored, each once, in arrival order."""
        return list(self.by_identity.values())

    def fail(self, error: TurnoutError) -> None:
        """Make every emit raise `error`, having stored nothing."""
        self._failure = error

    def mend(self) -> None:
        """Let emits succeed again."""
        self._failure = None

    def hold(self) -> None:
        """Make emits wait, with nothing stored yet."""
        self._open.clear()

    def release(self) -> None:
        """Let held emits go on."""
        self._open.set()

    def rewind(self) -> None:
        """Put positions back to before the last transaction that moved any: one lost."""
        self.stored_positions = self._before.pop()

    async def until(
        self, fact: Callable[[], bool], timeout_seconds: float = PATIENCE_SECONDS
    ) -> None:
        """Wait until `fact()` is true, for as long as a test has patience."""
        async with asyncio.timeout(timeout_seconds):
            while not fact():  # noqa: ASYNC110 - facts change outside the emitter too
                await asyncio.sleep(0.002)

    async def stored(self, count: int) -> None:
        """Wait until this many different events are stored."""
        await self.until(lambda: len(self.by_identity) >= count)


class RecordingSession(RecordingEmitter):
    """One of several sessions on one journal: it moves only positions that are as it knows them."""

    def __init__(self, journal: RecordingEmitter) -> None:
        super().__init__()
        self.connections = journal.connections
        self.by_identity = journal.by_identity
        self.deliveries = journal.deliveries
        self.stored_positions = journal.stored_positions
        self._known: dict[str, str | None] = {}
        self.moved = 0

    async def positions(self) -> dict[str, str]:
        self._known = dict(self.stored_positions)
        return dict(self.stored_positions)

    def _commit(
        self, events: Sequence[Event], positions: Mapping[str, str | None]
    ) -> Sequence[Receipt]:
        for partition in positions:
            found, expected = self.stored_positions.get(partition), self._known.get(partition)
            if found != expected:
                self.moved += 1
                raise PositionsMoved("", partition, expected, found)
        self._known |= positions
        return super()._commit(events, positions)


class TriggerCase(Protocol):
    """One trigger kind under the contract."""

    @property
    def keeps_input(self) -> bool:
        """Whether input waits while nobody watches (a folder, a clock: yes; HTTP: no)."""

    def emitter(self) -> RecordingEmitter:
        """Return a new, empty emitter with the clock this case needs."""

    def watching(self, emit: RecordingEmitter) -> AbstractAsyncContextManager[None]:
        """Run the trigger until exit; a second `watching` with the same emitter is a restart.

        `watch` below does this for a read trigger. A called trigger needs a task group here, for
        the requests that `make_input` sends.
        """

    async def make_input(self) -> None:
        """Make one new input happen; return without waiting for its acknowledgement."""

    async def redeliver(self) -> None:
        """Arrange that the last input comes again, with the next `watching` at the latest.

        Called while nobody watches. A read trigger calls `emit.rewind()`; a called one sends
        the same request again when `watching` starts.
        """

    def acknowledged(self) -> int:
        """Return how many inputs the source holds for accepted (202 sent, position moved, …)."""


@asynccontextmanager
async def watch(trigger: ReadTrigger, emit: RecordingEmitter) -> AsyncIterator[None]:
    """Run a read trigger as its supervisor does: again after a `TurnoutError`; cancel at exit."""
    emit.is_up = False
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_supervise(trigger, emit))
        try:
            await emit.until(lambda: emit.is_up or emit.refused > 0 or emit.held > 0)
            yield
        finally:
            task.cancel()


async def _supervise(trigger: ReadTrigger, emit: RecordingEmitter) -> None:
    while True:
        try:
            await trigger.run(emit)
        except TurnoutError as error:
            emit.down(str(error))
        await asyncio.sleep(0.02)


class TriggerContract:
    """What every trigger promises; subclasses give the `case` fixture."""

    @pytest.fixture
    def case(self) -> TriggerCase:
        raise NotImplementedError("the subclass says which trigger is under the contract")

    async def test_input_becomes_one_acknowledged_event(self, case: TriggerCase) -> None:
        emit = case.emitter()
        async with case.watching(emit):
            await case.make_input()
            await emit.stored(1)
            await emit.until(lambda: case.acknowledged() == 1)
            await case.make_input()
            await emit.stored(2)
            await emit.until(lambda: case.acknowledged() == 2)
        assert len(emit.deliveries) == 2
        assert len({event.id for event in emit.events}) == 2

    async def test_emits_before_it_acknowledges(self, case: TriggerCase) -> None:
        emit = case.emitter()
        async with case.watching(emit):
            emit.hold()
            await case.make_input()
            await emit.until(lambda: emit.held > 0)
            assert case.acknowledged() == 0
            emit.release()
            await emit.until(lambda: case.acknowledged() == 1)
        assert len(emit.events) == 1

    @pytest.mark.parametrize(
        "failure",
        [
            Overloaded("too many unfinished runs", retry_after_seconds=1),
            JournalFull("disk full"),
            PositionsMoved("trigger", "0", "5", "2"),
        ],
        ids=["overloaded", "disk-full", "overtaken"],
    )
    async def test_does_not_acknowledge_when_emit_fails(
        self, case: TriggerCase, failure: TurnoutError
    ) -> None:
        emit = case.emitter()
        async with case.watching(emit):
            emit.fail(failure)
            await case.make_input()
            await emit.until(lambda: emit.refused > 0)
            assert case.acknowledged() == 0
            if case.keeps_input:  # and tries again by itself
                emit.mend()
                await emit.until(lambda: case.acknowledged() == 1)
        if not case.keeps_input:
            assert case.acknowledged() == 0
            emit.mend()
            await case.redeliver()
            async with case.watching(emit):
                await emit.until(lambda: case.acknowledged() == 1)
        assert len(emit.events) == 1

    async def test_what_could_not_be_stored_is_emitted_after_a_restart(
        self, case: TriggerCase
    ) -> None:
        if not case.keeps_input:
            pytest.skip("the sender keeps this input, not the trigger")
        emit = case.emitter()
        async with case.watching(emit):
            emit.fail(JournalFull("disk full"))
            await case.make_input()
            await emit.until(lambda: emit.refused > 0)
        emit.mend()
        async with case.watching(emit):
            await emit.stored(1)
            await emit.until(lambda: case.acknowledged() == 1)
        assert len(emit.deliveries) == 1

    async def test_resumes_after_a_restart(self, case: TriggerCase) -> None:
        emit = case.emitter()
        async with case.watching(emit):
            await case.make_input()
            await emit.until(lambda: case.acknowledged() == 1)
        if case.keeps_input:
            await case.make_input()
        async with case.watching(emit):
            if not case.keeps_input:
                await case.make_input()
            await emit.until(lambda: case.acknowledged() == 2)
            await case.make_input()
            await emit.until(lambda: case.acknowledged() == 3)
        assert len(emit.events) == 3
        assert len(emit.deliveries) == 3, "what was acknowledged must not be emitted again"

    async def test_a_redelivery_has_the_same_identity_and_body(self, case: TriggerCase) -> None:
        emit = case.emitter()
        async with case.watching(emit):
            await case.make_input()
            await emit.until(lambda: case.acknowledged() == 1)
        await case.redeliver()
        async with case.watching(emit):
            await emit.until(lambda: len(emit.deliveries) == 2)
        first, again = emit.deliveries
        assert (again.source, again.id, again.type) == (first.source, first.id, first.type)
        assert again.body == first.body, "another body under the same id would be a conflict"
        if getattr(case, "positions_guard", False):
            return  # only lost positions bring a record again, and those are in the journal
        assert not first.minted, "a minted id would store a redelivery twice"

    @pytest.mark.parametrize("moment", ["idle", "emit held", "emit failing"])
    async def test_stops_within_a_second_of_cancel(self, case: TriggerCase, moment: str) -> None:
        emit = case.emitter()
        loop = asyncio.get_running_loop()
        async with case.watching(emit):
            if moment == "emit held":
                emit.hold()
                await case.make_input()
                await emit.until(lambda: emit.held > 0)
            elif moment == "emit failing":
                emit.fail(JournalFull("disk full"))
                await case.make_input()
                await emit.until(lambda: emit.refused > 0)
            cancelled_at = loop.time()
        assert loop.time() - cancelled_at < 1.0
        assert not emit.events
