"""One flow's queue, as much of it as fits in memory; the rest stays in the journal.

A lane hands out runs in arrival order, and due ones in turn with them. A run whose key is busy is
parked aside under that key, so that it blocks only its own key; parked rows beyond a bound are
forgotten here and read again from the journal when the key is free. Not here: counting slots
(admission) and claiming (dispatcher).
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Literal

from turnout.service.journal.records import Queued

WINDOW = 256
"""Queued runs a lane always holds in memory and reads at a time; parked ones are counted apart."""

MEMORY_BYTES = 24 * 2**20
"""What runs behind the first `WINDOW` may take of memory, over all lanes: they need not be read."""

# What a burst of 300-byte bodies adds to the process is what is charged for it (bench, question i).
_RUN_BYTES = 1024
_CLAIM_BYTES = 2048
_DECODED_BYTES = 4  # for each byte of a body

Key = tuple[Literal["order", "limit"], str]


@dataclass(slots=True)
class Memory:
    """How many bytes are left for runs behind their lane's window; may go below 0 a little."""

    left: int = MEMORY_BYTES

    def charge(self, run: Queued) -> None:
        """Count what a run takes, until `give_back`."""
        run.weight = _RUN_BYTES
        if run.claim is not None:
            run.weight += _CLAIM_BYTES + _DECODED_BYTES * len(run.claim.event.body)
        self.left -= run.weight

    def give_back(self, run: Queued) -> None:
        """Count a run that is held no longer, or was never charged."""
        self.left += run.weight
        run.weight = 0


