"""What the run of a window is made of besides its members: what its flow says today."""

from __future__ import annotations

from dataclasses import dataclass, replace

from turnout.service.domain.conditions import Conditions

FIRED_BY = "fired by "
"""How the words of a decision begin about a window that somebody has fired by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """The version of a flow's code, and the conditions that are decided when a window fires.

    A firing is never refused at a bound: what would be lost is more than one event.
    """

    code_version: str = ""
    conditions: Conditions | None = None


def firing_of(code_version: str, conditions: Conditions | None) -> Firing:
    """Return the firing of a flow with these conditions."""
    if conditions is not None:
        conditions = replace(conditions, max_queued=None)
        conditions = None if conditions == Conditions() else conditions
    return Firing(code_version=code_version, conditions=conditions)
