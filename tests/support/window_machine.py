"""Random histories of windows of all kinds, in a service that is killed, against hindsight.

Events are sent, time passes, and the service is killed at any step of its journal, stopped and
started again, also with a clock that shows an hour less. Its flows are loaded again, one of them
with another window; flows are paused and resumed, windows are fired and dropped by hand. In the end
all time passes. What has started then must be what one would have said of the events that the
journal holds, whatever happened in between.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from tests.support.histories import MEMORY, Draw, Machine, action, integers, lists, one_of
from tests.support.stepped_service import START, SteppedService
from tests.support.window_hindsight import (
    Declared,
    Groups,
    Life,
    begun,
    bursts,
    counted,
    declared_anew,
    joined,
    lonely_silences,
    sequences,
    silences,
)
from turnout import Event, absent, all_of, batch, count, debounce, event, flow, sequence
from turnout.service.app.reload import reload_project
from turnout.service.domain.event import mint_id
from turnout.service.domain.flow import Flow
from turnout.service.domain.windows.window import Window
from turnout.service.intake.absence import SENDERS_RETURN
from turnout.service.journal.records import Filter, StoredWindow
from turnout.service.operate.verbs import DropWindow, FireWindow, Pause, Resume, Verb
from turnout.service.project import Project

SECOND = 1_000_000
GRACE = int(SENDERS_RETURN.total_seconds())

KINDS = ("burst", "last", "full", "many", "row", "both", "quiet", "beat")
NUMBERS = integers(0, 99)
KEYS = one_of("x", "x", "x", "y", None)


def _key(event: Event) -> Any:
    return event.data["key"]


def _numbers(events: list[Event]) -> list[int]:
    return [each.data["n"] for each in events]


FULL: Sequence[Declared] = (
    ("batch", 3, 7, 200),
    ("batch", 2, 9, 200),
    ("debounce", 5, 12),
)
"""The windows that the flow `full` declares, one after the other."""


def _full(declared: Declared) -> Window:
    heard = event("full.0")
    if declared[0] == "debounce":
        _, period, longest = declared
        return debounce(heard, f"{period}s", max=f"{longest}s", per=_key, keep="all")
    _, number, timeout, most = declared
    return batch(heard, number, f"{timeout}s", max_bytes=most, per=_key)


def make_flows(full_as: Declared = FULL[0]) -> list[Flow[..., Any]]:
    """Return a flow for each kind of window; its name is the prefix of the types it hears."""

    @flow(on=debounce(event("burst.0"), "5s", max="12s", per=_key, keep="all"))
    async def burst(events: list[Event]) -> list[int]:
        return _numbers(events)

    @flow(on=debounce(event("last.0"), "5s", max="12s", per=_key))
    async def last(event: Event) -> list[int]:
        return _numbers([event])

    @flow(on=_full(full_as))
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
DROPPED_AS_CANCELLED = ("burst", "last", "full")
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


@dataclass(frozen=True)
class ByHand:
    """An open window that was fired or dropped by hand, behind an event, with so many members."""

    word: str
    kind: str
    key: str
    after: int
    at: int
    members: int


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
        self.declared = 0
        self.declared_by: dict[int, Declared] = {}
        self.ids: dict[str, int] = {}
        self.by_hand: list[ByHand] = []
        self.paused: set[str] = set()
        self.behind = 0
        self.behind_by: dict[int, int] = {}
        self.backs: list[tuple[int, int]] = []
        self.accepted_as: dict[int, int] = {}
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

    @action()
    def set_back(self) -> None:
        """Kill the service, and start it at once with a clock that shows an hour less.

        What is open then has as much time left as it had when it was opened.
        """
        now = self._now()
        for window in self._read("windows"):
            span = round((window.due_at - window.opened_at).total_seconds())
            members = self._read("window_members", window.seq)
            self._accept_again([self.ids[each.event_id] for each in members], window, now, span)
        self._kill()
        self.lives[-1].until = now
        self.service.advance(timedelta(hours=-1))
        self.behind += 3600
        self.backs.append((self.sent, now))
        self._start()

    @action()
    def load_again(self) -> None:
        """Load the flows again; one of them declares another window."""
        self.declared += 1
        flows = make_flows(self._full_as())
        self._operate(partial(reload_project, self.service.process, Project.of(flows)))

    @action(number=NUMBERS)
    def pause_or_resume(self, number: int) -> None:
        """Pause a flow, or resume it: its windows close all the same."""
        self._pause(self._kind(number))

    @action(number=NUMBERS)
    def fire(self, number: int) -> None:
        """Fire an open window by hand."""
        self._by_hand("fire", number)

    @action(number=NUMBERS)
    def drop(self, number: int) -> None:
        """Drop an open window by hand."""
        self._by_hand("drop", number)

    def _full_as(self) -> Declared:
        return FULL[self.declared % len(FULL)]

    def _operate(self, verb: Callable[[], Awaitable[object]]) -> None:
        self.service.do(verb)
        self.service.go()

    def _pause(self, name: str) -> None:
        verb: Verb[Any] = Resume(name) if name in self.paused else Pause(name)
        self.paused ^= {name}
        self._operate(partial(self.service.process.operator.do, verb))

    def _by_hand(self, word: str, number: int) -> None:
        """Fire or drop an open window that has events."""
        windows = [each for each in self._read("windows") if each.members]
        if not windows:
            return
        window = windows[number % len(windows)]
        verb = (FireWindow if word == "fire" else DropWindow)(window.id)
        self.by_hand.append(
            ByHand(word, window.flow, window.key, self.sent, self._now(), window.members)
        )
        self._operate(partial(self.service.process.operator.do, verb))

    def _accept_again(
        self, members: Sequence[int], window: StoredWindow, now: int, span: int
    ) -> None:
        """Take the members of a window for accepted now, such that it is due after this span."""
        self.accepted_as |= dict.fromkeys(members, now)
        kind, within = window.settings.kind, window.settings.within // SECOND
        if kind == "debounce":
            more = span - window.settings.period // SECOND
            for place, number in enumerate(members[1:], 1):
                self.accepted_as[number] = now + round(more * place / (len(members) - 1))
        elif kind == "sequence":
            self.accepted_as[members[0]] = now + span - within

    def _kind(self, number: int) -> str:
        return self.hearers[number % len(self.hearers)]

    def _send(self, kind: str, key: str | None, other: int) -> None:
        self.sent += 1
        number, part = self.sent, other % PARTS[kind]
        body = {"key": key, "n": number, "pad": "." * (other % 5 * 30)}
        self.declared_by[number], self.behind_by[number] = self._full_as(), self.behind
        made = Event(
            id=mint_id(), source="/model", type=f"{kind}.{part}", time=self.service.now,
            body=orjson.dumps(body), trigger="api", minted=True,
        )  # fmt: skip
        self.ids[made.id] = number
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
        self.service.start(make_flows(self._full_as()))
        self.service.do(self.service.process.start_triggers)
        self.service.go()
        self.lives.append(Life(self._now()))

    def _drain(self) -> None:
        for name in sorted(self.paused):
            self._pause(name)
        for _ in range(30):
            self._pass(30)
            if not self._read("windows") and not sum(self.service.journal.counts()[0].values()):
                return
        raise AssertionError(f"still open: {self._read('windows')}")

    def _now(self) -> int:
        """Return the seconds since the first start, as if no clock had been set back."""
        return round(self.service.elapsed()) + self.behind

    def _read(self, name: str, *arguments: Any) -> Any:
        return self.service.really(getattr(self.service.opened, name)(*arguments))

    # ------------------------------------------------------------ what came of it

    def _stored(self) -> list[Stored]:
        found = []
        for each in reversed(self._read("events", Filter(limit=10_000))):
            kind, _, part = each.event.type.partition(".")
            if kind not in PARTS:
                continue
            (whole,) = self._read("event", each.event.id)
            data, size = whole.event.data, len(whole.event.body)
            at = round((each.accepted_at - START).total_seconds()) + self.behind_by[data["n"]]
            at = self.accepted_as.get(data["n"], at)
            found.append(Stored(data["n"], kind, int(part), data["key"], at, size))
            assert whole.runs or whole.decisions, f"event {data['n']} has no end: {whole}"
        return found

    def _compare(self) -> None:
        stored = self._stored()
        assert self.acknowledged <= {each.number for each in stored}, "an event is lost"
        started: dict[str, Groups] = {}
        for run in self._read("runs", Filter(limit=10_000)):
            if run.state == "cancelled" and run.flow in DROPPED_AS_CANCELLED:
                continue  # with its window
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
                count = lonely_silences(20, of_kind, self.lives, GRACE, self.backs)
                expected[kind] = [[] for _ in range(count)]
                continue
            if kind in ALONE:
                expected[kind] = [[each.number] for each in of_kind if each.key is None]
            for key in ("x", "y"):
                events = [each for each in of_kind if each.key == key]
                by_hand = [each for each in self.by_hand if (each.kind, each.key) == (kind, key)]
                for name, groups in self._of_key(kind, events, by_hand).items():
                    expected.setdefault(name, []).extend(groups)
        return expected

    def _of_key(
        self, kind: str, events: Sequence[Stored], by_hand: Sequence[ByHand]
    ) -> dict[str, Groups]:
        """Return what the events of a key start, by the name of the flow."""
        found: dict[str, Groups] = {}
        ends: list[ByHand | None] = [*by_hand, None]
        before = 0
        for end in ends:
            after = self.sent if end is None else end.after
            part = [each for each in events if before < each.number <= after]
            for name, groups in self._until(kind, part, end).items():
                found.setdefault(name, []).extend(groups)
            before = after
        return found

    def _until(self, kind: str, events: Sequence[Stored], end: ByHand | None) -> dict[str, Groups]:
        """Return what events start until a window that is open then is fired or dropped by hand."""
        is_fired = end is not None and end.word == "fire"
        if kind == "both":
            whole, expired = joined(2, 10, events)
            left = [expired.pop()] if end is not None else []
            return {"both": whole + (left if is_fired else []), "late": expired}
        groups = self._groups(kind, events)
        if kind == "many" and is_fired and end is not None:
            used = {number for group in groups for number in group}
            unused = [each for each in events if each.number not in used]
            held = unused[-end.members :]  # what has become too old may not have left yet
            assert all(each in held for each in unused if end.at - each.at < 10)
            groups.append([each.number for each in held])
        elif kind == "row" and is_fired:
            groups.append(begun(3, events))
        elif end is not None and not is_fired and kind not in ("many", "row"):
            groups.pop()  # it was open, and would have fired
        return {kind: groups}

    def _groups(self, kind: str, events: Sequence[Stored]) -> Groups:
        """Return the events that start a run together, if nobody has a hand in it."""
        match kind:
            case "burst":
                return bursts(events, 5, 12)
            case "last":
                return [group[-1:] for group in bursts(events, 5, 12)]
            case "full":
                return declared_anew(events, self.declared_by)
            case "many":
                return counted(3, 10, events)
            case "row":
                return sequences(3, 10, events)
            case _:
                return [group[:1] for group in silences(20, events, self.lives, GRACE)]
