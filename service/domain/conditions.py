"""Conditions: what a flow asks of a new run before it is stored, as plain data for the journal.

The journal decides them in the transaction that would store the run, in the order of arrival and in
this order: `unique`, `mode`, rate limits, the bound. The keys are those of the run itself, by rule
(`NewRun.keys`). What each means is in `service/flowcontrol`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal, TypeAlias

Mode: TypeAlias = Literal["skip", "replace", "latest"]
"""What happens to a new run while another one of its key is under way."""

Until: TypeAlias = Literal["done"] | timedelta
"""How long a run keeps its unique key: until it has ended, or so long since it was accepted."""

UNIQUE_RULE = "unique"
MODE_RULE = "mode"
CANCEL_RULE = "cancel_on"


@dataclass(frozen=True, slots=True)
class RateLimitRule:
    """At most `count` accepted runs in any `period`.

    `rule_id` names its log of accepted runs, and where a run keeps its key if the rule has keys;
    `words` is the rule as the author wrote it.
    """

    rule_id: str
    has_keys: bool
    count: int
    period: timedelta
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a flow asks of a new run; None or empty for what it does not declare.

    `forced`: an operator starts it past the mode, which is recorded. `takes_key`: it is not asked
    whether it is unique, and has its key for so long, unless another run has it.
    """

    unique: Until | None = None
    takes_key: timedelta | None = None
    mode: Mode | None = None
    rate_limits: tuple[RateLimitRule, ...] = ()
    max_queued: int | None = None
    forced: bool = False

    def of_child(self) -> Conditions | None:
        """Return what is asked of a run that another run awaits: no rate limit counts it."""
        return _some(replace(self, rate_limits=()))

    def of_replay(self) -> Conditions | None:
        """Return what is asked of a replay: the mode alone.

        The run before may have given up its unique key: then the replay has it.
        """
        lasts = self.unique if isinstance(self.unique, timedelta) else None
        return _some(Conditions(mode=self.mode, takes_key=lasts, forced=self.forced))

    def past_mode(self) -> Conditions:
        """Return what is asked of a run that an operator starts past the mode."""
        return self if self.mode is None else replace(self, mode=None, forced=True)


_NONE = Conditions()


def _some(conditions: Conditions) -> Conditions | None:
    return None if conditions == _NONE else conditions
