"""Scheduling: the queues of all flows, and whose turn it is.

Guarantees: runs of a flow start in arrival order, runs of an ordering key one after the other. A
queue with nothing to start costs nothing until it is activated. Not here: how a queue keeps its
rows (`queue`), counting slots (`flowcontrol`), and claiming the chosen runs (`dispatcher`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from turnout.service.domain.flow import Flow
from turnout.service.flowcontrol.admission import Admission, Block
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import Queued

from .queue import WINDOW, Key, Memory, Queue


class Scheduler:
    """The queues of all flows; `work` is set whenever a run may be able to start.

    `progressed` is set whenever a run has started on insert or released its slot. `known_due` holds
    the due runs in memory: the journal returns them as due until they are claimed. Only active
    queues are asked for runs.
    """

    def __init__(self, journal: Journal, admission: Admission) -> None:
        self.work = asyncio.Event()
        self.progressed = asyncio.Event()
        self.known_due: set[int] = set()
        self._journal = journal
        self._admission = admission
        self._memory = Memory()
        self._queues: dict[str, Queue] = {}
        self._active: dict[str, Queue] = {}

    # ------------------------------------------------------------ flows

    def serve(self, flows: Iterable[Flow[..., object]], paused: Iterable[str]) -> None:
        """Serve the flows of a (re)loaded project; others keep their queue and start nothing."""
        stopped = set(paused)
        names = set()
        for flow in flows:
            names.add(flow.name)
            queue = self._queue_for(flow.name)
            if self._admission.declare(flow.name, flow.concurrency):
                self.reread(flow.name)  # runs are blocked by the old limit
            queue.drop_claims()
            queue.paused = flow.name in stopped
            self.activate(queue)
        for queue in self._queues.values():
            if queue.flow not in names:
                queue.paused = True

    def queue(self, flow: str) -> Queue:
        """Return the queue of a flow that was served."""
        return self._queues[flow]

    def find(self, flow: str) -> Queue | None:
        """Return the queue of a flow, None if the flow was never served."""
        return self._queues.get(flow)

    def _queue_for(self, flow: str) -> Queue:
        queue = self._queues.get(flow)
        if queue is None or queue.flow != flow:  # a renamed flow's old name: see `adopt`
            queue = self._queues[flow] = Queue(flow, self._memory)
        return queue

    def adopt(self, was: str, name: str) -> None:
        """Count what runs or waits under a flow's old name for its new name."""
        new = self._queue_for(name)
        old = self._queues.setdefault(was, new)  # a flow that was never served may have due runs
        if old is not new:
            self.reread(was)
            self._active.pop(was, None)
            new.arriving += old.arriving
            new.starting += old.starting
            for name_before, queue in self._queues.items():
                if queue is old:  # also under still older names, whose runs may be running
                    self._queues[name_before] = new
        self._admission.adopt(was, name)

    def reread(self, flow: str) -> None:
        """Drop a flow's queue from memory and read it again from the journal."""
        queue = self._queues.get(flow)
        if queue is not None:
            for row in queue.rows():  # a cancelled run would never release its key
                if row.order_key is not None and row.seq not in self.known_due:
                    self._admission.release_key(queue.flow, row.order_key, row.seq)
            self.known_due.difference_update(row.seq for row in queue.rows())
            queue.clear()
            self.activate(queue)

    @property
    def starting(self) -> int:
        """The number of runs that are being written as running."""
        return sum(queue.starting for queue in self._queues.values())

    # ------------------------------------------------------------ filling queues

    def activate(self, queue: Queue) -> None:
        """Ask a queue for runs again, now."""
        self._active[queue.flow] = queue
        self.work.set()

    def enqueue(self, run: Queued) -> None:
        """Add a run just written as queued; it starts as soon as a slot is free."""
        queue = self._queues[run.flow]
        queue.enqueue(run)
        self._active[queue.flow] = queue
        if self._admission.free > 0:
            self.work.set()

    def add_due(self, run: Queued, queue: Queue) -> None:
        """Add a run that is due."""
        self.known_due.add(run.seq)
        run.is_due = True
        queue.due.append(run)
        self.activate(queue)

    async def refill(self, claiming: set[int]) -> None:
        """Read from the journal what active queues lack in memory."""
        for queue in list(self._active.values()):
            await self._refill(queue, claiming)

    async def _refill(self, queue: Queue, claiming: set[int]) -> None:
        while queue.pending_wakeups:
            await self._fetch(queue, *queue.pending_wakeups.popitem(), claiming)
        if queue.stopped or not queue.unread or len(queue.window) > WINDOW // 2:
            return
        epoch = queue.start_reading()
        rows = await self._journal.queued(queue.flow, queue.cursor, WINDOW)
        queue.finish_reading(rows, more=len(rows) == WINDOW, epoch=epoch)

    async def _fetch(self, queue: Queue, key: Key, wakeups: int, claiming: set[int]) -> None:
        """Read runs blocked by an evicted key from the journal, enough for `wakeups`."""
        count, after, more = WINDOW // 4, 0, True
        found: list[Queued] = []
        while more and len(found) < wakeups:
            rows = await self._journal.queued_for_key(queue.flow, *key, count, after)
            held = {run.seq for run in queue.rows()}.union(claiming)
            for row in rows:
                if row.seq in held:
                    continue
                if self._would_wait_for(queue, row, key):
                    found.append(row)
                elif key == ("order", row.order_key) and row.seq < queue.window_start:
                    queue.woken.append(row)  # it holds the key, so nothing blocks it
            after = rows[-1].seq if rows else after
            more = len(rows) == count and after < queue.window_start
        queue.finish_fetching(key, found, more=more, wakeups=wakeups)

    def _would_wait_for(self, queue: Queue, run: Queued, key: Key) -> bool:
        """Whether a key blocks a run: a limit key blocks only the holder of its ordering key."""
        if run.order_key is None:
            return True
        holds = self._admission.holder(queue.flow, run.order_key) == run.seq
        return holds is (key[0] == "limit")

    # ------------------------------------------------------------ choosing runs

    def choose(self) -> list[Queued]:
        """Choose runs for the free slots, one from each queue in turn, and take their slots."""
        chosen: list[Queued] = []
        queues = list(self._active.values())
        while queues and self._admission.free > 0:
            queues = [queue for queue in queues if self._choose_from(queue, chosen)]
        return chosen

    def _deactivate(self, queue: Queue) -> bool:
        """Skip a queue that is empty, paused or at its flow's limit until it is activated."""
        self._active.pop(queue.flow, None)
        return False

    def _choose_from(self, queue: Queue, chosen: list[Queued]) -> bool:
        """Choose or set aside the next run of a queue; False if the queue has none to start."""
        if queue.stopped or queue.empty:
            return self._deactivate(queue)
        if not queue.source:
            self.work.set()  # its runs must be read from the journal first
            return False
        run, is_first_ask = queue.source[0], queue.is_first_ask
        key_ahead = self._blocked_behind(queue, run) if is_first_ask else None
        if key_ahead is not None:
            self._block(queue, queue.take(), key_ahead)
            return True
        block = self._admission.admit(
            queue.flow, run.order_key, run.limit_key, run.seq, run.isolated
        )
        if block is None:
            chosen.append(queue.take_to_start())
        elif block is Block.ISOLATED:
            queue.isolated.append(queue.take())
        elif block is Block.ORDER or block is Block.LIMIT:
            queue.take()
            key = run.order_key if block is Block.ORDER else run.limit_key
            self._block(queue, run, ("order" if block is Block.ORDER else "limit", key or ""))
            if block is Block.ORDER and not is_first_ask and run.limit_key is not None:
                # The limit may have woken it: wake the next one instead.
                queue.wake_next(("limit", run.limit_key))
        elif block is Block.FLOW:
            return self._deactivate(queue)
        else:
            return False
        return True

    def _blocked_behind(self, queue: Queue, run: Queued) -> Key | None:
        """Return the key that blocks an older run and so this run too, if there is one.

        A run blocked by a limit takes its ordering key first, as in `admit`: nothing may overtake.
        """
        order, limit = run.order_key, run.limit_key
        waits = order is not None and queue.has_blocked(order, None)
        if order is not None and waits and self._admission.holder(queue.flow, order) != run.seq:
            return "order", order  # else the blocked runs wait for this run
        if limit is None or not queue.has_blocked(None, limit):
            return None
        if order is not None and not self._admission.hold_key(queue.flow, order, run.seq):
            return "order", order
        return "limit", limit

    def _block(self, queue: Queue, run: Queued, key: Key) -> None:
        if not queue.block(run, key):
            self.known_due.discard(run.seq)

    # ------------------------------------------------------------ releasing slots and keys

    def release(
        self,
        flow: str,
        order_key: str | None,
        limit_key: str | None,
        *,
        isolated: bool,
        keep_order_for: int | None = None,
    ) -> None:
        """Release a slot and its keys; the run `keep_order_for`, if any, keeps the ordering key."""
        self._admission.release(
            flow, order_key, limit_key, isolated=isolated, keep_order_for=keep_order_for
        )
        if order_key is not None and keep_order_for is None:
            self._key_freed(flow, ("order", order_key))
        elif order_key is not None and keep_order_for is not None:
            # It may have become due before this release.
            self._wake_holder(flow, order_key, keep_order_for)
        if limit_key is not None:
            self._key_freed(flow, ("limit", limit_key))
        if isolated:
            self._wake_isolated()
        self.progressed.set()
        queue = self._queues[flow]
        if not queue.empty:
            self.activate(queue)

    def hold_key(self, flow: str, order_key: str, seq: int) -> None:
        """Give an ordering key, if free, to a run that is not running, and wake that run."""
        if self._admission.hold_key(flow, order_key, seq):
            self._wake_holder(flow, order_key, seq)

    def release_key(self, flow: str, order_key: str, seq: int) -> None:
        """Release an ordering key if the run `seq`, which is not running, holds it."""
        self.known_due.discard(seq)
        if self._admission.release_key(flow, order_key, seq):
            self._key_freed(flow, ("order", order_key))

    def _wake_holder(self, flow: str, order_key: str, seq: int) -> None:
        """Wake the new holder of an ordering key if the key blocked it."""
        queue = self._queues[flow]
        if queue.wake_holder(("order", order_key), seq):
            self.activate(queue)

    def _wake_isolated(self) -> None:
        """Wake all waiting isolated runs: the flow of the first one may be paused."""
        for queue in self._queues.values():
            if queue.isolated:
                for run in queue.isolated:
                    queue.wake(run)
                queue.isolated.clear()
                self.activate(queue)

    def _key_freed(self, flow: str, key: Key) -> None:
        queue = self._queues[flow]
        queue.wake_next(key)
        if not queue.empty:
            self.activate(queue)
