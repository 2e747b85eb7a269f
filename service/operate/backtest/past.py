"""What events, runs and windows of a flow really came to, in the words of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from turnout.service.domain.decisions import Reason
from turnout.service.domain.run import RunState
from turnout.service.journal.records import PastRun, PastWindow

from .report import FAILED, NOT_ASKED, OPEN, STARTED

_NOT_JUDGED = frozenset({Reason.START_TIMEOUT, Reason.DROPPED})
"""Reasons for which a run that was accepted never began; they depend on delays and operators."""

_CLOSED: Mapping[str, str] = {
    "expired": Reason.EXPIRED,
    "dropped": Reason.DROPPED,
    "closed": Reason.WINDOWED,
    "open": OPEN,
}


def of_event(flow: str, past: PastRun | None, decisions: Sequence[Mapping[str, Any]]) -> str:
    """Return what an event came to at a flow by itself, without a window."""
    if past is not None:
        return _of_run(flow, past, decisions)
    of_flow = [made for made in decisions if made["flow"] == flow]
    return str(of_flow[0]["reason"]) if of_flow else NOT_ASKED


def of_window(flow: str, past: PastWindow) -> str:
    """Return what a window of a flow came to."""
    if past.state != "fired":
        return str(_CLOSED[past.state])
    return STARTED if past.run is None else _of_run(flow, past.run, past.decisions)


def known_run(past: PastRun | None, did: str) -> PastRun | None:
    """Return a real run for the virtual one that stands for it; None if it tells nothing.

    One that was refused says nothing of how it would have gone.
    """
    if past is not None and did in (Reason.REPLACED, Reason.LATEST):
        return past._replace(refused=did)
    if past is not None and past.refused is not None and did != STARTED:
        return None
    return past


def _of_run(flow: str, past: PastRun, decisions: Sequence[Mapping[str, Any]]) -> str:
    if past.refused is not None and past.refused not in _NOT_JUDGED:
        return past.refused
    if past.state is RunState.FAILED and past.started_at is None:
        return FAILED
    replaced = (
        made for made in decisions if made["flow"] == flow and made["reason"] == Reason.REPLACED
    )
    is_replaced = any(made["facts"].get("run") == past.id for made in replaced)
    return str(Reason.REPLACED) if is_replaced else STARTED
