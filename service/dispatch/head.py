"""The head of a queue: the runs of one class that wait for their turn in memory.

Runs that start for the first time, or resume from a wait, go by their sequence. They take turns
with runs that are due: retries and scheduled ones, the longest due first. A run that already holds
its slot at a limit goes before all others, since nobody else can use that slot.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain

from turnout.service.journal.records import Queued

from . import memory
from .blocked import Key, by_due, by_seq
from .memory import Memory


class Head:
    """Queued runs (the window, in arrival order), resumed ones, and due ones.

    Runs whose key became free (woken) go before the others of their kind, but never before older
    ones of the window. `cursor` is the seq of
    the last queued row read, `unread` whether the journal may hold rows after it. `taken` counts
    the runs taken from the window. Up to `passed_to`, runs of blocked keys may be in the journal
    only, also between those of the window; the next read `passes_over` such runs too. While a
    throttle has the flow `held`, only runs that resume are handed out, and what is in memory stays
    within the window.
    """

    __slots__ = (
        "_all", "_due_next", "_memory", "cursor", "due", "held", "holding", "passed_to",
        "passes_over", "reading", "resumed", "taken", "unread", "window", "woken", "woken_due",
    )  # fmt: skip

    def __init__(self, shared: Memory) -> None:
        self._memory = shared
        self.cursor = 0
        self.passed_to = 0
        self.passes_over = False
        self.unread = True
        self.reading = False
        self.held = False
        self.taken = 0
        self.window: deque[Queued] = deque()
        self.woken: deque[Queued] = deque()
        self.resumed: deque[Queued] = deque()
        self.due: deque[Queued] = deque()
        self.woken_due: deque[Queued] = deque()
        self.holding: deque[Queued] = deque()
        self._all = (
            self.woken, self.window, self.resumed, self.woken_due, self.due, self.holding
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
        """The lowest seq from which on no run is in the journal only, of those that were read."""
        first = self.window[0].seq if self.window else self.cursor + 1
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
        if self.holding:
            return self.holding
        due, fresh = self.woken_due or self.due, self.woken or self.window
        if fresh is self.woken and self.window and self.window[0].seq < self.woken[0].seq:
            fresh = self.window  # the woken one was left in the journal, and read past this one
        if self.resumed and self._is_older(self.resumed[0], fresh):
            fresh = self.resumed
        return due if due and (self._due_next or not fresh) else fresh

    def _is_older(self, resumed: Queued, fresh: deque[Queued]) -> bool:
        """Whether a resumed run came before every first try; those not read yet may be older."""
        if fresh:
            return resumed.seq < fresh[0].seq
        return not (self.unread and self.cursor < resumed.seq)

    @property
    def _going_on(self) -> deque[Queued]:
        """The deque whose first run resumes, if there is one."""
        return self.holding if self.holding and self.holding[0].resumes else self.resumed

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

    # ------------------------------------------------------------ filling it

    def arrived(self, run: Queued) -> None:
        """Add a run that was just written as queued."""
        if run.seq <= self.cursor:
            return  # already read from the journal
        if not self.keeps_new:
            self.unread = True
            return
        self._memory.charge(run)
        self.window.append(run)
        self.cursor = run.seq

    def add_due(self, run: Queued, *, holds: bool) -> None:
        """Add a run that is due; `holds` if it holds its slot at a limit meanwhile."""
        if holds:
            insort(self.holding, run, key=_by_turn)
        elif run.resumes:
            insort(self.resumed, run, key=by_seq)
        elif self.due and by_due(run) < by_due(self.due[-1]):
            insort(self.due, run, key=by_due)  # the queue was cleared while due runs were added
        else:
            self.due.append(run)

    def wake(self, run: Queued, key: Key, *, holds: bool) -> None:
        """Let a run that was set aside behind a key ask again, before those that have not asked."""
        run.woken_by = key
        if holds:
            insort(self.holding, run, key=_by_turn)
        elif run.resumes:
            insort(self.resumed, run, key=by_seq)
        elif run.is_due:
            insort(self.woken_due, run, key=by_due)
        else:
            insort(self.woken, run, key=by_seq)

    def add_read(self, rows: Iterable[Queued], *, up_to: int = 0, more: bool) -> None:
        """Add rows read from the journal, up to a seq; `more` if there may be others."""
        for row in rows:
            if row.seq > self.cursor:
                self.window.append(row)
                self.cursor = row.seq
        self.cursor = max(self.cursor, up_to)
        self.unread = self.unread or more

    def forget(self, seq: int) -> bool:
        """Drop a run that has ended; True if it stays, to pass its turn on: it is not queued."""
        at = bisect_left(self.window, seq, key=by_seq)
        if at < len(self.window) and self.window[at].seq == seq:
            self._memory.give_back(self.window[at])
            del self.window[at]
            return False
        return any(run.seq == seq for some in self._all if some is not self.window for run in some)

    def clear(self) -> None:
        """Drop all runs in memory; they are read again from the journal."""
        for run in self.window:
            self._memory.give_back(run)
        for some in self._all:
            some.clear()
        self.cursor = self.passed_to = 0
        self.passes_over = False
        self.unread = True


_AT_ONCE = datetime.min.replace(tzinfo=UTC)


def _by_turn(run: Queued) -> tuple[bool, datetime, int]:
    """Order runs that hold a slot: those that resume, by seq, then the others, by when due."""
    due_at = None if run.resumes else run.due_at
    return not run.resumes, due_at or _AT_ONCE, run.seq
