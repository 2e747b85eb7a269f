"""Flows and runs as the gates of flow control see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from turnout import flow
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import Keys, Start
from turnout.service.domain.waiting import Cause
from turnout.service.flowcontrol.admission import Admission, FlowGates

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(eq=False)
class Asking:
    """A run that asks to start."""

    id: str
    order_key: str | None = None
    keys: Keys | None = None
    isolated: bool = False
    resumes: bool = False
    starts: Sequence[Start] = ()
    priority: int | None = None
    flow: str = "bill"
    token: int = 0
    cause: Cause | None = None
    queued_at: datetime | None = None
    due_at: datetime | None = None


def declare(name: str = "bill", **policy: Any) -> Flow[..., Any]:
    """Return a flow with this policy."""

    async def work() -> None: ...

    declared: Flow[..., Any] = flow(name=name, **policy)(work)
    return declared


def gates(admission: Admission | None = None, **policy: Any) -> FlowGates:
    """Return the gates of a flow with this policy."""
    made = FlowGates(admission or Admission(10))
    made.declare(declare(**policy), NOW)
    return made


def refused_by(gates: FlowGates, run: Asking, now: datetime = NOW) -> str | None:
    """Ask for a run that is written; return the name of the gate that refuses it."""
    refusal = gates.ask(run, now)
    return None if refusal is None else refusal.gate.name
