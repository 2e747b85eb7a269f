"""What waits to run: every flow's lane, and the choice of whose turn it is.

Guarantees: runs of a flow are handed out in arrival order, those of a key one behind the other; a
lane with nothing to start costs nothing until something wakes it. Not here: how a lane keeps its
rows (`queue`), counting slots (`flowcontrol`), and claiming what was chosen (`dispatcher`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from turnout.service.domain.flow import Flow
from turnout.service.flowcontrol.admission import Admission, Block
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import Queued

from .queue import WINDOW, Key, Lane, Memory


class Queues:
    """The lanes of all flows; `work` is set whenever some run may be able to start.

    `moved` is set whenever a run was born running or gave back its slot.
    `lined_up` are the runs in memory that were due: the journal goes on naming them until they
    are claimed.
    """

    def __init__(self, journal: Journal, admission: Admission) -> None:
        self.work = asyncio.Event()
        self.moved = asyncio.Event()
        self.lined_up: set[int] = set()
        self._journal = journal
        self._admission = admission
        self._memory = Memory()
        self._lanes: dict[str, Lane] = {}
        self._awake: dict[str, Lane] = {}

    # ------------------------------------------------------------ flows

    def serve(self, flows: Iterable[Flow[..., object]], paused: Iterable[str]) -> None:
        """Take the flows of a (re)loaded project; others keep their queue and start nothing."""
        stopped = set(paused)
        names = set()
        for flow in flows:
            names.add(flow.name)
            lane = self._made(flow.name)
            if self._admission.declare(flow.name, flow.concurrency):
                self.forget(flow.name)  # what is parked waits by the limit before
            lane.forget_claims()
            lane.paused = flow.name in stopped
            self.wake(lane)
        for lane in self._lanes.values():
            if lane.flow not in names:
                lane.paused = True

    def lane(self, flow: str) -> Lane:
        """Return the lane of a flow that was served."""
        return self._lanes[flow]

    def find(self, flow: str) -> Lane | None:
        """Return the lane of a flow, None if there has never been such a flow."""
        return self._lanes.get(flow)

    def _made(self, flow: str) -> Lane:
        lane = self._lanes.get(flow)
        if lane is None or lane.flow != flow:  # of another's old name: see `adopt`
            lane = self._lanes[flow] = Lane(flow, self._memory)
        return lane

    def adopt(self, was: str, name: str) -> None:
        """Count what runs or waits under a flow's old name for its new one."""
        new = self._made(name)
        old = self._lanes.setdefault(was, new)  # what was never served here may still be due
        if old is not new:
            self.forget(was)
            self._awake.pop(was, None)
            new.arriving += old.arriving
            new.starting += old.starting
            for name_before, lane in self._lanes.items():
                if lane is old:  # also by names from before `was`: their runs may still be running
                    self._lanes[name_before] = new
        self._admission.adopt(was, name)

    def forget(self, flow: str) -> None:
        """Have a flow's queue read from the journal afresh."""
        lane = self._lanes.get(flow)
        if lane is not None:
            for row in lane.rows():  # one that was cancelled would never let go of its key
                if row.order_key is not None and row.seq not in self.lined_up:
                    self._admission.let_go(lane.flow, row.order_key, row.seq)
            self.lined_up.difference_update(row.seq for row in lane.rows())
            lane.forget_all()
            self.wake(lane)

    @property
    def starting(self) -> int:
        """How many runs will be running once the commit that makes them so is through."""
        return sum(lane.starting for lane in self._lanes.values())

    # ------------------------------------------------------------ coming in

    def wake(self, lane: Lane) -> None:
        """Look at a lane again, now."""
        self._awake[lane.flow] = lane
        self.work.set()

    def arrived(self, run: Queued) -> None:
        """Take in a run just written as queued: it is looked at as soon as a slot is free."""
        lane = self._lanes[run.flow]
        lane.arrived(run)
        self._awake[lane.flow] = lane
        if self._admission.free > 0:
            self.work.set()

    def due(self, run: Queued, lane: Lane) -> None:
        """Take in a run that is due."""
        self.lined_up.add(run.seq)
        run.is_due = True
        lane.due.append(run)
        self.wake(lane)

    async def refill(self, claiming: set[int]) -> None:
        """Read from the journal what lanes that are awake have no rows of in memory."""
        for lane in list(self._awake.values()):
            await self._refill(lane, claiming)

    async def _refill(self, lane: Lane, claiming: set[int]) -> None:
        while lane.wanted:
            await self._fetch(lane, *lane.wanted.popitem(), claiming)
        if lane.stopped or not lane.unread or len(lane.window) > WINDOW // 2:
            return
        epoch = lane.start_reading()
        rows = await self._journal.queued(lane.flow, lane.cursor, WINDOW)
        lane.read(rows, more=len(rows) == WINDOW, epoch=epoch)

    async def _fetch(self, lane: Lane, key: Key, free: int, claiming: set[int]) -> None:
        """Read from the journal the runs that wait for a spilled key, as many as it is free for."""
        count, after, more = WINDOW // 4, 0, True
        found: list[Queued] = []
        while more and len(found) < free:
            rows = await self._journal.queued_for_key(lane.flow, *key, count, after)
            held = {run.seq for run in lane.rows()}.union(claiming)
            for row in rows:
                if row.seq in held:
                    continue
                if self._is_for(lane, row, key):
                    found.append(row)
                elif key == ("order", row.order_key) and row.seq < lane.newer:
                    lane.ready.append(row)  # it holds the key: it waits for nothing
            after = rows[-1].seq if rows else after
            more = len(rows) == count and after < lane.newer
        lane.fetched(key, found, more=more, free=free)

    def _is_for(self, lane: Lane, run: Queued, key: Key) -> bool:
        """Whether a run with this key would wait for it: for a limit once its order is its own."""
        if run.order_key is None:
            return True
        holds = self._admission.holder(lane.flow, run.order_key) == run.seq
        return holds is (key[0] == "limit")

    # ------------------------------------------------------------ going out

    def choose(self) -> list[Queued]:
        """Pick runs for the free slots, one from each lane in turn, and take their slots."""
        chosen: list[Queued] = []
        lanes = list(self._awake.values())
        while lanes and self._admission.free > 0:
            lanes = [lane for lane in lanes if self._choose_from(lane, chosen)]
        return chosen

    def _sleep(self, lane: Lane) -> bool:
        """Let a lane that is empty, paused or at its own limit be until something wakes it."""
        self._awake.pop(lane.flow, None)
        return False

    def _choose_from(self, lane: Lane, chosen: list[Queued]) -> bool:
        """Take the next run of a lane; False when it has none that may start."""
        if lane.stopped or lane.empty:
            return self._sleep(lane)
        if not lane.source:
            self.work.set()  # there is more to read
            return False
        run, is_asked_first = lane.source[0], lane.is_asked_first
        behind = self._behind(lane, run) if is_asked_first else None
        if behind is not None:
            self._park(lane, lane.take(), behind)
            return True
        block = self._admission.admit(
            lane.flow, run.order_key, run.limit_key, run.seq, run.isolated
        )
        if block is None:
            chosen.append(lane.starts())
        elif block is Block.ISOLATED:
            lane.isolated.append(lane.take())
        elif block is Block.ORDER or block is Block.LIMIT:
            lane.take()
            key = run.order_key if block is Block.ORDER else run.limit_key
            self._park(lane, run, ("order" if block is Block.ORDER else "limit", key or ""))
            if block is Block.ORDER and not is_asked_first and run.limit_key is not None:
                lane.freed(("limit", run.limit_key))  # it may have been called for that: the next
        elif block is Block.FLOW:
            return self._sleep(lane)
        else:
            return False
        return True

    def _behind(self, lane: Lane, run: Queued) -> Key | None:
        """Return the key that an older run waits for, and this one behind it, if there is one.

        A limit is waited for with the ordering key taken, as `admit` does it: nothing may overtake.
        """
        order, limit = run.order_key, run.limit_key
        waits = order is not None and lane.has_parked(order, None)
        if order is not None and waits and self._admission.holder(lane.flow, order) != run.seq:
            return "order", order  # else what is parked waits for this run
        if limit is None or not lane.has_parked(None, limit):
            return None
        if order is not None and not self._admission.hold(lane.flow, order, run.seq):
            return "order", order
        return "limit", limit

    def _park(self, lane: Lane, run: Queued, key: Key) -> None:
        if not lane.park(run, key):
            self.lined_up.discard(run.seq)

    # ------------------------------------------------------------ slots and keys given back

    def release(
        self,
        flow: str,
        order_key: str | None,
        limit_key: str | None,
        *,
        isolated: bool,
        keep_order_for: int | None = None,
    ) -> None:
        """Give back a slot, and the keys with it; `keep_order_for` goes on holding its order."""
        self._admission.release(
            flow, order_key, limit_key, isolated=isolated, keep_order_for=keep_order_for
        )
        if order_key is not None and keep_order_for is None:
            self._free(flow, ("order", order_key))
        elif order_key is not None and keep_order_for is not None:
            self._call(flow, order_key, keep_order_for)  # it may have been due a moment before
        if limit_key is not None:
            self._free(flow, ("limit", limit_key))
        if isolated:
            self._wake_isolated()
        self.moved.set()
        lane = self._lanes[flow]
        if not lane.empty:
            self.wake(lane)

    def hold(self, flow: str, order_key: str, seq: int) -> None:
        """Have a run that is not running hold an ordering key, and wait for it no more."""
        if self._admission.hold(flow, order_key, seq):
            self._call(flow, order_key, seq)

    def let_go(self, flow: str, order_key: str, seq: int) -> None:
        """Free an ordering key if the run `seq`, which is not running, holds it."""
        self.lined_up.discard(seq)
        if self._admission.let_go(flow, order_key, seq):
            self._free(flow, ("order", order_key))

    def _call(self, flow: str, order_key: str, seq: int) -> None:
        """Have the holder of an ordering key wait for it no more."""
        lane = self._lanes[flow]
        if lane.call(("order", order_key), seq):
            self.wake(lane)

    def _wake_isolated(self) -> None:
        """Ask again for all isolated runs: the flow of the first one may be paused."""
        for lane in self._lanes.values():
            if lane.isolated:
                for run in lane.isolated:
                    lane.call_up(run)
                lane.isolated.clear()
                self.wake(lane)

    def _free(self, flow: str, key: Key) -> None:
        lane = self._lanes[flow]
        lane.freed(key)
        if not lane.empty:
            self.wake(lane)
