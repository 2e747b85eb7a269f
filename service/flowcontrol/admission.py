"""Who may run now: slots over all flows, per flow, per key, and one at a time per ordering key.

Plain counting in memory, rebuilt from the journal at start; it decides and remembers, and never
waits. The room for later admission rules (debounce, batches, rates, modes).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from turnout.service.domain.flow import Limit

RUNNING = 0
"""Holder of an ordering key whose run is running; else the holder is a waiting run's seq."""


NEWBORN = -1
"""Stands for the seq of a run that is not written yet: it holds nothing it is not running for."""


class Block(Enum):
    """What a run that may not start is waiting for."""

    SLOT = "slot"
    FLOW = "flow"
    LIMIT = "limit"
    ORDER = "order"
    ISOLATED = "isolated"


@dataclass(slots=True)
class _Counts:
    """What one flow holds: slots, slots by limit key, and ordering keys with their holders."""

    flow: str
    count: int | None
    per_key: bool
    running: int = 0
    by_key: dict[str, int] = field(default_factory=dict)
    holders: dict[str, int] = field(default_factory=dict)


class Admission:
    """Counts slots; `admit` takes one or says what is missing, `release` gives it back.

    Suspects (decision 15: runs that were running when the process died, twice) run one at a time
    over all flows.
    """

    def __init__(self, concurrency: int) -> None:
        self.free = concurrency
        self._isolated_runs = False
        self._flows: dict[str, _Counts] = {}

    def declare(self, flow: str, concurrency: Limit | None) -> bool:
        """Set a flow's limit, keeping what it holds; True if that is a change (by a reload)."""
        known = self._flows.get(flow)
        count = None if concurrency is None else concurrency.count
        per_key = concurrency is not None and concurrency.per is not None
        if known is None or known.flow != flow:  # of another's old name: see `adopt`
            self._flows[flow] = _Counts(flow, count, per_key)
            return False
        changes = (known.count, known.per_key) != (count, per_key)
        known.count, known.per_key = count, per_key
        return changes

    def adopt(self, was: str, name: str) -> None:
        """Count what a flow's old name holds, and gives back from now on, for its new name."""
        old, new = self._flows.setdefault(was, self._flows[name]), self._flows[name]
        if old is new:
            return
        new.running += old.running
        for key, count in old.by_key.items():
            new.by_key[key] = new.by_key.get(key, 0) + count
        for key, holder in old.holders.items():
            new.holders.setdefault(key, holder)
        for name_before, counts in self._flows.items():
            if counts is old:  # also by names from before `was`: their runs may still be running
                self._flows[name_before] = new

    def slots(self, flow: str) -> tuple[int, int]:
        """Return how many more runs of a flow could start, keys apart, and how many it runs."""
        counts = self._flows[flow]
        free = self.free
        if counts.count is not None and not counts.per_key:
            free = min(free, counts.count - counts.running)
        return free, counts.running

    def held_slots(self) -> dict[str, int]:
        """Return how many slots each flow holds."""
        return {counts.flow: counts.running for counts in self._flows.values()}

    def admit(
        self, flow: str, order_key: str | None, limit_key: str | None, seq: int, isolated: bool
    ) -> Block | None:
        """Take a slot and keys for a run, or take nothing and return what blocks it.

        The ordering key comes first: a run blocked by anything else keeps the key it got, so that
        nothing behind it on that key overtakes (`seq` is how it is known when it asks again).
        """
        counts = self._flows[flow]
        if order_key is not None:
            holder = counts.holders.get(order_key)
            if holder is not None and holder != seq:
                return Block.ORDER
        block = self._block(counts, limit_key, isolated)
        if order_key is not None:
            if block is None:
                counts.holders[order_key] = RUNNING
            elif seq != NEWBORN:
                counts.holders[order_key] = seq
        if block is None:
            self.free -= 1
            counts.running += 1
            if limit_key is not None:
                counts.by_key[limit_key] = counts.by_key.get(limit_key, 0) + 1
            if isolated:
                self._isolated_runs = True
        return block

    def _block(self, counts: _Counts, limit_key: str | None, isolated: bool) -> Block | None:
        if self.free <= 0:
            return Block.SLOT
        if isolated and self._isolated_runs:
            return Block.ISOLATED
        if counts.count is not None:
            if counts.per_key:
                if counts.by_key.get(limit_key or "", 0) >= counts.count:
                    return Block.LIMIT
            elif counts.running >= counts.count:
                return Block.FLOW
        return None

    def release(
        self,
        flow: str,
        order_key: str | None,
        limit_key: str | None,
        *,
        isolated: bool,
        keep_order_for: int | None = None,
    ) -> None:
        """Give back a slot; `keep_order_for` is the seq of a run that goes on holding its order."""
        counts = self._flows[flow]
        self.free += 1
        counts.running -= 1
        if isolated:
            self._isolated_runs = False
        if limit_key is not None:
            left = counts.by_key.get(limit_key, 0) - 1
            if left > 0:
                counts.by_key[limit_key] = left
            else:
                counts.by_key.pop(limit_key, None)
        if order_key is not None:
            if keep_order_for is not None:
                counts.holders[order_key] = keep_order_for
            else:
                counts.holders.pop(order_key, None)

    def retake(self, flow: str, limit_key: str | None, *, isolated: bool) -> None:
        """Take a slot that was given back too early, whether one is free or not."""
        counts = self._flows[flow]
        self.free -= 1
        counts.running += 1
        if limit_key is not None:
            counts.by_key[limit_key] = counts.by_key.get(limit_key, 0) + 1
        self._isolated_runs = self._isolated_runs or isolated

    def hold(self, flow: str, order_key: str, seq: int) -> bool:
        """Have a run that is not running hold an ordering key; False if another one does."""
        return self._flows[flow].holders.setdefault(order_key, seq) == seq

    def holder(self, flow: str, order_key: str) -> int | None:
        """Return who holds an ordering key: a run's seq, `RUNNING`, or None."""
        return self._flows[flow].holders.get(order_key)

    def let_go(self, flow: str, order_key: str, seq: int) -> bool:
        """Free an ordering key whose waiting holder was cancelled; True if it was the holder."""
        counts = self._flows[flow]
        if counts.holders.get(order_key) != seq:
            return False
        del counts.holders[order_key]
        return True
