"""Alerts as operators see them, and the verb that mutes one."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from turnout.service.domain.errors import InvalidData, NotFound
from turnout.service.domain.units import LONGEST, format_duration
from turnout.service.journal.contract import Reads
from turnout.service.journal.records import FlowAbout, StoredAlert
from turnout.service.telemetry.logs import get_logger

from . import documents
from .parts import Parts, handles, plans
from .verbs import MuteAlert

log = get_logger("turnout")

MOST_LISTED = 1000


@handles(MuteAlert)
async def mute_alert(parts: Parts, verb: MuteAlert) -> StoredAlert:
    """Tell no more of an alert for a while."""
    until = _until(parts, verb)
    muted = await parts.journal.mute_alert(_id_of(verb), until=until, by=verb.by, note=verb.note)
    if parts.in_service:
        log.info(
            "alert.muted", alert=muted.id, flow=muted.flow, cause=muted.cause, by=verb.by,
            note=verb.note, until=until.isoformat(),
        )  # fmt: skip
    return muted


@plans(MuteAlert)
async def plan_mute_alert(parts: Parts, verb: MuteAlert) -> list[str]:
    """Say which alert it is."""
    _until(parts, verb)
    alert = await parts.journal.open_alert(_id_of(verb))
    lasts = "until it is over" if verb.lasts is None else f"for {format_duration(verb.lasts)}"
    return [f"mute alert {alert.id}, {alert.flow}: {alert.cause}, {lasts}"]


def _id_of(verb: MuteAlert) -> int:
    if verb.alert.isascii() and verb.alert.isdigit() and len(verb.alert) < 19:
        return int(verb.alert)
    raise NotFound(f"there is no alert {verb.alert!r}; list them with: turnout alerts")


def _until(parts: Parts, verb: MuteAlert) -> datetime:
    if verb.lasts is not None and verb.lasts <= timedelta(0):
        raise InvalidData("an alert is muted longer than 0s", field="for")
    return parts.now() + (LONGEST if verb.lasts is None else verb.lasts)


# ---------------------------------------------------------------- the list


async def alert_documents(
    reader: Reads,
    *,
    flow: str | None = None,
    owner: str | None = None,
    tag: str | None = None,
    ended: bool = False,
    now: datetime,
) -> list[dict[str, Any]]:
    """Return the open alerts, or with `ended` all that are kept; the newest first."""
    about = await reader.flows_about()
    return [
        alert_of(alert, is_muted=alert.is_muted(now)) | documents.about_of(about.get(alert.flow))
        for alert in await reader.alerts(ended=ended, limit=MOST_LISTED)
        if flow in (None, alert.flow) and is_asked_for(about.get(alert.flow), owner, tag)
    ]


def is_asked_for(about: FlowAbout | None, owner: str | None, tag: str | None) -> bool:
    """Whether a flow has this owner and this tag, where they are asked for."""
    known = about or FlowAbout()
    return owner in (None, known.owner) and (tag is None or tag in known.tags)


def alert_of(alert: StoredAlert, *, is_muted: bool) -> dict[str, Any]:
    """Return an alert; `state` is open, muted, recovered or withdrawn."""
    return {
        "id": alert.id,
        "flow": alert.flow,
        "rule": alert.rule.value,
        "cause": alert.cause,
        "state": alert.ended or ("muted" if is_muted else "open"),
        "count": alert.count,
        "opened_at": documents.instant(alert.opened_at),
        "last_at": documents.instant(alert.last_at),
        "told_at": documents.instant(alert.told_at),
        "messages": alert.messages,
        "ended_at": documents.instant(alert.ended_at),
        "muted_until": documents.instant(alert.muted_until),
        "muted_by": alert.muted_by,
        "note": alert.note,
        "run": alert.run_id,
        "error": None if alert.error is None else alert.error.as_dict(),
    }
