"""The head of a queue: the runs of one class that wait for their turn in memory.

Runs that start for the first time, or resume from a wait, go by their arrival. They take turns
with runs that are due: retries and scheduled ones, the longest due first. Runs that have kept their
slot at a limit take their turns like all others; while the limit of the whole flow is full, only
they are handed out.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from turnout.service.journal.records import Queued

from . import memory
from .blocked import Key, by_arrival, by_due
from .memory import Memory


class Head:
    """Queued runs (the window, in arrival order), resumed ones, and due ones.

    Runs whose key became free (woken) ask before the others of their kind, but never before older
    ones in memory. `cursor` is the arrival of the last queued row read, `unread` whether the
    journal may hold rows after it. `taken` counts the runs taken from the window. Up to
    `passed_to`, runs of blocked keys may be in the journal only, also between those of the window;
    the next read `passes_over` such runs too. While a throttle has the flow `held`, only runs that
    resume are handed out, and what is in memory stays within the window. While the flow is `full`,
    runs that have kept their slot are handed out: the others wait for one of these to end.
    """

    __slots__ = (
        "_all", "_due_next", "_memory", "cursor", "due", "full", "held", "holding_due",
        "holding_resumed", "passed_to", "passes_over", "reading", "resumed", "taken", "unread",
        "window", "woken", "woken_due",
    )  # fmt: skip

    def __init__(self, shared: Memory) -> None:
        self._memory = shared
        self.cursor = 0
        self.passed_to = 0
        self.passes_over = False
        self.unread = True
        self.reading = False
        self.held = False
        self.full = False
        self.taken = 0
        self.window: deque[Queued] = deque()
        self.woken: deque[Queued] = deque()
        self.resumed: deque[Queued] = deque()
        self.due: deque[Queued] = deque()
        self.woken_due: deque[Queued] = deque()
        self.holding_resumed: deque[Queued] = deque()
        self.holding_due: deque[Queued] = deque()
        self._all = (
            self.woken, self.window, self.resumed, self.woken_due, self.due, self.holding_resumed,
            self.holding_due,
        )  # fmt: skip
        self._due_next = False

    # ------------------------------------------------------------ what is there

    @property
    def has_runs(self) -> bool:
        """Whether a run waits here, in memory or, as far as is known, in the journal."""
        if self.held:
            return bool(self._going_on)
        return self.unread or any(self._all)

    @property
    def is_busy(self) -> bool:
        """Whether a run waits here, or runs are being read from the journal."""
        return self.reading or self.has_runs

    @property
    def waiting(self) -> int:
        """How many runs wait in memory."""
        return sum(map(len, self._all))

    @property
    def keeps_new(self) -> bool:
        """Whether a new run is kept in memory: every queued run before it is in memory too."""
        return not (self.reading or self.unread) and (
            len(self.window) < memory.WINDOW or (self._memory.left > 0 and not self.held)
        )

    @property
    def lacks(self) -> bool:
        """Whether rows should be read from the journal now."""
        return self.unread and not self.held and len(self.window) <= memory.WINDOW // 2

    @property
    def window_start(self) -> int:
        """The lowest arrival from which on no run that was read is in the journal only."""
        first = self.window[0].arrival if self.window else self.cursor + 1
        return max(first, self.passed_to + 1)

    def runs(self) -> Iterator[Queued]:
        """Return every run in memory."""
        return chain.from_iterable(self._all)

    # ------------------------------------------------------------ whose turn it is

    @property
    def first(self) -> Queued | None:
        """The run whose turn it is, if one is in memory."""
        source = self._source
        return source[0] if source else None

    @property
    def _source(self) -> deque[Queued]:
        """The deque whose first run is next; empty if no run is in memory."""
        if self.held:
            return self._going_on
        if self.full and self.is_holding:
            return self.holding_resumed or self.holding_due
        due, fresh, resumed = self.due, self.window, self.resumed
        if self.woken_due:
            due = _earlier(due, self.woken_due, by_due)
        if self.woken:
            fresh = _earlier(fresh, self.woken, by_arrival)
        if self.is_holding:
            due = _earlier(due, self.holding_due, by_due)
            resumed = self._going_on
        if resumed and self._is_older(resumed[0], fresh):
            fresh = resumed
        return due if due and (self._due_next or not fresh) else fresh

    @property
    def is_holding(self) -> bool:
        """Whether a run waits here that has kept its slot at a limit."""
        return bool(self.holding_due or self.holding_resumed)

    def _is_older(self, resumed: Queued, fresh: deque[Queued]) -> bool:
        """Whether a resumed run came before every first try; those not read yet may be older."""
        if fresh:
            return resumed.arrival < fresh[0].arrival
        return not (self.unread and self.cursor < resumed.arrival)

    @property
    def _going_on(self) -> deque[Queued]:
        """The deque whose first run is the next that resumes, if there is one."""
        return _earlier(self.resumed, self.holding_resumed, by_arrival)

    def take(self) -> Queued:
        """Take the run whose turn it is."""
        source = self._source
        run = source.popleft()
        if source is self.window:
            self._memory.give_back(run)
            self.taken += 1
        return run

    def started(self, run: Queued) -> None:
        """Give the turn to the other kind: retries and first tries take turns."""
        self._due_next = not run.is_due or run.resumes

    def take_over(self, other: Head) -> None:
        """Go on with the turns of a flow that has been renamed: a due run keeps the next one."""
        self._due_next = self._due_next or other._due_next

    # ------------------------------------------------------------ filling it

    def arrived(self, run: Queued) -> None:
        """Add a run that was just written as queued."""
        if run.arrival <= self.cursor:
            return  # already read from the journal
        if not self.keeps_new:
            self.unread = True
            return
        self._memory.charge(run)
        self.window.append(run)
        self.cursor = run.arrival

    def add_due(self, run: Queued, *, holds: bool) -> None:
        """Add a run that is due; `holds` if it holds its slot at a limit meanwhile."""
        if run.resumes:
            insort(self.holding_resumed if holds else self.resumed, run, key=by_arrival)
        elif holds:
            insort(self.holding_due, run, key=by_due)
        elif self.due and by_due(run) < by_due(self.due[-1]):
            insort(self.due, run, key=by_due)  # the queue was cleared while due runs were added
        else:
            self.due.append(run)

    def wake(self, run: Queued, key: Key, *, holds: bool) -> None:
        """Let a run that was set aside behind a key ask again, before those that have not asked."""
        run.woken_by = key
        if run.resumes:
            insort(self.holding_resumed if holds else self.resumed, run, key=by_arrival)
        elif run.is_due:
            insort(self.holding_due if holds else self.woken_due, run, key=by_due)
        else:
            insort(self.woken, run, key=by_arrival)

    def add_read(self, rows: Iterable[Queued], *, up_to: int = 0, more: bool) -> None:
        """Add rows read from the journal, up to an arrival; `more` if there may be others."""
        for row in rows:
            if row.arrival > self.cursor:
                self.window.append(row)
                self.cursor = row.arrival
        self.cursor = max(self.cursor, up_to)
        self.unread = self.unread or more

    def take_passed(self, is_asked: Callable[[Queued], bool], up_to: int | None) -> list[Queued]:
        """Take runs that have not asked yet, up to an arrival, from before the window's start."""
        end = self.passed_to if up_to is None else min(up_to, self.passed_to)
        found = [run for run in self.window if run.arrival <= end and is_asked(run)]
        for run in found:
            self.forget(run)
        return found

    def forget(self, run: Queued) -> bool:
        """Drop a run that has ended; True if it stays, to pass its turn on: it is not queued."""
        at = bisect_left(self.window, run.arrival, key=by_arrival)
        if at < len(self.window) and self.window[at].seq == run.seq:
            self._memory.give_back(self.window[at])
            del self.window[at]
            return False
        others = (some for some in self._all if some is not self.window)
        return any(each.seq == run.seq for some in others for each in some)

    def clear(self) -> None:
        """Drop all runs in memory; they are read again from the journal."""
        for run in self.window:
            self._memory.give_back(run)
        for some in self._all:
            some.clear()
        self.cursor = self.passed_to = 0
        self.passes_over = False
        self.unread = True


def _earlier(
    one: deque[Queued], other: deque[Queued], order: Callable[[Queued], Any]
) -> deque[Queued]:
    """Return which of two deques has the run that goes first; an empty one if both are."""
    if not (one and other):
        return one or other
    return one if order(one[0]) < order(other[0]) else other
