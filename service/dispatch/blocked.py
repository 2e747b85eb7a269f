"""Runs set aside until a key is free, so that they block only the runs of that key.

Under each key the runs of a class wait in arrival order; at a limit they take turns with runs that
are due. Queued runs beyond a bound are evicted from memory and read again when their key is free.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from turnout.service.flowcontrol.gate import Candidate, Gate
from turnout.service.journal.records import ORDER_RULE, Queued

from . import memory

Key: TypeAlias = tuple[str, str, int]
"""A rule, by the id or the name of its gate, the key of a run, and the run's class; 0: any."""

ORDER = ORDER_RULE


def blocked_at(gate: Gate, run: Candidate, level: int) -> Key | None:
    """Return the key under which a run of a class waits at a gate, if it waits under one."""
    text, name = gate.key(run), gate.rule_id or gate.name
    if text is None:
        return None
    return name, text, 0 if name == ORDER or gate.shared else level


def order_key(text: str) -> Key:
    """Return the key under which runs wait for an ordering key; they are of one class."""
    return ORDER, text, 0


@dataclass(slots=True)
class _Line:
    """The runs that one key blocks: `queued`, and `resumed` ones among them, and `due` ones.

    `due_turn`: the next turn belongs to a due run. `evicted`: more queued runs are only in the
    journal, those from the arrival `evicted_from` on; None while they are read. `timed`: the gate
    opens at an instant, so each run that passes wakes the next.
    """

    # Lists, since an empty deque takes half a KiB, and there may be thousands of keys.
    queued: list[Queued] = field(default_factory=list)
    resumed: list[Queued] = field(default_factory=list)
    due: list[Queued] = field(default_factory=list)
    due_turn: bool = False
    evicted: bool = False
    evicted_from: int | None = None
    timed: bool = False

    def evict_from(self, arrival: int) -> None:
        """Note that a run of this arrival, or some from it on, are only in the journal."""
        self.evicted = True
        self.evicted_from = min(arrival, self.evicted_from or arrival)


@dataclass(slots=True)
class Wakeups:
    """How many runs of an evicted key are to be read and woken: those after an arrival.

    The ones up to it have had this turn, and another gate has refused them.
    """

    count: int
    after: int


