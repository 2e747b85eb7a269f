"""What a run that has not ended waits for, in words and as facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from .decisions import Fact


class Cause(StrEnum):
    """What keeps a run from going on: a closed list, also a label of metrics."""

    NONE = "none"
    """Nothing: it started at once."""
    PAUSE = "pause"
    LIMIT = "limit"
    RATE = "rate"
    ORDER = "order"
    MODE = "mode"
    BREAKER = "breaker"
    SLOT = "slot"
    ISOLATION = "isolation"
    TURN = "turn"
    """Older runs, or those of other flows."""
    INSTANT = "instant"
    EVENT = "event"
    APPROVAL = "approval"
    CHILD = "child"
    POOL = "pool"
    """A thread or a worker process, for the function of a running run."""
    SERVICE = "service"
    """No service is running, or it does not serve the flow."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a run waits for; `detail` is for people.

    Facts besides those of decisions (`domain.decisions`): `place`, the run's place in line, from 1;
    `until`, an instant; `window`, an open one, which has `count` events; `step`, where it waits;
    `event`, the trigger whose event it waits for; `poll`, the task it polls with, after so many
    `looks`.
    """

    cause: Cause
    detail: str
    facts: Mapping[str, Fact] = field(default_factory=dict)
