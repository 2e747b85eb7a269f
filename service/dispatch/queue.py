"""The queue of one flow: its head is in memory, the rest stays in the journal.

A queue hands out queued runs in arrival order, alternating with due runs. A run whose key is busy
is set aside under that key, so that it blocks only that key. Blocked runs beyond a bound are
evicted from memory and read again when their key is free. Not here: counting slots (`admission`)
and claiming (`dispatcher`).
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
"""Queued runs a queue reads at once and keeps in memory; also the bound on blocked runs."""

MEMORY_BYTES = 24 * 2**20
"""Memory for runs beyond `WINDOW`, over all queues: these need not be read from the journal."""

# Measured: with a burst of 300-byte bodies the process grows by what is charged here.
_RUN_BYTES = 1024
_CLAIM_BYTES = 2048
_DECODED_BYTES = 4  # for each byte of a body

Key = tuple[Literal["order", "limit"], str]


@dataclass(slots=True)
class Memory:
    """The bytes left for runs beyond their queue's window; may fall slightly below 0."""

    left: int = MEMORY_BYTES

    def charge(self, run: Queued) -> None:
        """Charge the memory of a run until `give_back`."""
        run.weight = _RUN_BYTES
        if run.claimed is not None:
            run.weight += _CLAIM_BYTES + _DECODED_BYTES * len(run.claimed.event.body)
        self.left -= run.weight

    def give_back(self, run: Queued) -> None:
        """Return what a run was charged, if it was charged."""
        self.left += run.weight
        run.weight = 0


