"""Who may run now: slots over all flows, per flow, per key, and one at a time per ordering key.

Counted in memory, rebuilt from the journal at start. Nothing here waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from turnout.service.domain.flow import Limit

RUNNING = 0
"""Holder of an ordering key while its run is running; otherwise the holder is a run's seq."""

UNWRITTEN = -1
"""Seq of a run that is not written yet: it takes an ordering key only together with a slot."""


class Block(Enum):
    """Why a run may not start."""

    SLOT = "slot"
    FLOW = "flow"
    LIMIT = "limit"
    ORDER = "order"
    ISOLATED = "isolated"


@dataclass(slots=True)
class _Counts:
    """What one flow holds: slots, slots per limit key, and the holder of each ordering key."""

    flow: str
    count: int | None
    per_key: bool
    running: int = 0
    by_key: dict[str, int] = field(default_factory=dict)
    holders: dict[str, int] = field(default_factory=dict)


class Admission:
    """Counts slots: `admit` takes one or says what blocks the run, `release` gives it back.

    Isolated runs (the process died twice in a row while they ran) run one at a time over all
    flows.
    """

    def __init__(self, concurrency: int) -> None:
        self.free = concurrency
        self._isolated_runs = False
        self._flows: dict[str, _Counts] = {}

    def declare(self, flow: str, concurrency: Limit | None) -> bool:
        """Set a flow's limit, keeping what it holds; True if a reload changed the limit."""
        known = self._flows.get(flow)
        count = None if concurrency is None else concurrency.count
        per_key = concurrency is not None and concurrency.per is not None
        if known is None or known.flow != flow:  # a renamed flow's old name: see `adopt`
            self._flows[flow] = _Counts(flow, count, per_key)
            return False
        changes = (known.count, known.per_key) != (count, per_key)
        known.count, known.per_key = count, per_key
        return changes

    def adopt(self, was: str, name: str) -> None:
        """Count what a flow holds or releases under its old name for its new name."""
        old, new = self._flows.setdefault(was, self._flows[name]), self._flows[name]
        if old is new:
            return
        new.running += old.running
        for key, count in old.by_key.items():
            new.by_key[key] = new.by_key.get(key, 0) + count
        for key, holder in old.holders.items():
            new.holders.setdefault(key, holder)
        for name_before, counts in self._flows.items():
            if counts is old:  # also under still older names, whose runs may be running
                self._flows[name_before] = new

    def slots(self, flow: str) -> tuple[int, int]:
        """Return how many more runs of a flow may start, keys apart, and how many are running."""
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
        """Take a slot and keys for a run, or return what blocks it.

        The ordering key comes first: a run blocked by anything else keeps its key under its `seq`,
        so that no later run of the key overtakes it.
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
            elif seq != UNWRITTEN:
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
        """Release a slot and its keys; the run `keep_order_for`, if any, keeps the ordering key."""
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
        """Take back a slot that was released too early, even if none is free."""
        counts = self._flows[flow]
        self.free -= 1
        counts.running += 1
        if limit_key is not None:
            counts.by_key[limit_key] = counts.by_key.get(limit_key, 0) + 1
        self._isolated_runs = self._isolated_runs or isolated

    def hold_key(self, flow: str, order_key: str, seq: int) -> bool:
        """Give an ordering key to a run that is not running; False if another run holds it."""
        return self._flows[flow].holders.setdefault(order_key, seq) == seq

    def holder(self, flow: str, order_key: str) -> int | None:
        """Return the holder of an ordering key: a run's seq, `RUNNING`, or None."""
        return self._flows[flow].holders.get(order_key)

    def release_key(self, flow: str, order_key: str, seq: int) -> bool:
        """Release the ordering key of a run that is not running; False if it is not the holder."""
        counts = self._flows[flow]
        if counts.holders.get(order_key) != seq:
            return False
        del counts.holders[order_key]
        return True
