"""What windows should have done, said of a whole history with hindsight.

No deadline that is kept, no state, no step: each function goes through the list of what has come,
and says which events belong together. Times are in any unit; those of one key, in order of arrival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, Protocol, TypeAlias, TypeVar


class Came(Protocol):
    """An event that has come: its number, which trigger's it is, and when it was accepted."""

    @property
    def number(self) -> int: ...
    @property
    def part(self) -> int: ...
    @property
    def at(self) -> int: ...
    @property
    def bytes(self) -> int: ...


C = TypeVar("C", bound=Came)
Groups = list[list[int]]


def numbers(events: Sequence[Came]) -> list[int]:
    return [each.number for each in events]


def bursts(events: Sequence[Came], period: int, longest: int) -> Groups:
    """Cut where it was quiet for a period, or a burst has lasted for long enough."""
    found: list[list[Came]] = []
    for each in events:
        last = found[-1] if found else []
        if last and each.at < min(last[-1].at + period, last[0].at + longest):
            last.append(each)
        else:
            found.append([each])
    return [numbers(each) for each in found]


def batches(events: Sequence[Came], n: int, timeout: int, most: float = inf) -> Groups:
    """Cut where a batch has its events, its bytes, or its time."""
    found: list[list[Came]] = []
    for each in events:
        last = found[-1] if found else []
        size = sum(one.bytes for one in last)
        is_open = last and len(last) < n and size < most and each.at < last[0].at + timeout
        if is_open and size + each.bytes <= most:
            last.append(each)
        else:
            found.append([each])
    return [numbers(each) for each in found]


Declared: TypeAlias = (
    "tuple[Literal['debounce'], int, int] | tuple[Literal['batch'], int, int, int]"
)
"""A window as a flow declares it: period and longest, or the number, the time and the bytes."""


def declared_anew(events: Sequence[C], by: Mapping[int, Declared]) -> Groups:
    """Cut where the window of the first event would, and where another kind is declared.

    `by` tells how the flow declared its window as an event came, by number.
    """
    found: list[list[C]] = []
    for each in events:
        last = found[-1] if found else []
        if last and by[last[0].number][0] == by[each.number][0]:
            kind, *options = by[last[0].number]
            tried = [*last, each]
            if len((bursts if kind == "debounce" else batches)(tried, *options)) == 1:
                last.append(each)
                continue
        found.append([each])
    return [numbers(each) for each in found]


def counted(n: int, within: int, events: Sequence[Came]) -> Groups:
    """Go through the events; each looks back at those that nobody has counted yet."""
    found: Groups = []
    for place, last in enumerate(events):
        used = {number for group in found for number in group}
        young = [
            each.number
            for each in events[: place + 1]
            if each.number not in used and last.at - each.at < within
        ]
        if len(young) >= n:
            found.append(young)
    return found


def sequences(parts: int, within: int, events: Sequence[Came]) -> Groups:
    """Look back from each event of the last part: which first part could have led to it?"""
    found: Groups = []
    for place, last in enumerate(events):
        earlier = [index for index in range(place) if events[index].part == 0]
        if last.part != parts - 1 or not earlier:
            continue
        first = earlier[-1]
        chosen = [events[first]]
        for each in events[first + 1 :]:
            if len(chosen) < parts and each.part == len(chosen):
                chosen.append(each)
        if chosen[-1] is last and last.at - events[first].at < within:
            found.append(numbers(chosen))
    return found


def begun(parts: int, events: Sequence[Came]) -> list[int]:
    """Return what there is of a sequence that is not whole yet."""
    first = max(place for place, each in enumerate(events) if each.part == 0)
    chosen = [events[first]]
    for each in events[first + 1 :]:
        if len(chosen) < parts and each.part == len(chosen):
            chosen.append(each)
    return numbers(chosen)


def joined(parts: int, within: int, events: Sequence[Came]) -> tuple[Groups, Groups]:
    """Cut where a group is whole, or where its time is over; return the whole ones and others."""
    whole: Groups = []
    expired: Groups = []
    rest = events
    while rest:
        near = [each for each in rest if each.at - rest[0].at < within]
        size = next(
            (
                size
                for size in range(1, len(near) + 1)
                if {each.part for each in near[:size]} == set(range(parts))
            ),
            None,
        )
        (expired if size is None else whole).append(numbers(near[:size]))
        rest = rest[size or len(near) :]
    return whole, expired


# ---------------------------------------------------------------- absence


@dataclass
class Life:
    """A life of the service: since when it listens, and when it ended."""

    since: int
    until: float = inf


def told_at(due_at: int, opened_at: int, lives: Sequence[Life], grace: int) -> float:
    """Return when an absence is told: at its deadline, or once senders had time to come again."""
    for life in lives:
        at = max(due_at, life.since)
        if opened_at < life.since:
            at = max(at, life.since + grace)
        if at <= life.until:
            return at
    return inf


def silences(
    within: int, events: Sequence[Came], lives: Sequence[Life], grace: int
) -> list[list[int]]:
    """After each event of `after=` (part 1) that finds nothing open: was nothing heard in time?"""
    found: Groups = []
    rest = list(events)
    while rest:
        if rest[0].part == 0:
            rest = rest[1:]
            continue
        tells = told_at(rest[0].at + within, rest[0].at, lives, grace)
        near = [each for each in rest if each.at < tells]
        came = next((place for place, each in enumerate(near) if each.part == 0), None)
        if came is None:
            found.append(numbers(near))
        rest = rest[len(near) if came is None else came + 1 :]
    return found


def lonely_silences(
    within: int,
    events: Sequence[Came],
    lives: Sequence[Life],
    grace: int,
    set_back: Sequence[tuple[int, int]] = (),
) -> int:
    """Count the silences since the first start, each between two events or after the last one.

    `set_back` tells behind which event, and when, the service was started with a clock that showed
    an earlier time than before: a window then has as much time left as when it was opened.
    """
    count = 0
    opened: int | None = lives[0].since
    due_at = lives[0].since + within
    passed: list[tuple[float, float, Came | None]] = [(e.number, e.at, e) for e in events]
    passed += [(after + 0.5, at, None) for after, at in set_back]
    for _, at, each in [*sorted(passed, key=lambda one: one[0]), (inf, inf, None)]:
        if opened is not None:
            tells = told_at(due_at, opened, lives, grace)
            if tells <= at:
                count += 1
                opened = None
            elif each is None:
                opened, due_at = int(at), int(at) + due_at - opened
        if each is not None:
            opened = each.at if opened is None else opened
            due_at = each.at + within
    return count
