"""Order: the runs of one ordering key (`ordered_by=`) run one after the other, in arrival order.

One that an operator queues again arrives again, behind the others; the journal keeps its number
(`runs.arrival`). A run holds its key from its first ask until it ends: while it waits for another
gate, runs, or waits for its next try. So a refusal lets no newer run overtake.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from turnout.service.domain.decisions import Fact
from turnout.service.domain.waiting import Cause

from .gate import Answer, Candidate, Gate


class Order(Gate):
    """The holders of each ordering key of a flow, by run id, with their token.

    Token 0 means that the holder is not running. A key has several holders only where flows or dead
    letters came together: after a rename, or a change of `on_dead`.
    """

    name = "order"
    cause = Cause.ORDER

    def __init__(self) -> None:
        self._holders: dict[str, dict[str, int]] = {}

    def key(self, run: Candidate) -> str | None:
        """Return the run's ordering key."""
        return run.order_key

    def holders(self, key: str) -> Collection[str]:
        """Return the ids of the runs that hold a key."""
        return self._holders.get(key, ())

    def held(self) -> dict[str, dict[str, int]]:
        """Return every held key with its holders."""
        return self._holders

    def check(self, run: Candidate, now: datetime) -> Answer:
        """Let a run pass if nobody holds its key, or if it does and no holder is running."""
        if run.order_key is None:
            return None
        holders = self._holders.get(run.order_key)
        if holders is None or (run.id in holders and not any(holders.values())):
            return None
        return "behind"

    def facts(self, run: Candidate) -> Mapping[str, Fact]:
        """Return who holds the run's key."""
        holders = (other for other in self.holders(run.order_key or "") if other != run.id)
        return {"other": next(holders, None)}

    def enter(self, run: Candidate, now: datetime) -> None:
        """Make a run that starts a holder of its key."""
        if run.order_key is not None:
            self._holders.setdefault(run.order_key, {})[run.id] = run.token

    def leave(self, run: Candidate) -> None:
        """Release the key of a run that has ended, unless another attempt of it holds the key."""
        if run.order_key is not None:
            self._release(run.order_key, run.id, run.token)

    def suspend(self, run: Candidate) -> None:
        """Keep the key for a run that no longer runs: it goes on later, or blocks its key."""
        holders = self._holders.get(run.order_key or "", {})
        if holders.get(run.id) == run.token:
            holders[run.id] = 0

    def hold(self, run: Candidate) -> bool:
        """Give a run that must wait its key, if it is free; False if the run does not hold it."""
        assert run.order_key is not None
        return self._holders.setdefault(run.order_key, {run.id: 0}).get(run.id) == 0

    def is_held_by(self, run: Candidate) -> bool:
        """Whether a run that is not running holds its key."""
        return self._holders.get(run.order_key or "", {}).get(run.id) == 0

    def add_holder(self, key: str, run_id: str) -> None:
        """Add a run that is not running to the holders of a key, as the journal says."""
        self._holders.setdefault(key, {}).setdefault(run_id, 0)

    def let_go(self, key: str, run_id: str) -> bool:
        """Release the key of a run that is not running; False if that run does not hold it."""
        return self._release(key, run_id, 0)

    def take_over(self, other: Order) -> None:
        """Keep the holders of a flow that has been renamed to this one."""
        for key, holders in other._holders.items():
            self._holders.setdefault(key, {}).update(holders)
        other._holders = {}

    def _release(self, key: str, run_id: str, token: int) -> bool:
        holders = self._holders.get(key, {})
        if holders.get(run_id) != token:
            return False
        del holders[run_id]
        if not holders:
            del self._holders[key]
        return True
