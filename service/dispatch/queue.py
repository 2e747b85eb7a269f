"""The queue of one flow: its head is in memory, the rest stays in the journal.

A queue hands out runs class by class (`Head`); a flow without `priority=` has one class. A run
whose key is busy is set aside under that key (`blocked`). What a queue holds and counts is changed
by its methods only. Not here: which queue is asked, and when (`scheduling`).
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Sequence
from datetime import datetime
from itertools import chain, islice
from operator import attrgetter

from turnout.service.domain.waiting import Cause
from turnout.service.flowcontrol.admission import FlowGates
from turnout.service.flowcontrol.gate import Candidate, Gate
from turnout.service.flowcontrol.priority import CLASSES, NORMAL
from turnout.service.journal.records import NewRun, Queued

from . import memory
from .arriving import Arriving
from .blocked import ORDER, Blocked, Key, Wakeups, blocked_at, by_arrival, order_key
from .head import Head
from .memory import Memory
from .pause_times import PauseTimes

_MOST_PASSED_OVER = 100_000
"""How many keys a read of the journal passes over."""
_HAS_RUNS, _IS_BUSY = attrgetter("has_runs"), attrgetter("is_busy")


class Queue:
    """The in-memory head of a flow's queue, and the gates its runs pass.

    Nothing starts while an operator has the flow `paused`, while its runs are being changed in the
    journal, or while `due_unread`: due runs may be in the journal only, and go before others. While
    a throttle holds the whole flow (`held_until`), only runs that resume start. `starting` counts
    the runs being written as running, `refused_by` is what refused the last run that found no other
    one before it. `ended` are the seqs of runs in memory that have ended; `_ended_unread` of those
    that have ended while the journal was being read, which may still answer with them.
    `awaits_newest`: the next run is not asked until the write of a newer one, which takes its
    place, is done.
    """

    def __init__(self, flow: str, shared: Memory, gates: FlowGates) -> None:
        self.flow = flow
        self.gates = gates
        self.paused = False
        self.due_unread = False
        self._pauses = PauseTimes()
        self.starting = 0
        self.refused_by: Cause | None = None
        self.held_until: datetime | None = None
        self.blocked = Blocked()
        self.ended: set[int] = set()
        self.awaits_newest = False
        self.classed = False
        self._memory = shared
        self._changes = 0
        self._arriving = Arriving()
        self._epoch = 0  # rows read before the last `clear` are ignored
        self._reads = 0
        self._ended_unread: set[int] = set()
        self._heads = {NORMAL: Head(shared)}

    # ------------------------------------------------------------ classes

    def use_classes(self, classed: bool) -> None:
        """Hand out runs by their class, or all as one; the queue must be cleared afterwards."""
        self.classed = classed
        for level in CLASSES if classed else ():
            self._heads.setdefault(level, Head(self._memory))

    @property
    def levels(self) -> Collection[int]:
        """The classes in which runs may wait."""
        return self._heads.keys()

    def level_of(self, run: Candidate) -> int:
        """Return the class of a run."""
        return run.priority or NORMAL if self.classed else NORMAL

    def head(self, level: int) -> Head:
        """Return the runs of a class."""
        return self._heads[level]

    def _head_of(self, run: Candidate) -> Head:
        return self._heads[self.level_of(run)]

    def key_at(self, gate: Gate, run: Candidate) -> Key | None:
        """Return the key under which a run waits at a gate, if it waits under one."""
        return blocked_at(gate, run, self.level_of(run))

    # ------------------------------------------------------------ may anything start

    def pause(self, since: datetime) -> None:
        """Hand out no runs until `resume`."""
        self.paused = True
        self._pauses.begin(since)

    def resume(self, now: datetime) -> None:
        """Hand out runs again."""
        self.paused = False
        self._pauses.end(now)

    def was_paused_at(self, at: datetime) -> bool:
        """Whether the flow was paused at an instant."""
        return self._pauses.include(at)

    def begin_change(self) -> None:
        """Hand out no runs while they are changed in the journal; changes may overlap."""
        self._changes += 1

    def end_change(self) -> None:
        """End what `begin_change` began."""
        self._changes -= 1

    @property
    def epoch(self) -> int:
        """How often the queue was cleared: what was read before is out of date."""
        return self._epoch

    def hold(self, until: datetime) -> None:
        """Hand out only runs that resume, until an instant or until `release`.

        Turns at a key that were given to runs which are held now go to those that resume there.
        """
        self.held_until = until
        self.blocked.held = True
        for head in self._heads.values():
            head.held = True
            for key in [run.woken_by for run in (*head.woken, *head.woken_due)]:
                if key is not None:
                    self._wake(self.blocked.next_resumed(key), key)

    def release(self) -> None:
        """Hand out every run again."""
        self.held_until = None
        self.blocked.held = False
        for head in self._heads.values():
            head.held = False

    @property
    def stopped(self) -> bool:
        """Whether no run of the flow may start now."""
        return self.paused or self._changes > 0 or self.due_unread

    @property
    def idle(self) -> bool:
        """Whether a new run may start on insert: no older run waits for its turn."""
        if self._arriving or self.stopped or self.held_until is not None:
            return False
        return not any(map(_IS_BUSY, self._heads.values()))

    def _is_newest(self, run: NewRun) -> bool:
        """Whether a new run takes the place of every run that waits for its turn."""
        if self.stopped or self.held_until is not None:
            return False
        heads = self._heads.values()
        if any(head.unread or head.reading for head in heads):
            return False
        waiting = chain.from_iterable(head.runs() for head in heads)
        return self._arriving.all_outdated_by(run, waiting)

    def is_outdated(self, run: Queued) -> bool:
        """Whether a newer run, which is being written, takes the place of a queued one."""
        return self._arriving.outdates(run)

    @property
    def empty(self) -> bool:
        """Whether there is no run to start, in memory or, as far as is known, in the journal."""
        return not (self._pending_wakeups or any(map(_HAS_RUNS, self._heads.values())))

    def is_empty_at(self, level: int) -> bool:
        """Whether there is no run of a class to start."""
        return not (self._heads[level].has_runs or self._pending_wakeups)

    @property
    def _pending_wakeups(self) -> bool:
        """Whether runs must be read from the journal because their key became free."""
        return bool(self.blocked.wakeups) and self.held_until is None

    @property
    def waiting(self) -> int:
        """How many runs wait for their turn in memory, or are being written as queued."""
        return len(self._arriving) + sum(head.waiting for head in self._heads.values())

    @property
    def taken(self) -> int:
        """How many queued runs were handed out that were not set aside before."""
        return sum(head.taken for head in self._heads.values())

    # ------------------------------------------------------------ new runs

    def reserve(self, run: NewRun, now: datetime) -> bool:
        """Let a new run enter the gates before it is written; False: it is written as queued.

        It takes an ordering key only together with a slot: nobody knows yet whether it is written.
        """
        run.flow = self.flow  # the flow may have been renamed since the run was made
        has_keys = run.order_key is not None or self.gates.declared
        goes_first = self.idle or (run.conditions is not None and self._is_newest(run))
        if goes_first and not (has_keys and self._is_behind(run)):
            refusal = self.gates.admit(run, now)
            if refusal is None:
                self.starting += 1
                self.refused_by = None
                return True
            self.refused_by = refusal.gate.cause
        self.expect(run)
        return False

    def expect(self, run: NewRun) -> None:
        """Count a new run that is being written as queued."""
        run.flow = self.flow
        if self.classed and run.priority is None:
            run.priority = NORMAL  # it was made before a reload declared classes
        self._arriving.add(run)

    def _is_behind(self, run: NewRun) -> bool:
        """Whether an older run is blocked by a key of this one."""
        blocked = self.blocked
        if not blocked:
            return False
        if run.order_key is not None and order_key(run.order_key) in blocked:
            return True
        for gate in self.gates.declared:
            key = self.key_at(gate, run)
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
        self._arriving.remove(run.id)

    def arrived(self, new: NewRun | Queued, run: Queued) -> None:
        """Add a run that was just written as queued."""
        self._arriving.remove(new.id)
        head = self._head_of(run)
        if self.gates.lacks_keys(run):  # it was routed before a reload declared the rule
            head.unread = True
        else:
            head.arrived(run)

    def keeps_new(self, run: NewRun) -> bool:
        """Whether a new run is kept in memory."""
        return self._head_of(run).keeps_new

    def add_due(self, run: Queued) -> None:
        """Add a run that is due."""
        run.is_due = True
        self._head_of(run).add_due(run, holds=self.gates.is_held_by(run))

    # ------------------------------------------------------------ handing out

    def first(self, level: int) -> Queued | None:
        """Return the run of a class whose turn it is, if one is in memory."""
        head = self._heads[level]
        if head.is_holding:
            head.full = self.gates.is_full
        return head.first

    def take_to_start(self, level: int) -> Queued:
        """Take the run whose turn it is to start it, and give the turn to the other kind."""
        head = self._heads[level]
        run = head.take()
        run.flow = self.flow  # the journal may know it under an old name
        head.started(run)
        for gate in self.gates.declared if self.blocked else ():
            key = self.key_at(gate, run)
            if key is not None:
                self._wake(self.blocked.next_timed(key), key)
        return run

    def key_ahead(self, run: Queued) -> Key | None:
        """Return the key that blocks an older run and so this run too, if there is one.

        A run behind another gate takes its ordering key first, as in `FlowGates.ask`. While a
        throttle holds the flow there is none: only runs that resume ask, and others wait for it.
        """
        order, blocked = self.gates.order, self.blocked
        if not blocked or self.held_until is not None:
            return None
        ordered = None if run.order_key is None else order_key(run.order_key)
        if ordered is not None and ordered in blocked and not order.is_held_by(run):
            return ordered  # if it holds the key, the blocked runs wait for this run
        for gate in self.gates.declared:
            key = self.key_at(gate, run)
            if key is not None and key in blocked and not gate.is_held_by(run):
                if ordered is not None and not order.hold(run):
                    return ordered
                return key
        return None

    # ------------------------------------------------------------ leaving the gates

    def leave(self, run: Candidate, *, keeps_key: bool = False, goes_on: bool = False) -> None:
        """Let a run leave the gates, and wake the runs that its keys blocked."""
        self.gates.leave(run, keeps_key=keeps_key, goes_on=goes_on)
        if run.order_key is not None:
            self._wake_order(run.order_key)
        for gate in self.gates.declared if self.blocked else ():
            if not gate.counts_starts:  # nothing is free there because a run has ended
                self.wake_next(gate, run)

    def let_go(self, key: str, run_id: str) -> None:
        """Release the ordering key of a run that is not running, if it holds the key."""
        if self.gates.order.let_go(key, run_id):
            self._wake_order(key)

    def give_up_slots(self, run: Candidate) -> None:
        """Release the slots at limits that a run holds without running."""
        for gate in self.gates.held:
            if gate.let_go(run):
                self.wake_next(gate, run)

    def add_holder(self, key: str, run_id: str) -> None:
        """Let a run that is not running hold an ordering key, as the journal says."""
        self.gates.order.add_holder(key, run_id)
        self._wake_order(key)

    def _wake_order(self, key: str) -> None:
        """Wake the next run of an ordering key; if it is held, those of its holders that ask."""
        holders = self.gates.order.holders(key)
        if not holders:
            self._wake(self.blocked.next(order_key(key)), order_key(key))
        for run in self.blocked.take(order_key(key), holders) if holders else ():
            self._wake(run, order_key(key))

    def wake_next(self, gate: Gate, run: Candidate) -> None:
        """Wake the next run behind the key of a run that left a gate, or did not use its turn.

        Of each class one is woken: which of them starts is decided when they ask.
        """
        if not self.classed:
            key = blocked_at(gate, run, NORMAL)
            if key is not None:
                self._wake(self.blocked.next(key), key)
            return
        keys = (blocked_at(gate, run, level) for level in CLASSES)
        for key in dict.fromkeys(keys):
            if key is not None:
                self._wake(self.blocked.next(key), key)

    def pass_on(self, run: Queued) -> None:
        """Give the turn of a run that will not start to the next ones behind its keys."""
        if run.order_key is not None:
            self.gates.order.let_go(run.order_key, run.id)
            self._wake_order(run.order_key)
        for gate in self.gates.declared:
            self.wake_next(gate, run)

    def wake_key(self, key: Key, *, after: int = 0) -> None:
        """Wake the next run behind a key; evicted ones up to an arrival have had theirs."""
        self._wake(self.blocked.next(key, after=after), key)

    def wake_all(self, key: Key) -> bool:
        """Wake every run behind a key; False if there is none."""
        found = self.blocked.all(key)
        for run in found:
            self._wake(run, key)
        return bool(found)

    def _wake(self, run: Queued | None, key: Key) -> None:
        if run is not None:
            self._head_of(run).wake(run, key, holds=self.gates.is_held_by(run))

    # ------------------------------------------------------------ reading the journal

    def lacks(self, level: int) -> bool:
        """Whether rows of a class should be read from the journal now."""
        return self._heads[level].lacks and not self.stopped

    def start_reading(self, level: int) -> tuple[int, int]:
        """Begin a read of the journal; return the arrival after which, and the epoch."""
        head = self._heads[level]
        head.reading, head.unread = True, False
        return head.cursor, self.start_read()

    def start_read(self) -> int:
        """Begin any read of the journal, which `end_read` ends; return the epoch."""
        self._reads += 1
        return self._epoch

    def end_read(self) -> None:
        """End a read: what has ended until now is in no later one."""
        self._reads -= 1
        if not self._reads:
            self._ended_unread.clear()

    def is_queued(self, row: Queued) -> bool:
        """Whether a run that a read has found has not ended meanwhile.

        It would hold its ordering key until it is claimed, which may take as long as another gate
        is closed.
        """
        return row.seq not in self._ended_unread

    def keys_to_pass_over(self, level: int) -> dict[str, list[str]]:
        """Return keys, by rule, whose next runs need not be read: they would be evicted again.

        There are none unless most of what was read last was evicted. No run of these keys is in
        the window, which is empty, so none there is older than those that stay in the journal. A
        flow with `start_timeout=` has none: its late runs end when they are read.
        """
        head, in_vain = self._heads[level], self.blocked.in_vain
        self.blocked.in_vain = 0
        is_worth_it = head.passes_over or 2 * in_vain >= memory.WINDOW
        if head.window or not is_worth_it or self.gates.start_timeout is not None:
            return {}
        found: dict[str, list[str]] = {}
        for rule_id, text, of_level in islice(self.blocked.evicted, _MOST_PASSED_OVER):
            if of_level in (0, level):
                found.setdefault(rule_id, []).append(text)
        return found

    def finish_reading(
        self,
        level: int,
        rows: Sequence[Queued],
        *,
        up_to: int = 0,
        more: bool,
        epoch: int,
        passed_over: bool = False,
    ) -> None:
        """Add rows read from the journal, up to an arrival; `more` if there may be others."""
        head = self._heads[level]
        head.reading = False
        if epoch == self._epoch:
            queued = [row for row in rows if self.is_queued(row)] if self._ended_unread else rows
            head.add_read(queued, up_to=up_to, more=more)
            head.passes_over = passed_over and len(rows) < memory.WINDOW
            if passed_over:
                head.passed_to = up_to
        self.end_read()

    def start_fetching(self) -> tuple[Key, Wakeups, int]:
        """Begin to read runs of an evicted key; return it, how many to wake, and the epoch."""
        return *self.blocked.start_fetching(), self.start_read()

    def ends_before(self, key: Key) -> int:
        """Return the arrival from which on all runs of a key are left to the windows."""
        levels = (key[2],) if key[2] else self.levels
        return max(self._heads[level].window_start for level in levels)

    def finish_fetching(
        self, key: Key, rows: Sequence[Queued], *, up_to: int | None, wakeups: int, epoch: int
    ) -> None:
        """Add the runs of an evicted key, read up to an arrival, and wake `wakeups` of them."""
        if epoch == self._epoch:
            self._add_fetched(key, rows, up_to, wakeups)
        self.end_read()

    def _add_fetched(
        self, key: Key, rows: Sequence[Queued], up_to: int | None, wakeups: int
    ) -> None:
        """Add the runs of an evicted key, in arrival order, and wake `wakeups` of them.

        They were read up to an arrival; None: there are no more. None may be in memory already: a
        run held twice could run twice at once. Runs from the start of their window on are left to
        it; those before it that have not asked yet may be older than the ones read, and join them.
        Those that hold their ordering key, which is the evicted one, are blocked by nothing and
        are woken besides.
        """
        older = [row for row in rows if row.arrival < self._head_of(row).window_start]
        more_from = None if up_to is None or len(older) < len(rows) else up_to + 1
        older = [row for row in older if self.is_queued(row)]
        older = sorted((*older, *self._take_unasked(key, up_to)), key=by_arrival)
        blocked = [row for row in older if self.would_wait(row, key)]
        for row in older if key[0] == ORDER else ():
            if not self.would_wait(row, key):
                self._wake(row, key)
        self.blocked.read_again(key, blocked, more_from=more_from)
        others = self.blocked.wakeups.pop(key, None)  # they came during the read
        for _ in range(wakeups + (0 if others is None else others.count)):
            self._wake(self.blocked.next(key), key)

    def _take_unasked(self, key: Key, up_to: int | None) -> list[Queued]:
        """Take the runs that a key would block, up to an arrival, from before the window's start.

        Reads pass over runs of a blocked key, but not over one that was claimed before, as one
        that an operator retried: it stands in the window, and newer ones are in the journal only.
        """
        rule_id, text, level = key

        def is_blocked(run: Queued) -> bool:
            own = run.order_key if rule_id == ORDER else (run.keys or {}).get(rule_id)
            return own == text and self.would_wait(run, key)

        heads = [head for each, head in self._heads.items() if level in (0, each)]
        return [run for head in heads for run in head.take_passed(is_blocked, up_to)]

    def would_wait(self, run: Queued, key: Key) -> bool:
        """Whether a key blocks a run: a limit key blocks only the holder of its ordering key."""
        return run.order_key is None or self.gates.order.is_held_by(run) is (key[0] != ORDER)

    # ------------------------------------------------------------ all of it

    def rows(self) -> Iterator[Queued]:
        """Yield every run held in memory."""
        for head in self._heads.values():
            yield from head.runs()
        yield from self.blocked.runs()

    def forget(self, run: Queued) -> None:
        """Drop a run that has ended before it was claimed, where it waits in memory.

        One that was given a turn, or is due, is dropped when it is asked: `drop_ended`.
        """
        if self._reads:
            self._ended_unread.add(run.seq)
        if run.order_key is not None:
            self.blocked.forget(order_key(run.order_key), run)
        for level, head in self._heads.items():
            if head.forget(run):
                self.ended.add(run.seq)
            for gate in self.gates.declared:
                key = blocked_at(gate, run, level)
                if key is not None:
                    self.blocked.forget(key, run)

    def drop_ended(self, run: Queued, level: int) -> bool:
        """Drop the run whose turn it is if it has ended, and give its turn to the next ones."""
        if run.seq not in self.ended:
            return False
        self.ended.discard(run.seq)
        self._heads[level].take()
        self.pass_on(run)
        return True

    def clear(self, known_due: Container[int] = ()) -> None:
        """Drop all runs in memory; they are read again from the journal.

        Except for those that are known to be due, they release their ordering keys and slots: one
        that was cancelled would never do so.
        """
        for run in self.rows():
            if run.seq in known_due:
                continue
            if run.order_key is not None:
                self.gates.order.let_go(run.order_key, run.id)
            for gate in self.gates.held:
                gate.let_go(run)
        for head in self._heads.values():
            head.clear()
        self.release()
        self.blocked.clear()
        self.ended.clear()
        self._ended_unread.clear()  # what was read before is ignored
        self._epoch += 1

    def take_over(self, other: Queue, now: datetime) -> None:
        """Take over what runs and arrives of a flow that was renamed to this one, and its turns."""
        for run in (*other.gates.inside.values(), *other._arriving):
            run.flow = self.flow
        self.gates.take_over(other.gates, now)
        self._arriving.take_over(other._arriving)
        for level in self._heads.keys() & other._heads.keys():
            self._heads[level].take_over(other._heads[level])
        self.starting += other.starting
        other.starting = 0
