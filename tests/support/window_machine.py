"""Random histories of windows of all kinds, in a service that is killed, against hindsight.

Events are sent, time passes, and the service is killed at any step of its journal, stopped and
started again. In the end all time passes. What has started then must be what one would have said
of the events that the journal holds, whatever happened in between.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from tests.support.histories import MEMORY, Draw, Machine, action, integers, lists, one_of
from tests.support.stepped_service import SteppedService
from tests.support.window_hindsight import (
    Groups,
    Life,
    batches,
    bursts,
    counted,
    joined,
    lonely_silences,
    sequences,
    silences,
)
from turnout import Event, absent, all_of, batch, count, debounce, event, flow, sequence
from turnout.service.domain.event import mint_id
from turnout.service.domain.flow import Flow
from turnout.service.intake.absence import SENDERS_RETURN
from turnout.service.journal.records import Filter

GRACE = int(SENDERS_RETURN.total_seconds())

KINDS = ("burst", "last", "full", "many", "row", "both", "quiet", "beat")
NUMBERS = integers(0, 99)
KEYS = one_of("x", "x", "x", "y", None)


def _key(event: Event) -> Any:
    return event.data["key"]


def _numbers(events: list[Event]) -> list[int]:
    return [each.data["n"] for each in events]


def make_flows() -> list[Flow[..., Any]]:
    """Return a flow for each kind of window; its name is the prefix of the types it hears."""

    @flow(on=debounce(event("burst.0"), "5s", max="12s", per=_key, keep="all"))
    async def burst(events: list[Event]) -> list[int]:
        return _numbers(events)

    @flow(on=debounce(event("last.0"), "5s", max="12s", per=_key))
    async def last(event: Event) -> list[int]:
        return _numbers([event])

    @flow(on=batch(event("full.0"), 3, "7s", max_bytes=200, per=_key))
    async def full(events: list[Event]) -> list[int]:
        return _numbers(events)

    @flow(on=count(event("many.0"), 3, "10s", per=_key))
    async def many(events: list[Event]) -> list[int]:
        return _numbers(events)

    @flow(on=sequence(event("row.0"), event("row.1"), event("row.2"), within="10s", per=_key))
    async def row(events: list[Event]) -> list[int]:
        return _numbers(events)

    @flow
    async def late(events: list[Event]) -> list[int]:
        return _numbers(events)

    @flow(on=all_of(event("both.0"), event("both.1"), within="10s", per=_key, on_timeout=late))
    async def both(events: list[Event]) -> list[int]:
        return _numbers(events)

    @flow(on=absent(event("quiet.0"), "20s", after=event("quiet.1"), per=_key))
    async def quiet(event: Event) -> list[int]:
        return _numbers([event])

    @flow(on=absent(event("beat.0"), "20s"))
    async def beat() -> list[int]:
        return []

    return [burst, last, full, many, row, late, both, quiet, beat]


PARTS = {"burst": 1, "last": 1, "full": 1, "many": 1, "row": 3, "both": 2, "quiet": 2, "beat": 1}
ALONE = ("burst", "last", "full")
"""Flows of which an event without a key runs alone."""


@dataclass(frozen=True)
class Stored:
    """An event that the journal holds."""

    number: int
    kind: str
    part: int
    key: str | None
    at: int
    bytes: int


@dataclass
class _Nobody:
    """Hears what happens in a service, and wants to know nothing."""

    def told(self, what: str, call: Any) -> None:
        """Hear of a call of the journal."""

    def code_began(self, run_id: str) -> None:
        """Hear that an attempt begins."""

    def code_ended(self, run_id: str, mark: Any) -> None:
        """Hear that an attempt has ended."""


class WindowMachine(Machine):
    """A service whose flows have windows, and all that is done to it."""

    weights = {"send": 8, "let_pass": 4}

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.lives: list[Life] = []
        self.acknowledged: set[int] = set()
        self.sent = 0
        self.hearers: Sequence[str] = ()
        self.service: SteppedService

    @classmethod
    def beginning(cls) -> Mapping[str, Draw]:
        return {"kinds": lists(one_of(*KINDS), 1, 2)}

    def begin(self, kinds: Sequence[str]) -> None:
        """Begin; events of these kinds of windows are sent."""
        self.hearers = kinds
        self.service = SteppedService(self.folder / "data", 4, _Nobody())
        self._start()

    def finish(self) -> None:
        """Let time pass until nothing is open; compare."""
        self._drain()
        self._compare()

    def clear(self) -> None:
        if hasattr(self, "service"):
            self.service.close()
        shutil.rmtree(self.folder)

    # ------------------------------------------------------------ what is done

    @action(number=NUMBERS, key=KEYS, other=NUMBERS, order=NUMBERS)
    def send(self, number: int, key: str | None, other: int, order: int) -> None:
        """Send an event."""
        self._send(self._kind(number), key, other)
        self.service.go(order=order)

    @action(number=NUMBERS, other=NUMBERS)
    def let_pass(self, number: int, other: int) -> None:
        """Let time pass, mostly a few seconds."""
        self._pass(number % 9 if other % 4 else number)

    @action(away=NUMBERS)
    def kill(self, away: int) -> None:
        """Kill the service, and start it again."""
        self._end(self._kill, away)

    @action(number=NUMBERS, key=KEYS, other=NUMBERS, order=NUMBERS)
    def kill_in_the_middle(self, number: int, key: str | None, other: int, order: int) -> None:
        """Kill the service while it takes events."""
        for _ in range(1 + number % 3):
            self._send(self._kind(number), key, other)
        self.service.go(steps=other % 12, order=order)
        self._end(self._kill, other)

    @action(away=NUMBERS, order=NUMBERS)
    def stop(self, away: int, order: int) -> None:
        """Stop the service, and start it again."""
        self._end(partial(self.service.stop, order), away)

    def _kind(self, number: int) -> str:
        return self.hearers[number % len(self.hearers)]

    def _send(self, kind: str, key: str | None, other: int) -> None:
        self.sent += 1
        number, part = self.sent, other % PARTS[kind]
        body = {"key": key, "n": number, "pad": "." * (other % 5 * 30)}
        made = Event(
            id=mint_id(), source="/model", type=f"{kind}.{part}", time=self.service.now,
            body=orjson.dumps(body), trigger="api", minted=True,
        )  # fmt: skip
        self.service.do(
            partial(self.service.process.api, [made]), lambda: self.acknowledged.add(number)
        )

    def _pass(self, seconds: int) -> None:
        self.service.advance(timedelta(seconds=seconds))
        self.service.process.clock_set()
        self.service.go()

    def _end(self, how: Callable[[], object], away: int) -> None:
        """End the service, and start it again, at once or after a while."""
        how()
        self.lives[-1].until = self._now()
        self.service.advance(timedelta(seconds=max(away - 60, 0)))
        self._start()

    def _kill(self) -> None:
        self.service.process.windows.close()  # a timer of a dead process does not ring
        self.service.cut()

    def _start(self) -> None:
        self.service.start(make_flows())
        self.service.do(self.service.process.start_triggers)
        self.service.go()
        self.lives.append(Life(self._now()))

    def _drain(self) -> None:
        for _ in range(30):
            self._pass(30)
            if not self._read("windows") and not sum(self.service.journal.counts()[0].values()):
                return
        raise AssertionError(f"still open: {self._read('windows')}")

    def _now(self) -> int:
        return round(self.service._loop.time())

    def _read(self, name: str, *arguments: Any) -> Any:
        return self.service._really(getattr(self.service._opened, name)(*arguments))

    # ------------------------------------------------------------ what came of it

    def _stored(self) -> list[Stored]:
        start = self.service.now - timedelta(seconds=self._now())
        found = []
        for each in reversed(self._read("events", Filter(limit=10_000))):
            kind, _, part = each.event.type.partition(".")
            if kind not in PARTS:
                continue
            at = round((each.accepted_at - start).total_seconds())
            (whole,) = self._read("event", each.event.id)
            data, size = whole.event.data, len(whole.event.body)
            found.append(Stored(data["n"], kind, int(part), data["key"], at, size))
            assert whole.runs or whole.decisions, f"event {data['n']} has no end: {whole}"
        return found

    def _compare(self) -> None:
        stored = self._stored()
        assert self.acknowledged <= {each.number for each in stored}, "an event is lost"
        started: dict[str, Groups] = {}
        for run in self._read("runs", Filter(limit=10_000)):
            assert run.state == "succeeded", run
            started.setdefault(run.flow, []).append(orjson.loads(run.result))
        expected = self._expected(stored)
        for name in expected.keys() | started.keys():
            assert sorted(started.get(name, [])) == sorted(expected.get(name, [])), (
                f"{name}: {started.get(name)} has started, not {expected.get(name)}; "
                f"{[each for each in stored if each.kind == name]}; {self.lives}"
            )

    def _expected(self, stored: Sequence[Stored]) -> dict[str, Groups]:
        expected: dict[str, Groups] = {}
        for kind in PARTS:
            of_kind = [each for each in stored if each.kind == kind]
            if kind == "beat":
                count = lonely_silences(20, of_kind, self.lives, GRACE)
                expected[kind] = [[] for _ in range(count)]
                continue
            if kind in ALONE:
                expected[kind] = [[each.number] for each in of_kind if each.key is None]
            for key in ("x", "y"):
                events = [each for each in of_kind if each.key == key]
                for name, groups in self._of_key(kind, events).items():
                    expected.setdefault(name, []).extend(groups)
        return expected

    def _of_key(self, kind: str, events: Sequence[Stored]) -> dict[str, Groups]:
        """Return what the events of a key start, by the name of the flow."""
        match kind:
            case "burst":
                return {kind: bursts(events, 5, 12)}
            case "last":
                return {kind: [group[-1:] for group in bursts(events, 5, 12)]}
            case "full":
                return {kind: batches(events, 3, 7, 200)}
            case "many":
                return {kind: counted(3, 10, events)}
            case "row":
                return {kind: sequences(3, 10, events)}
            case "both":
                whole, expired = joined(2, 10, events)
                return {"both": whole, "late": expired}
            case _:
                told = silences(20, events, self.lives, GRACE)
                return {kind: [group[:1] for group in told]}
