"""The queue of one flow: its head is in memory, the rest stays in the journal.

A queue hands out queued runs in arrival order, alternating with due runs. A run whose key is busy
is set aside under that key (`blocked`). What a queue holds and counts is changed by its methods
only. Not here: which queue is asked, and when (`scheduling`).
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Container, Iterator, Sequence
from datetime import datetime

from turnout.service.flowcontrol.admission import FlowGates
from turnout.service.flowcontrol.gate import Candidate, Gate
from turnout.service.journal.records import NewRun, Queued

from . import memory
from .blocked import ORDER, Blocked, Key, blocked_at, by_due, by_seq
from .memory import Memory


class Queue:
    """The in-memory head of a flow's queue, and the gates its runs pass.

    Queued runs (the window, in arrival order) and due runs (longest due first: retries and runs
    that waited) take turns, so that neither starves. Runs whose key became free go before the
    others of their kind. Nothing starts while an operator has the flow `paused`, or while its runs
    are being changed in the journal.

    `starting` counts the runs being written as running, `taken` those taken from the window.
    """

    def __init__(self, flow: str, shared: Memory, gates: FlowGates) -> None:
        self.flow = flow
        self.gates = gates
        self.paused = False
        self.starting = 0
        self.taken = 0
        self.blocked = Blocked()
        self._memory = shared
        self._changes = 0
        self._arriving: dict[str, NewRun] = {}  # being written as queued, by id
        self._cursor = 0  # seq of the last queued row read
        self._unread = True  # the journal may hold rows after the cursor
        self._reading = False
        self._epoch = 0  # rows read before the last `clear` are ignored
        self._woken: deque[Queued] = deque()
        self._window: deque[Queued] = deque()
        self._woken_due: deque[Queued] = deque()
        self._due: deque[Queued] = deque()
        self._due_next = False

    # ------------------------------------------------------------ may anything start

    def pause(self) -> None:
        """Hand out no runs until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """Hand out runs again."""
        self.paused = False

    def begin_change(self) -> None:
        """Hand out no runs while they are changed in the journal; changes may overlap."""
        self._changes += 1

    def end_change(self) -> None:
        """End what `begin_change` began."""
        self._changes -= 1

    @property
    def stopped(self) -> bool:
        """Whether no run of the flow may start now."""
        return self.paused or self._changes > 0

    @property
    def idle(self) -> bool:
        """Whether a new run may start on insert: no older run waits for its turn."""
        return not (
            self._unread or self._arriving or self._window or self._woken or self._due
            or self._woken_due or self._reading or self.paused or self._changes
        )  # fmt: skip

    @property
    def empty(self) -> bool:
        """Whether there is no run to start, in memory or, as far as is known, in the journal."""
        return not (
            self._window or self._woken or self._due or self._woken_due or self._unread
            or self.blocked.wakeups
        )  # fmt: skip

    @property
    def waiting(self) -> int:
        """How many runs wait for their turn in memory, or are being written as queued."""
        return len(self._arriving) + sum(
            map(len, (self._window, self._woken, self._due, self._woken_due))
        )

    # ------------------------------------------------------------ new runs

    def reserve(self, run: NewRun, now: datetime) -> bool:
        """Let a new run enter the gates before it is written; False: it is written as queued.

        It takes an ordering key only together with a slot: nobody knows yet whether it is written.
        """
        run.flow = self.flow  # the flow may have been renamed since the run was made
        has_keys = run.order_key is not None or self.gates.declared
        if (
            self.idle
            and not (has_keys and self._is_behind(run))
            and self.gates.admit(run, now) is None
        ):
            self.starting += 1
            return True
        self._arriving[run.id] = run
        return False

    def expect(self, run: NewRun) -> None:
        """Count a new run that is being written as queued."""
        run.flow = self.flow
        self._arriving[run.id] = run

    def _is_behind(self, run: NewRun) -> bool:
        """Whether an older run is blocked by a key of this one."""
        blocked = self.blocked
        if run.order_key is not None and (ORDER, run.order_key) in blocked:
            return True
        for gate in self.gates.declared:
            key = blocked_at(gate, run)
            if key is not None and key in blocked:
                return True
        return False

    def begin_starting(self) -> None:
        """Count a run that is being written as running."""
        self.starting += 1

    def end_starting(self) -> None:
        """Count it no more: it is written, or it was not."""
        self.starting -= 1

    def discard_arriving(self, run: NewRun) -> None:
        """Forget a run that was not written as queued after all."""
        self._arriving.pop(run.id, None)

    def arrived(self, new: NewRun, run: Queued) -> None:
        """Add a run that was just written as queued."""
        self._arriving.pop(new.id, None)
        if run.seq <= self._cursor:
            return  # already read from the journal
        if not self.keeps_new:
            self._unread = True
            return
        self._memory.charge(run)
        self._window.append(run)
        self._cursor = run.seq

    @property
    def keeps_new(self) -> bool:
        """Whether a new run is kept in memory: every queued run before it is in memory too."""
        return not (self._reading or self._unread) and (
            len(self._window) < memory.WINDOW or self._memory.left > 0
        )

    def add_due(self, run: Queued) -> None:
        """Add a run that is due."""
        run.is_due = True
        self._due.append(run)

    # ------------------------------------------------------------ handing out

    @property
    def _source(self) -> deque[Queued]:
        """The deque whose first run is next; empty if no run is in memory."""
        due, queued = self._woken_due or self._due, self._woken or self._window
        return due if due and (self._due_next or not queued) else queued

    @property
    def first(self) -> Queued | None:
        """The run whose turn it is, if one is in memory."""
        source = self._source
        return source[0] if source else None

    @property
    def is_first_ask(self) -> bool:
        """Whether that run asks for the first time: it was not woken by a free key."""
        source = self._source
        return source is self._window or source is self._due

    def take(self) -> Queued:
        """Take the run whose turn it is."""
        source = self._source
        run = source.popleft()
        if source is self._window:
            self._memory.give_back(run)
            self.taken += 1
        return run

    def take_to_start(self) -> Queued:
        """Take the run whose turn it is to start it, and give the turn to the other kind."""
        run = self.take()
        run.flow = self.flow  # the journal may know it under an old name
        self._due_next = not run.is_due
        for gate in self.gates.declared:
            key = blocked_at(gate, run)
            if key is not None:
                self._wake(self.blocked.next_timed(key))
        return run

    def key_ahead(self, run: Queued) -> Key | None:
        """Return the key that blocks an older run and so this run too, if there is one.

        A run behind another gate takes its ordering key first, as in `FlowGates.ask`.
        """
        order, blocked, order_key = self.gates.order, self.blocked, run.order_key
        if order_key is not None and (ORDER, order_key) in blocked and not order.is_held_by(run):
            return ORDER, order_key  # if it holds the key, the blocked runs wait for this run
        for gate in self.gates.declared:
            key = blocked_at(gate, run)
            if key is not None and key in blocked:
                if order_key is not None and not order.hold(run):
                    return ORDER, order_key
                return key
        return None

    # ------------------------------------------------------------ leaving the gates

    def leave(self, run: Candidate, *, keeps_key: bool = False) -> None:
        """Let a run leave the gates, and wake the runs that its keys blocked."""
        self.gates.leave(run, keeps_key=keeps_key)
        if run.order_key is not None:
            self._wake_order(run.order_key)
        for gate in self.gates.declared:
            self.wake_next(gate, run)

    def let_go(self, key: str, run_id: str) -> None:
        """Release the ordering key of a run that is not running, if it holds the key."""
        if self.gates.order.let_go(key, run_id):
            self._wake_order(key)

    def add_holder(self, key: str, run_id: str) -> None:
        """Let a run that is not running hold an ordering key, as the journal says."""
        self.gates.order.add_holder(key, run_id)
        self._wake_order(key)

    def _wake_order(self, key: str) -> None:
        """Wake the next run of an ordering key; if it is held, those of its holders that ask."""
        holders = self.gates.order.holders(key)
        if not holders:
            self._wake(self.blocked.next((ORDER, key)))
        for run in self.blocked.take((ORDER, key), holders) if holders else ():
            self._wake(run)

    def wake_next(self, gate: Gate, run: Candidate) -> None:
        """Wake the next run behind the key of a run that left a gate, or did not use its turn."""
        key = blocked_at(gate, run)
        if key is not None:
            self._wake(self.blocked.next(key))

    def pass_on(self, run: Queued) -> None:
        """Give the turn of a run that will not start to the next ones behind its keys."""
        if run.order_key is not None:
            self.gates.order.let_go(run.order_key, run.id)
            self._wake_order(run.order_key)
        for gate in self.gates.declared:
            self.wake_next(gate, run)

    def wake_key(self, key: Key) -> None:
        """Wake the next run behind a key."""
        self._wake(self.blocked.next(key))

    def wake_all(self, key: Key) -> bool:
        """Wake every run behind a key; False if there is none."""
        found = self.blocked.all(key)
        for run in found:
            self._wake(run)
        return bool(found)

    def _wake(self, run: Queued | None) -> None:
        """Let a run ask again, before those that have not asked yet, the oldest first."""
        if run is None:
            return
        if run.is_due:
            insort(self._woken_due, run, key=by_due)
        else:
            insort(self._woken, run, key=by_seq)

    # ------------------------------------------------------------ reading the journal

    @property
    def lacks(self) -> bool:
        """Whether rows should be read from the journal now."""
        return self._unread and not self.stopped and len(self._window) <= memory.WINDOW // 2

    def start_reading(self) -> tuple[int, int]:
        """Begin a read of the journal; return the seq after which, and the epoch."""
        self._reading, self._unread = True, False
        return self._cursor, self._epoch

    def finish_reading(self, rows: Sequence[Queued], *, more: bool, epoch: int) -> None:
        """Add rows read from the journal; `more` if there may be others."""
        self._reading = False
        if epoch != self._epoch:
            return
        for row in rows:
            if row.seq > self._cursor:
                self._window.append(row)
                self._cursor = row.seq
        self._unread = self._unread or more

    @property
    def window_start(self) -> int:
        """The lowest seq in the window, or the next one after the last that was read."""
        return self._window[0].seq if self._window else self._cursor + 1

    def start_fetching(self) -> tuple[Key, int, int]:
        """Begin to read runs of an evicted key; return it, how many to wake, and the epoch."""
        return *self.blocked.wakeups.popitem(), self._epoch

    def finish_fetching(
        self, key: Key, rows: Sequence[Queued], *, more: bool, wakeups: int, epoch: int
    ) -> None:
        """Add the runs of an evicted key, in arrival order, and wake `wakeups` of them.

        None may be in memory already: a run held twice could run twice at once. Runs from
        `window_start` on are left to the window. Those that hold their ordering key, which is the
        evicted one, are blocked by nothing and are woken besides.
        """
        if epoch != self._epoch:
            return
        older = [row for row in rows if row.seq < self.window_start]
        blocked = [row for row in older if self.would_wait(row, key)]
        for row in older if key[0] == ORDER else ():
            if not self.would_wait(row, key):
                self._wake(row)
        self.blocked.read_again(key, blocked, more=more and len(older) == len(rows))
        for _ in range(wakeups + self.blocked.wakeups.pop(key, 0)):  # others came during the read
            self._wake(self.blocked.next(key))

    def would_wait(self, run: Queued, key: Key) -> bool:
        """Whether a key blocks a run: a limit key blocks only the holder of its ordering key."""
        return run.order_key is None or self.gates.order.is_held_by(run) is (key[0] != ORDER)

    # ------------------------------------------------------------ all of it

    def rows(self) -> Iterator[Queued]:
        """Yield every run held in memory."""
        for some in (self._woken, self._window, self._woken_due, self._due):
            yield from some
        yield from self.blocked.runs()

    def clear(self, known_due: Container[int] = ()) -> None:
        """Drop all runs in memory; they are read again from the journal.

        Except for those that are known to be due, they release their ordering keys: one that was
        cancelled would never do so.
        """
        for run in self.rows():
            if run.order_key is not None and run.seq not in known_due:
                self.gates.order.let_go(run.order_key, run.id)
        for run in self._window:
            self._memory.give_back(run)
        for some in (self._woken, self._window, self._woken_due, self._due):
            some.clear()
        self.blocked.clear()
        self._cursor = 0
        self._unread = True
        self._epoch += 1

    def take_over(self, other: Queue, now: datetime) -> None:
        """Take over what runs and arrives of a flow that has been renamed to this one."""
        for run in (*other.gates.inside.values(), *other._arriving.values()):
            run.flow = self.flow
        self.gates.take_over(other.gates, now)
        self._arriving.update(other._arriving)
        self.starting += other.starting
        other._arriving, other.starting = {}, 0
