"""Whether a service is well: ok, degraded or down, and why.

Down is a service that accepts no events. Not here: whether the journal is whole, which takes time
to examine (`turnout doctor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Health(StrEnum):
    """How a service is."""

    OK = "ok"
    DEGRADED = "degraded"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a service is, and what makes it so: nothing if it is well."""

    health: Health
    reasons: Sequence[str] = ()


_OF_ONE_TRIGGER = "trigger "
"""How the reasons of `/readyz` begin that one trigger has; all others stop intake."""


def judge(not_ready: Sequence[str], troubles: Sequence[str]) -> Verdict:
    """Judge a service that answers, by why it is not ready, and by what else is not as it should.

    A trigger that is down degrades a service: the others bring events.
    """
    stopped = [reason for reason in not_ready if not reason.startswith(_OF_ONE_TRIGGER)]
    reasons = [*stopped, *(each for each in not_ready if each not in stopped), *troubles]
    if stopped:
        return Verdict(health=Health.DOWN, reasons=reasons)
    return Verdict(health=Health.DEGRADED if reasons else Health.OK, reasons=reasons)
