"""The verb on what flows keep between runs, and its documents."""

from __future__ import annotations

from typing import Any

from turnout.service.domain.errors import NotFound
from turnout.service.domain.guess import did_you_mean
from turnout.service.domain.payload import read_json
from turnout.service.journal.records import StoredState
from turnout.service.telemetry.logs import get_logger

from .documents import instant
from .parts import Parts, handles, plans
from .verbs import ClearState

log = get_logger("turnout")


@handles(ClearState)
async def clear_state(parts: Parts, verb: ClearState) -> int:
    """Clear the values; the flow's next run finds none."""
    flow = parts.current_name(verb.flow)
    cleared = await parts.journal.clear_state(flow, key=verb.key, now=parts.now())
    if not cleared:
        raise _nothing_kept(parts, verb)
    if parts.in_service:
        log.warning("state.cleared", flow=flow, key=verb.key, count=cleared, by=verb.by)
    return cleared


@plans(ClearState)
async def plan_clear_state(parts: Parts, verb: ClearState) -> list[str]:
    """Count the values."""
    count = await parts.journal.count_states(parts.current_name(verb.flow), verb.key)
    if not count:
        raise _nothing_kept(parts, verb)
    values = f"{count:,} value{'s' * (count != 1)}"
    under = f" under the key {verb.key!r}" if verb.key else ""
    return [f"clear {values} that flow {verb.flow} keeps between runs{under}"]


def _nothing_kept(parts: Parts, verb: ClearState) -> NotFound:
    under = "" if verb.key is None else f" under the key {verb.key!r}"
    flows = parts.project().flows
    hint = "" if verb.flow in flows else did_you_mean(verb.flow, flows)
    return NotFound(
        f"flow {verb.flow!r} keeps nothing between runs{under}{hint}; `turnout state` lists what "
        "is kept"
    )


def state_of(stored: StoredState) -> dict[str, Any]:
    """Return what a flow keeps under a key, and who wrote it."""
    return {
        "flow": stored.flow,
        "key": stored.key,
        "version": stored.version,
        "value": read_json(stored.value),
        "run": stored.run_id,
        "changed_at": instant(stored.changed_at),
    }
