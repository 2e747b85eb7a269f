"""What the gates hold for runs that do not run, read from the journal at open and at a reload.

Retrying and waiting runs hold their ordering key, and their slot at a limit with `hold="run"`;
throttles count what has started. Until that is read, flows with such a limit, or with a throttle
that is new here, start nothing. Not here: the gates (`flowcontrol`).
"""

from __future__ import annotations

from collections.abc import Mapping

from turnout.service.domain.errors import JournalFull
from turnout.service.journal.contract import Work
from turnout.service.journal.records import Queued
from turnout.service.project import AnyFlow

from .attempts import until_writable
from .filling import Filling
from .queue import Queue
from .scheduling import Scheduler


class Restoring:
    """Reads holders from the journal, in its turn among the writes.

    What was written before it is done here too, and what is written after it is done here
    afterwards, so no answer is stale.
    """

    def __init__(self, journal: Work, scheduler: Scheduler, filling: Filling) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self._filling = filling
        self._not_yet: list[Queue] = []

    def begin(self) -> None:
        """Let flows start nothing whose gates must know first what `restore` reads."""
        unread = self._scheduler.unread_throttles()
        fresh = [
            queue
            for queue in self._scheduler.queues()
            if queue not in self._not_yet
            and (queue.gates.held or any(gate in unread for gate in queue.gates.declared))
        ]
        for queue in fresh:
            queue.begin_change()
        self._not_yet += fresh

    async def restore(self, flows: Mapping[str, AnyFlow]) -> None:
        """Hold what the journal says is held; waits while the disk is full."""
        while True:
            try:
                await self._hold_keys(flows)
                await self._hold_slots(flows)
                await self._use_classes(flows)
                await self._recall_starts()
                break
            except JournalFull:
                await until_writable(self._journal)
        restored, self._not_yet = self._not_yet, []
        for queue in restored:
            queue.end_change()
            self._scheduler.activate(queue)

    async def _hold_keys(self, flows: Mapping[str, AnyFlow]) -> None:
        for flow, key, run_id, dead in await self._journal.held_keys():
            known = flows.get(flow)
            if known is not None and (not dead or known.on_dead == "block"):
                self._scheduler.add_holder(flow, key, run_id)
            elif known is not None:  # a reload may have changed `on_dead`
                self._scheduler.let_go(flow, key, run_id)

    async def _hold_slots(self, flows: Mapping[str, AnyFlow]) -> None:
        """Hold the slots of runs as one read says: one that ends after it lets go of its slot."""
        found = await self._suspended(flows)
        lacking = [(queue, run) for queue, run in found if queue.gates.lacks_keys(run)]
        for queue, run in lacking:
            await self._filling.complete(queue, [run])
        if lacking:  # some may have ended meanwhile
            found = await self._suspended(flows)
        for queue, run in found:
            if not queue.gates.lacks_keys(run):
                for gate in queue.gates.held:
                    gate.hold(run)

    async def _suspended(self, flows: Mapping[str, AnyFlow]) -> list[tuple[Queue, Queued]]:
        """Return the retrying and waiting runs of the flows whose slots are not held yet."""
        names = [queue.flow for queue in self._not_yet]
        runs = await self._journal.suspended(names) if names else ()
        found = ((self._scheduler.queue(run.flow), run) for run in runs)
        return [(queue, run) for queue, run in found if queue.flow in flows]

    async def _recall_starts(self) -> None:
        if self._scheduler.unread_throttles():
            self._scheduler.recall(await self._journal.starts())

    async def _use_classes(self, flows: Mapping[str, AnyFlow]) -> None:
        classed = [flow.name for flow in flows.values() if flow.priority is not None]
        if await self._journal.use_classes(classed):
            for name in classed:
                self._scheduler.reread(name)