@dataclass(slots=True)
class Queue:
    """The in-memory head of a flow's queue.

    Queued runs (`window`, in arrival order) and due runs (`due`, longest due first: retries and
    runs that waited) take turns, so that neither starves; `due_next` says whose turn it is. Runs
    whose key became free (`woken`, `woken_due`) go before the others of their kind. Runs blocked
    by a key are in `blocked`, due runs blocked by a limit in `blocked_due`; `due_turns` holds the
    keys whose next turn belongs to a due run. Nothing starts while an operator has the flow
    `paused`, or while `freeze_count` is above 0.

    `cursor` is the seq of the last queued row read; `unread` means the journal may hold rows after
    it. `arriving` counts runs being written as queued, `starting` those being written as running.
    `clear` increments `epoch`, and rows read in an earlier epoch are ignored. `taken` counts the
    runs taken from the window. `evicted` keys have blocked runs that are only in the journal,
    and `pending_wakeups` counts how many of these may be woken. `isolated` runs wait until no
    isolated run of any flow is running.
    """

    flow: str
    memory: Memory = field(default_factory=Memory)
    paused: bool = False
    freeze_count: int = 0
    cursor: int = 0
    unread: bool = True
    reading: bool = False
    epoch: int = 0
    arriving: int = 0
    starting: int = 0
    woken: deque[Queued] = field(default_factory=deque)
    window: deque[Queued] = field(default_factory=deque)
    woken_due: deque[Queued] = field(default_factory=deque)
    due: deque[Queued] = field(default_factory=deque)
    due_next: bool = False
    blocked: dict[Key, deque[Queued]] = field(default_factory=dict)
    blocked_due: dict[Key, deque[Queued]] = field(default_factory=dict)
    due_turns: set[Key] = field(default_factory=set)
    blocked_count: int = 0
    evicted: set[Key] = field(default_factory=set)
    pending_wakeups: dict[Key, int] = field(default_factory=dict)
    isolated: deque[Queued] = field(default_factory=deque)
    taken: int = 0

    @property
    def stopped(self) -> bool:
        """Whether no run of the flow may start now."""
        return self.paused or self.freeze_count > 0

    @property
    def idle(self) -> bool:
        """Whether a new run may start on insert: no older run is waiting."""
        return not (self.stopped or self.unread or self.reading or self.arriving or self.source)

    def has_blocked(self, order_key: str | None, limit_key: str | None) -> bool:
        """Whether an older run is blocked by one of these keys."""
        return (order_key is not None and self._has(("order", order_key))) or (
            limit_key is not None and self._has(("limit", limit_key))
        )

    def _has(self, key: Key) -> bool:
        return key in self.blocked or key in self.evicted or key in self.blocked_due

    @property
    def accepts_new(self) -> bool:
        """Whether a new run is kept in memory: every queued run before it is in memory too."""
        return not (self.reading or self.unread) and (
            len(self.window) < WINDOW or self.memory.left > 0
        )

    def enqueue(self, run: Queued) -> None:
        """Add a run that was just written as queued."""
        if run.seq <= self.cursor:
            return  # already read from the journal
        if not self.accepts_new:
            self.unread = True
            return
        self.memory.charge(run)
        self.window.append(run)
        self.cursor = run.seq

    @property
    def source(self) -> deque[Queued]:
        """The deque whose first run is next; empty if no run is in memory."""
        due, queued = self.woken_due or self.due, self.woken or self.window
        return due if due and (self.due_next or not queued) else queued

    @property
    def is_first_ask(self) -> bool:
        """Whether the next run asks for the first time: it was not woken by a free key."""
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

    def take_to_start(self) -> Queued:
        """Take the next run to start it, and give the turn to the other kind."""
        run = self.take()
        self.due_next = not run.is_due
        return run

    @property
    def empty(self) -> bool:
        """Whether there is no run to start, in memory or, as far as is known, in the journal."""
        return not (self.source or self.unread or self.pending_wakeups)

    def start_reading(self) -> int:
        """Begin a read of the journal after `cursor`; return the epoch for `finish_reading`."""
        self.reading, self.unread = True, False
        return self.epoch

    def finish_reading(self, rows: Sequence[Queued], *, more: bool, epoch: int) -> None:
        """Add rows read from the journal after `cursor`; `more` if there may be others."""
        self.reading = False
        if epoch != self.epoch:
            return
        for row in rows:
            if row.seq > self.cursor:
                self.window.append(row)
                self.cursor = row.seq
        self.unread = self.unread or more

    def block(self, run: Queued, key: Key) -> bool:
        """Set a run aside until its key is free, in arrival order; False if it is evicted instead.

        A key is evicted when it has more blocked runs than fit in memory.
        """
        if run.is_due and key[0] == "limit":
            insort(self.blocked_due.setdefault(key, deque()), run, key=_by_due)
            return True
        waiting = self.blocked.get(key)
        if waiting and run.seq < waiting[-1].seq:
            insort(waiting, run, key=_by_seq)
        elif key in self.evicted or self.blocked_count >= WINDOW:
            self.evicted.add(key)
            return False
        else:
            self.blocked.setdefault(key, deque()).append(run)
        self.blocked_count += 1
        return True

    def wake_next(self, key: Key) -> None:
        """Wake the next run blocked by a key that became free."""
        due, waiting = self.blocked_due.get(key), self.blocked.get(key)
        is_queued = bool(waiting) or key in self.evicted
        if due and (key in self.due_turns or not is_queued):
            self.wake(due.popleft())
            self.due_turns.discard(key)
            if not due:
                del self.blocked_due[key]
            return
        if due:
            self.due_turns.add(key)
        if waiting:
            self.wake(waiting.popleft())
            self.blocked_count -= 1
            if not waiting:
                del self.blocked[key]
        elif is_queued:
            self.pending_wakeups[key] = self.pending_wakeups.get(key, 0) + 1

    def wake_holder(self, key: Key, seq: int) -> bool:
        """Wake a blocked run that has become the holder of its key; False if it is not blocked."""
        waiting = self.blocked.get(key, ())
        run = next((run for run in waiting if run.seq == seq), None)
        if run is None:
            return False
        self.blocked[key].remove(run)
        self.blocked_count -= 1
        if not self.blocked[key]:
            del self.blocked[key]
        self.wake(run)
        return True

    def wake(self, run: Queued) -> None:
        """Let a run ask again, before those that have not asked yet."""
        (self.woken_due if run.is_due else self.woken).append(run)

    @property
    def window_start(self) -> int:
        """The lowest seq in the window, or the next one after the cursor."""
        return self.window[0].seq if self.window else self.cursor + 1

    def finish_fetching(
        self, key: Key, rows: Sequence[Queued], *, more: bool, wakeups: int
    ) -> None:
        """Add the runs of an evicted key, in arrival order, and wake `wakeups` of them.

        Until now the key counts as blocked, so that nothing newer overtakes these runs. None may be
        in memory already: a run held twice could run twice at once. Runs from `window_start` on
        are left to the window.
        """
        self.evicted.discard(key)
        older = [row for row in rows if row.seq < self.window_start]
        for row in older:
            self.blocked.setdefault(key, deque()).append(row)
            self.blocked_count += 1
        if more and len(older) == len(rows):
            self.evicted.add(key)
        for _ in range(wakeups + self.pending_wakeups.pop(key, 0)):  # others came during the read
            self.wake_next(key)

    def drop_claims(self) -> None:
        """Drop prepared claims: their arguments were bound by replaced code."""
        for row in self.rows():
            row.claimed = None

    def rows(self) -> Iterator[Queued]:
        """Yield every run held in memory."""
        return chain(
            self.woken, self.window, self.woken_due, self.due, self.isolated,
            *self.blocked.values(), *self.blocked_due.values(),
        )  # fmt: skip

    def clear(self) -> None:
        """Drop all runs in memory; they are read again from the journal."""
        for run in self.window:
            self.memory.give_back(run)
        self.woken.clear()
        self.window.clear()
        self.woken_due.clear()
        self.due.clear()
        self.blocked.clear()
        self.blocked_due.clear()
        self.due_turns.clear()
        self.evicted.clear()
        self.pending_wakeups.clear()
        self.isolated.clear()
        self.blocked_count = 0
        self.cursor = 0
        self.unread = True
        self.epoch += 1


def _by_seq(run: Queued) -> int:
    return run.seq


def _by_due(run: Queued) -> tuple[datetime, int]:
    assert run.due_at is not None  # `Journal.due` returned it
    return run.due_at, run.seq