class Blocked:
    """The blocked runs of one flow, by key.

    `wakeups` has, for evicted keys, the runs to be read from the journal and woken. `in_vain`
    counts the runs that were read only to be evicted behind others. While a throttle has the flow
    `held`, each turn goes to a run that resumes, if there is one: the others could not use it.
    """

    __slots__ = ("_lines", "count", "held", "in_vain", "wakeups")

    def __init__(self) -> None:
        self._lines: dict[Key, _Line] = {}
        self.wakeups: dict[Key, Wakeups] = {}
        self.count = 0
        self.in_vain = 0
        self.held = False

    def __bool__(self) -> bool:
        """Whether any key blocks a run."""
        return bool(self._lines)

    def __contains__(self, key: Key) -> bool:
        return key in self._lines

    def add(self, run: Queued, key: Key, *, timed: bool = False) -> bool:
        """Set a run aside, in arrival order; False if it is evicted instead."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
        line.timed = line.timed or timed
        run.woken_by = None
        if run.is_due and key[0] != ORDER:
            if run.resumes:
                insort(line.resumed, run, key=by_arrival)
            else:
                insort(line.due, run, key=by_due)
            return True
        if line.queued and run.arrival < line.queued[-1].arrival:
            insort(line.queued, run, key=by_arrival)
        elif (line.evicted or self.count >= memory.WINDOW) and _is_stored(run, key):
            self.in_vain += line.evicted
            line.evict_from(run.arrival)
            return False
        else:
            line.queued.append(run)
        self.count += 1
        return True

    def next(self, key: Key, *, after: int = 0) -> Queued | None:
        """Take the run whose turn it is, now that a key is free; an evicted one is read later.

        Evicted runs up to the arrival `after` have had their turn.
        """
        line = self._lines.get(key)
        if line is None:
            return None
        is_queued = bool(line.queued or line.resumed) or line.evicted
        if self.held and line.resumed:
            run = line.resumed.pop(0)
        elif line.due and (line.due_turn or not is_queued):
            run = line.due.pop(0)
            line.due_turn = False
        else:
            line.due_turn = bool(line.due)
            if line.resumed and not (
                line.queued and line.queued[0].arrival < line.resumed[0].arrival
            ):
                run = line.resumed.pop(0)
            elif line.queued:
                run = line.queued.pop(0)
                self.count -= 1
            else:
                pending = self.wakeups.setdefault(key, Wakeups(0, after))
                pending.count += 1
                pending.after = min(pending.after, after)
                return None
        self._drop_empty(key, line)
        return run

    def next_resumed(self, key: Key) -> Queued | None:
        """Take the next run of a key that resumes, if there is one."""
        line = self._lines.get(key)
        return self.next(key) if self.held and line is not None and line.resumed else None

    def next_timed(self, key: Key) -> Queued | None:
        """Take the next run of a key whose gate opens at an instant: another has just passed."""
        line = self._lines.get(key)
        return None if line is None or not line.timed else self.next(key)

    def all(self, key: Key) -> list[Queued]:
        """Take every run of a key that is in memory."""
        line = self._lines.pop(key, None)
        if line is None:
            return []
        self.count -= len(line.queued)
        return [*line.queued, *line.resumed, *line.due]

    def take(self, key: Key, run_ids: Iterable[str]) -> list[Queued]:
        """Take certain runs of an ordering key, where they are blocked."""
        line = self._lines.get(key)
        if line is None:
            return []
        found = [run for run in line.queued if run.id in run_ids]
        for run in found:
            line.queued.remove(run)
            self.count -= 1
        self._drop_empty(key, line)
        return found

    def forget(self, key: Key, run: Queued) -> None:
        """Drop a run that has ended, if it is blocked by this key."""
        line = self._lines.get(key)
        if line is None:
            return
        at = bisect_left(line.queued, run.arrival, key=by_arrival)
        if at < len(line.queued) and line.queued[at].seq == run.seq:
            del line.queued[at]
            self.count -= 1
        line.resumed = [each for each in line.resumed if each.seq != run.seq]
        line.due = [each for each in line.due if each.seq != run.seq]
        self._drop_empty(key, line)

    def start_fetching(self) -> tuple[Key, Wakeups]:
        """Begin to read runs of an evicted key, none of which may be passed over."""
        key, wakeups = self.wakeups.popitem()
        line = self._lines.get(key)
        if line is not None and line.evicted_from is not None:
            wakeups.after = min(wakeups.after, line.evicted_from - 1)
            line.evicted_from = None
        return key, wakeups

    def read_again(self, key: Key, rows: Sequence[Queued], *, more_from: int | None) -> None:
        """Put back the first runs of an evicted key; until now the key counted as blocked.

        From an arrival on there are more; None: there are no more, but those that were evicted
        during the read.
        """
        line = self._lines.get(key) or _Line()
        line.evicted = line.evicted_from is not None
        if more_from is not None:
            line.evict_from(more_from)
        line.queued.extend(rows)
        self.count += len(rows)
        self._lines[key] = line
        self._drop_empty(key, line)

    def runs(self) -> Iterator[Queued]:
        """Yield every run in memory."""
        for line in self._lines.values():
            yield from line.queued
            yield from line.resumed
            yield from line.due

    @property
    def evicted(self) -> Iterator[Key]:
        """The keys with blocked runs that are only in the journal."""
        return (key for key, line in self._lines.items() if line.evicted)

    def clear(self) -> None:
        """Drop every run."""
        self._lines.clear()
        self.wakeups.clear()
        self.count = self.in_vain = 0

    def _drop_empty(self, key: Key, line: _Line) -> None:
        if not (line.queued or line.resumed or line.due or line.evicted):
            del self._lines[key]


def _is_stored(run: Queued, key: Key) -> bool:
    """Whether the journal finds the run by this key."""
    return key[0] == ORDER or (run.keys is not None and key[0] in run.keys)


def by_arrival(run: Queued) -> int:
    """Order queued runs: in arrival order."""
    return run.arrival


def by_due(run: Queued) -> tuple[datetime, int]:
    """Order due runs: longest due first."""
    assert run.due_at is not None  # `Journal.due` returned it
    return run.due_at, run.seq
