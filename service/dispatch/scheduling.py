"""Scheduling: the queues of all flows, and whose turn it is.

Guarantees: runs of a flow start in arrival order, runs of an ordering key one after the other. A
queue with nothing to start costs nothing until it is activated. Not here: how a queue keeps its
rows (`queue`), reading them (`filling`), what a gate answers (`flowcontrol`), and claiming the
chosen runs (`claiming`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime

from turnout.service.domain.run import Run, Start
from turnout.service.flowcontrol.admission import Admission, FlowGates
from turnout.service.flowcontrol.gate import Candidate, Gate, NamedGates, Refusal
from turnout.service.flowcontrol.named_limit import NamedLimit
from turnout.service.flowcontrol.priority import CLASSES, ClassTurns
from turnout.service.journal.records import NewRun, Queued
from turnout.service.project import AnyFlow

from . import memory
from .alarms import Alarms
from .blocked import ORDER, Key
from .causes import asks_as
from .queue import Queue
from .start_timeouts import Late, is_late


class Scheduler:
    """The queues of all flows; `work` is set whenever a run may be able to start.

    `progressed` is set whenever a run has started on insert or left the gates. `known_due` is the
    set of due runs in memory: the journal returns them as due until they are claimed. Only active
    queues are asked for runs. `late` are the runs that `choose` took and that must not start.
    `due_lost` is called when due runs must be read from the journal.
    """

    def __init__(self, concurrency: int, now: Callable[[], datetime]) -> None:
        self.work = asyncio.Event()
        self.progressed = asyncio.Event()
        self._known_due: set[int] = set()
        self._admission = Admission(concurrency)
        self._slots = self._admission.slots
        self.breakers = self._admission.breakers
        self.breakers.freed = self._freed
        self._memory = memory.Memory()
        self._alarms = Alarms(self._rung, now)
        self._queues: dict[str, Queue] = {}
        self._active: dict[int, dict[str, Queue]] = {level: {} for level in CLASSES}
        self._turns = ClassTurns()
        self._has_classes = False
        self._sharing: dict[Gate, list[Queue]] = {}
        self.late: list[Late] = []
        self.due_lost: Callable[[], None] = lambda: None

    # ------------------------------------------------------------ flows

    def serve(
        self, flows: Iterable[AnyFlow], paused: Mapping[str, datetime], now: datetime
    ) -> None:
        """Serve the flows of a (re)loaded project; others keep their queue and start nothing.

        Queues are read again: runs may be blocked by a rule that has changed, and the arguments of
        prepared claims were bound by replaced code.
        """
        flows = list(flows)
        self.breakers.serve(flows, now)
        self._has_classes = any(flow.priority is not None for flow in flows)
        names = set()
        for flow in flows:
            names.add(flow.name)
            queue = self.declare(flow, now)
            if flow.name in paused:
                queue.pause(paused[flow.name])
            else:
                queue.resume(now)
        for queue in self._queues.values():
            if queue.flow not in names:
                queue.pause(now)
        self._share()

    def _share(self) -> None:
        """Note which queues share a named gate: they are asked again when a run leaves it."""
        self._sharing = {}
        for queue in self.queues():
            for gate in queue.gates.named:
                self._sharing.setdefault(gate, []).append(queue)
        for gate in self.named.values():
            if isinstance(gate, NamedLimit):
                gate.freed = self.freed

    def unread_throttles(self) -> Collection[Gate]:
        """Return the throttles that do not know yet what has started."""
        return self._admission.unread_throttles()

    def recall(self, starts: Iterable[Start]) -> None:
        """Count for these throttles what the journal has recorded."""
        self._admission.recall(starts)

    @property
    def named(self) -> NamedGates:
        """The gates that flows share by a name."""
        return self._admission.named

    def declare(self, flow: AnyFlow, now: datetime) -> Queue:
        """Use what a flow declares now; its queue is read again."""
        queue = self._queue_for(flow.name)
        queue.gates.declare(flow, now)
        queue.use_classes(flow.priority is not None)
        self.reread(flow.name)
        return queue

    def queue(self, flow: str) -> Queue:
        """Return the queue of a flow that was served."""
        return self._queues[flow]

    def find(self, flow: str) -> Queue | None:
        """Return the queue of a flow, None if the flow was never served."""
        return self._queues.get(flow)

    def queues(self) -> Iterator[Queue]:
        """Yield each queue once; a renamed flow's queue has its old names too."""
        for name, queue in self._queues.items():
            if queue.flow == name:
                yield queue

    def _queue_for(self, flow: str) -> Queue:
        queue = self._queues.get(flow)
        if queue is None or queue.flow != flow:  # a renamed flow's old name: see `adopt`
            gates = FlowGates(self._admission)
            queue = self._queues[flow] = Queue(flow, self._memory, gates)
        return queue

    def adopt(self, was: str, name: str, now: datetime) -> None:
        """Count what runs or waits under a flow's old name for its new name."""
        new = self._queue_for(name)
        old = self._queues.setdefault(was, new)  # a flow that was never served may have due runs
        if old is new:
            return
        self.reread(was)
        for active in self._active.values():
            active.pop(old.flow, None)
        new.take_over(old, now)
        for name_before, queue in self._queues.items():
            if queue is old:  # also under still older names, whose runs may be running
                self._queues[name_before] = new
        self._share()

    def reread(self, flow: str) -> None:
        """Drop a flow's queue from memory and read it again from the journal."""
        queue = self._queues.get(flow)
        if queue is None:
            return
        rows = {row.seq for row in queue.rows()}
        queue.clear(self._known_due)
        self._known_due -= rows
        queue.due_unread = True
        self.due_lost()
        self.activate(queue)

    @property
    def starting(self) -> int:
        """The number of runs that are being written as running."""
        return sum(queue.starting for queue in self._queues.values())

    @property
    def free_slots(self) -> int:
        """How many slots are free."""
        return self._slots.free

    def held_slots(self) -> Mapping[str, int]:
        """Return how many slots each flow holds."""
        return {queue.flow: len(queue.gates.inside) for queue in self.queues()}

    @property
    def may_start_new(self) -> bool:
        """Whether a new run may start before it has waited for its turn.

        Where flows declare classes, no other run may be about to start: its class may be first.
        """
        return not (self._has_classes and any(self._active.values()))

    # ------------------------------------------------------------ what may start

    def active(self) -> Iterator[tuple[Queue, int]]:
        """Yield the queues that are asked for runs, with the class; others may come meanwhile."""
        for level, active in self._active.items():
            for queue in list(active.values()):
                yield queue, level

    def activate(self, queue: Queue) -> None:
        """Ask a queue for runs again, now."""
        for level in queue.levels:
            self._active[level][queue.flow] = queue
        self.work.set()

    def arrived(self, new: NewRun | Queued, run: Queued) -> None:
        """Add a run just written as queued; it starts as soon as a slot is free."""
        queue = self._queues[new.flow]
        queue.arrived(new, run)
        if queue.held_until is not None:
            return
        self._active[queue.level_of(run)][queue.flow] = queue
        if queue.awaits_newest:
            self._awaited(queue)
        elif self._slots.free > 0:
            self.work.set()

    def not_written(self, run: NewRun) -> None:
        """Count a run no more that was not written as queued after all."""
        queue = self._queues[run.flow]
        queue.discard_arriving(run)
        if queue.awaits_newest:
            self._awaited(queue)

    def _awaited(self, queue: Queue) -> None:
        """Ask a queue again that has waited for a newer run to be written."""
        queue.awaits_newest = False
        self.activate(queue)

    def started(self, flow: str) -> None:
        """Note that a run of a flow has started on insert."""
        self._queues[flow].end_starting()
        self.progressed.set()

    @property
    def known_due(self) -> frozenset[int]:
        """The seqs of the due runs in memory."""
        return frozenset(self._known_due)

    @property
    def queue_memory_bytes(self) -> int:
        """The memory of queued runs that were kept as they arrived."""
        return self._memory.used_bytes

    def forget_due(self, seq: int) -> None:
        """Take a run from the journal again if it is due: it was claimed, or changed there."""
        self._known_due.discard(seq)

    def forget(self, run: Run) -> None:
        """Drop a run that was ended: a refused check would make it hold its ordering key again."""
        queue = self._queues.get(run.flow)
        if queue is not None:
            queue.forget(asks_as(run))

    def start_reading_due(self) -> Mapping[Queue, int]:
        """Begin to read due runs; return the epoch of each queue, which a clear changes."""
        return {queue: queue.start_read() for queue in self.queues()}

    def due_read(self, epochs: Mapping[Queue, int]) -> None:
        """Let queues start runs again whose due runs were read, unless they were cleared since."""
        for queue, epoch in epochs.items():
            queue.end_read()
            if queue.due_unread and queue.epoch == epoch:
                queue.due_unread = False
                self.activate(queue)

    def add_due(self, run: Queued, queue: Queue) -> None:
        """Add a run that is due."""
        self._known_due.add(run.seq)
        queue.add_due(run)
        self.activate(queue)

    # ------------------------------------------------------------ choosing runs

    def choose(self, now: datetime) -> list[Queued]:
        """Choose runs for the free slots, class by class and flow by flow; they enter the gates."""
        chosen: list[Queued] = []
        ready = {level: deque(active.values()) for level, active in self._active.items() if active}
        while ready and self._slots.free > 0:
            level = self._turns.next(ready)
            queues, count = ready[level], len(chosen)
            queue = queues.popleft()
            if self._choose_from(queue, level, chosen, now):
                queues.append(queue)
            if len(chosen) > count:
                self._turns.started(level, ready)
            if not queues:
                if self.late:
                    break  # what a queue held was late; a class keeps its turn until more is read
                del ready[level]
        return chosen

    def _deactivate(self, queue: Queue, level: int) -> bool:
        """Skip a queue that has nothing of a class to start until it is activated."""
        self._active[level].pop(queue.flow, None)
        return False

    def _choose_from(self, queue: Queue, level: int, chosen: list[Queued], now: datetime) -> bool:
        """Choose or set aside the next run of a class; False if the queue has none to start."""
        if queue.held_until is not None and queue.held_until <= now:
            queue.release()
        if queue.stopped or queue.is_empty_at(level):
            return self._deactivate(queue, level)
        run = queue.first(level)
        if run is None:
            self.work.set()  # its runs must be read from the journal first
            return False
        if queue.ended and queue.drop_ended(run, level):
            return True
        if queue.is_outdated(run):
            queue.awaits_newest = True
            return self._deactivate(queue, level)
        timeout = queue.gates.start_timeout
        if timeout is not None and is_late(run, timeout, now):
            self.late.append(Late(queue.flow, queue.head(level).take(), timeout))
            queue.pass_on(run)
            return True
        key_ahead = None if run.woken_by else queue.key_ahead(run)
        if key_ahead is not None:
            run.cause = run.cause or queue.gates.cause_at(key_ahead[0])
            self._set_aside(queue, level, key_ahead)
            return True
        refusal = queue.gates.ask(run, now)
        if refusal is None:
            chosen.append(queue.take_to_start(level))
            active = self._active[level]
            active[queue.flow] = active.pop(queue.flow)  # the others' turn comes first
            return True
        return self._refused(queue, level, run, refusal, now)

    def _refused(
        self, queue: Queue, level: int, run: Queued, refusal: Refusal, now: datetime
    ) -> bool:
        """Let a refused run wait; False if its whole queue waits with it."""
        gate, answer = refusal
        run.cause = run.cause or gate.cause
        at = answer if isinstance(answer, datetime) else None
        key = queue.key_at(gate, run)
        if at is not None:
            self._alarms.set(queue.flow, key, at, now)
        if key is None:
            queue.refused_by = gate.cause
            if gate.counts_starts and at is not None:
                queue.hold(at)
                return True  # it may have a run that resumes
            # At a shared gate it is asked again whenever a run leaves.
            return False if gate.shared and at is None else self._deactivate(queue, level)
        woken_by = run.woken_by
        self._set_aside(queue, level, key, timed=at is not None)
        if woken_by is not None and woken_by != key and woken_by[0] != ORDER:
            # The next one behind that key may use the turn. Nobody else is woken for it, and none
            # that has had it: runs that are refused would wake each other for ever.
            queue.wake_key(woken_by, after=0 if run.is_due else run.arrival)
        return True

    def _set_aside(self, queue: Queue, level: int, key: Key, *, timed: bool = False) -> None:
        """Set the next run of a class aside behind a key."""
        run = queue.head(level).take()
        if not queue.blocked.add(run, key, timed=timed) and run.is_due:
            self.forget_due(run.seq)

    def _rung(self, flow: str, key: Key | None) -> None:
        """Ask again what waited for an instant."""
        queue = self._queues.get(flow)
        if queue is not None:
            if key is None:
                queue.release()
            else:
                queue.wake_key(key)
            self.activate(queue)

    def _freed(self, dependency: str) -> None:
        """Ask again the flows that wait for a dependency."""
        for queue in self.queues():
            if any(need.dependency == dependency for need in queue.gates.needs):
                self.activate(queue)

    def ring(self) -> None:
        """Ask everything again that waits for an instant: the clock may have been set."""
        self._alarms.ring()

    def next_alarm_at(self) -> datetime | None:
        """Return the next instant for which something waits."""
        return self._alarms.next_at()

    def close(self) -> None:
        """Wait for no instant any more."""
        self._alarms.close()

    # ------------------------------------------------------------ what runs wait for

    @property
    def at_rest(self) -> bool:
        """Whether no queue has a run to start that was not refused when it asked last."""
        if self.starting or any(each.due_unread and not each.paused for each in self.queues()):
            return False
        return not any(
            not (queue.stopped or queue.is_empty_at(level))
            for level, active in self._active.items()
            for queue in active.values()
        )

    def named_limits(self) -> list[tuple[NamedLimit, list[str]]]:
        """Return the limits that flows share by a name, each with these flows."""
        sharing = ((gate, queues) for gate, queues in self._sharing.items())
        return [
            (gate, [queue.flow for queue in queues])
            for gate, queues in sharing
            if isinstance(gate, NamedLimit)
        ]

    # ------------------------------------------------------------ leaving the gates

    def leave_unstarted(self, run: Candidate) -> None:
        """Let a run leave the gates that was not written as running: nothing has started."""
        queue = self._queues[run.flow]
        if run.starts:
            for gate in queue.gates.give_back(run):
                for each in self.queues():
                    if gate in each.gates.declared:
                        self._alarms.ring_early(each.flow, each.key_at(gate, run))
        self.leave(run)

    def leave(self, run: Candidate, *, keeps_key: bool = False, goes_on: bool = False) -> None:
        """Let a run leave the gates.

        With `keeps_key` it goes on holding its ordering key, and one that `goes_on` later keeps its
        slots at the limits that say so.
        """
        queue = self._queues[run.flow]
        queue.leave(run, keeps_key=keeps_key, goes_on=goes_on)
        for gate in queue.gates.named:
            self.freed(gate)
        if run.isolated:
            self._wake_isolated()
        self.progressed.set()
        if not queue.empty:
            self.activate(queue)
        elif any(self._active.values()):
            self.work.set()

    def leave_early(self, run: Candidate) -> bool:
        """Let a run leave the gates while its outcome is written; False if it may keep a slot."""
        if self._queues[run.flow].gates.held:
            return False
        self.leave(run)
        return True

    def freed(self, gate: Gate) -> None:
        """Ask the flows that share a gate again: a slot became free."""
        for queue in self._sharing.get(gate, ()):
            if not queue.empty:
                self.activate(queue)

    def _wake_isolated(self) -> None:
        """Wake all waiting isolated runs: the flow of the first one may be paused."""
        gate = self._admission.isolation
        for queue in self.queues():
            if queue.wake_all((gate.name, "", 0)):
                self.activate(queue)

    def add_holder(self, flow: str, key: str, run_id: str) -> None:
        """Let a run that is not running hold an ordering key."""
        queue = self._queues[flow]
        queue.add_holder(key, run_id)
        self.activate(queue)

    def give_up_slots(self, run: Run) -> None:
        """Release the slots at limits that a run holds without running."""
        queue = self._queues.get(run.flow)
        if queue is not None and queue.gates.held:
            queue.give_up_slots(asks_as(run))
            self.activate(queue)

    def let_go(self, flow: str, key: str, run_id: str) -> None:
        """Release an ordering key if a run that is not running holds it."""
        queue = self._queues.get(flow)
        if queue is not None:
            queue.let_go(key, run_id)
            self.activate(queue)