@dataclass(slots=True)
class Lane:
    """The in-memory head of a flow's queue.

    Two queues take turns, so that neither starves: runs that were queued (`window`, in arrival
    order) and runs that were due (`due`, the longest due first: retries, and runs that waited).
    `due_next` says whose turn it is. Runs whose key became free go first in their queue: `ready`
    and `called`. Due runs that wait for a limit are parked apart (`parked_due`); `due_turns` are
    the keys whose next turn is theirs. Nothing starts while it is `paused`, by an operator, or
    `held`, so many times, by whoever gives runs back.

    `cursor` is the last queued row seen; `unread` says that the journal may hold rows behind it.
    `arriving` counts runs on their way to disk as queued, `starting` those on their way to disk as
    running. `epoch` grows with `forget_all`: what was read before it does not count. `taken` counts
    the runs that were taken from the window. `wanted` says for how many runs a spilled key of which
    none is parked has become free. `isolated` runs wait for another isolated run, of any flow.
    """

    flow: str
    memory: Memory = field(default_factory=Memory)
    paused: bool = False
    held: int = 0
    cursor: int = 0
    unread: bool = True
    reading: bool = False
    epoch: int = 0
    arriving: int = 0
    starting: int = 0
    ready: deque[Queued] = field(default_factory=deque)
    window: deque[Queued] = field(default_factory=deque)
    called: deque[Queued] = field(default_factory=deque)
    due: deque[Queued] = field(default_factory=deque)
    due_next: bool = False
    parked: dict[Key, deque[Queued]] = field(default_factory=dict)
    parked_due: dict[Key, deque[Queued]] = field(default_factory=dict)
    due_turns: set[Key] = field(default_factory=set)
    parked_count: int = 0
    spilled: set[Key] = field(default_factory=set)
    wanted: dict[Key, int] = field(default_factory=dict)
    isolated: deque[Queued] = field(default_factory=deque)
    taken: int = 0

    @property
    def stopped(self) -> bool:
        """Whether nothing of it may start now."""
        return self.paused or self.held > 0

    @property
    def idle(self) -> bool:
        """Whether a new run may start ahead of everything: nothing older is waiting."""
        return not (self.stopped or self.unread or self.reading or self.arriving or self.source)

    def has_parked(self, order_key: str | None, limit_key: str | None) -> bool:
        """Whether an older run waits for one of these keys."""
        return (order_key is not None and self._has(("order", order_key))) or (
            limit_key is not None and self._has(("limit", limit_key))
        )

    def _has(self, key: Key) -> bool:
        return key in self.parked or key in self.spilled or key in self.parked_due

    @property
    def takes_arrivals(self) -> bool:
        """Whether a new run goes into memory: none before it is in the journal only."""
        return not (self.reading or self.unread) and (
            len(self.window) < WINDOW or self.memory.left > 0
        )

    def arrived(self, run: Queued) -> None:
        """Take in a run that was just written as queued."""
        if run.seq <= self.cursor:
            return  # a read of the journal already brought it
        if not self.takes_arrivals:
            self.unread = True
            return
        self.memory.charge(run)
        self.window.append(run)
        self.cursor = run.seq

    @property
    def source(self) -> deque[Queued]:
        """The deque whose first run is next; empty when there is none in memory."""
        due, queued = self.called or self.due, self.ready or self.window
        return due if due and (self.due_next or not queued) else queued

    @property
    def is_asked_first(self) -> bool:
        """Whether the next run has not been called for a key that became free."""
        source = self.source
        return source is self.window or source is self.due

    def take(self) -> Queued:
        """Take the next run."""
        source = self.source
        run = source.popleft()
        if source is self.window:
            self.memory.give_back(run)
            self.taken += 1
        return run

    def starts(self) -> Queued:
        """Take the next run to start it: then it is the other queue's turn."""
        run = self.take()
        self.due_next = not run.is_due
        return run

    @property
    def empty(self) -> bool:
        """Whether there is nothing to start, here or (as far as is known) in the journal."""
        return not (self.source or self.unread or self.wanted)

    def start_reading(self) -> int:
        """Say that the journal is being read behind `cursor`; pass the answer on to `read`."""
        self.reading, self.unread = True, False
        return self.epoch

    def read(self, rows: Sequence[Queued], *, more: bool, epoch: int) -> None:
        """Take in rows read from the journal behind `cursor`; `more` if there may be others."""
        self.reading = False
        if epoch != self.epoch:
            return
        for row in rows:
            if row.seq > self.cursor:
                self.window.append(row)
                self.cursor = row.seq
        self.unread = self.unread or more

    def park(self, run: Queued, key: Key) -> bool:
        """Set a run aside until `freed(key)`, in its place if it was called and could not go.

        False if it is not kept in memory: the key has more runs than fit.
        """
        if run.is_due and key[0] == "limit":
            insort(self.parked_due.setdefault(key, deque()), run, key=_by_due)
            return True
        waiting = self.parked.get(key)
        if waiting and run.seq < waiting[-1].seq:
            insort(waiting, run, key=_by_seq)
        elif key in self.spilled or self.parked_count >= WINDOW:
            self.spilled.add(key)
            return False
        else:
            self.parked.setdefault(key, deque()).append(run)
        self.parked_count += 1
        return True

    def freed(self, key: Key) -> None:
        """Call the next run parked under a key, now that the key is free."""
        due, waiting = self.parked_due.get(key), self.parked.get(key)
        is_queued = bool(waiting) or key in self.spilled
        if due and (key in self.due_turns or not is_queued):
            self.call_up(due.popleft())
            self.due_turns.discard(key)
            if not due:
                del self.parked_due[key]
            return
        if due:
            self.due_turns.add(key)
        if waiting:
            self.call_up(waiting.popleft())
            self.parked_count -= 1
            if not waiting:
                del self.parked[key]
        elif is_queued:
            self.wanted[key] = self.wanted.get(key, 0) + 1

    def call(self, key: Key, seq: int) -> bool:
        """Call a run that has become the holder of its key; False if it does not wait."""
        waiting = self.parked.get(key, ())
        run = next((run for run in waiting if run.seq == seq), None)
        if run is None:
            return False
        self.parked[key].remove(run)
        self.parked_count -= 1
        if not self.parked[key]:
            del self.parked[key]
        self.call_up(run)
        return True

    def call_up(self, run: Queued) -> None:
        """Let a run that waited ask again, before those that have not asked yet."""
        (self.called if run.is_due else self.ready).append(run)

    @property
    def newer(self) -> int:
        """The first seq whose run is in the window, or comes behind it."""
        return self.window[0].seq if self.window else self.cursor + 1

    def fetched(self, key: Key, rows: Sequence[Queued], *, more: bool, free: int) -> None:
        """Take in rows of a spilled key, in arrival order, that was `free` for so many runs.

        Until now the key counted as one with runs waiting: nothing newer could overtake them. None
        may be in memory already: a run that was held twice could run twice at once. What is in the
        window, or comes behind it, comes from there.
        """
        self.spilled.discard(key)
        older = [row for row in rows if row.seq < self.newer]
        for row in older:
            self.parked.setdefault(key, deque()).append(row)
            self.parked_count += 1
        if more and len(older) == len(rows):
            self.spilled.add(key)
        for _ in range(free + self.wanted.pop(key, 0)):  # and has become free meanwhile
            self.freed(key)

    def forget_claims(self) -> None:
        """Have runs claimed from the journal: what was bound for them was bound by older code."""
        for row in self.rows():
            row.claim = None

    def rows(self) -> Iterator[Queued]:
        """Every run held in memory."""
        return chain(
            self.ready, self.window, self.called, self.due, self.isolated,
            *self.parked.values(), *self.parked_due.values(),
        )  # fmt: skip

    def forget_all(self) -> None:
        """Drop what is in memory; everything is read again from the journal."""
        for run in self.window:
            self.memory.give_back(run)
        self.ready.clear()
        self.window.clear()
        self.called.clear()
        self.due.clear()
        self.parked.clear()
        self.parked_due.clear()
        self.due_turns.clear()
        self.spilled.clear()
        self.wanted.clear()
        self.isolated.clear()
        self.parked_count = 0
        self.cursor = 0
        self.unread = True
        self.epoch += 1


def _by_seq(run: Queued) -> int:
    return run.seq


def _by_due(run: Queued) -> tuple[datetime, int]:
    assert run.due_at is not None  # the journal named it as due
    return run.due_at, run.seq
