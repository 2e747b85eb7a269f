"""What a message says: made as a document once, and written out the same way each time.

Revealed secrets are masked in it, as in every error that is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from turnout.service.domain.alerts import AlertRule, Message, News
from turnout.service.domain.units import format_duration, to_the_second
from turnout.service.governance import secrets
from turnout.service.journal.records import StoredAlert
from turnout.service.project import AnyFlow

_MOST_CHARACTERS = 1000
_MOST_PARTS = 20
_MOST_NAMES = 5


def document_of(
    alert: StoredAlert, news: News, flow: AnyFlow, *, now: datetime, service: str, paused: bool
) -> dict[str, Any]:
    """Return what is to be told of an alert now, as JSON."""
    error = alert.error
    return {
        "news": news.value,
        "alert": alert.id,
        "flow": alert.flow,
        "rule": alert.rule.value,
        "cause": secrets.mask(alert.cause),
        "expected": expected_of(flow, alert.rule),
        "detail": "" if error is None else secrets.mask(error.message)[:_MOST_CHARACTERS],
        "step": None if error is None else error.step,
        "run": alert.run_id,
        "count": alert.count,
        "since": to_the_second(alert.opened_at),
        "last": to_the_second(alert.last_at),
        "at": to_the_second(now),
        "owner": flow.owner,
        "tags": list(flow.tags),
        "description": flow.description,
        "paused": paused,
        "service": service,
    }


def expected_of(flow: AnyFlow, rule: AlertRule) -> str | None:
    """Return what a rule expects of a flow, in words; None for failures."""
    if rule is AlertRule.EXPECT_EVERY and flow.expect_every is not None:
        return f"a success every {format_duration(flow.expect_every)}"
    if rule is AlertRule.DEADLINE and flow.deadline is not None:
        return f"a success by {flow.deadline.words}"
    if rule is AlertRule.FINISH_WITHIN and flow.finish_within is not None:
        return f"every run ends within {format_duration(flow.finish_within)}"
    return None


def message_of(key: str, document: Mapping[str, Any], *, held_after: str | None) -> Message:
    """Write a document out; `held_after` says until when what follows is held, if it is."""
    title, lines = _summary(document) if document["news"] == "summary" else _alert(document)
    if held_after is not None:
        lines.append(
            f"This channel has had its messages of an hour: what follows comes as one, {held_after}"
        )
    text = secrets.mask("\n".join([title, *lines]))
    return Message(key, secrets.mask(title), text, {**document, "key": key, "text": text})


def _alert(document: Mapping[str, Any]) -> tuple[str, list[str]]:
    about = [document["detail"]] if document["news"] != News.RECOVERED else []
    if document["expected"]:
        about.append(f"expected: {document['expected']}")
    if document["paused"]:
        about.append("the flow is paused")
    times = "once" if document["count"] == 1 else f"{document['count']} times"
    about.append(f"{times} since {document['since']}, last {document['last']}")
    if document["run"]:
        about.append(f"run {document['run']}: turnout show {document['run']}")
    about.append(_belongs(document))
    return _title(document), [line for line in about if line]


def _title(document: Mapping[str, Any]) -> str:
    flow, cause, count = document["flow"], document["cause"], document["count"]
    words = {
        AlertRule.FAILURE: f"failed: {cause}",
        AlertRule.EXPECT_EVERY: "is overdue",
        AlertRule.DEADLINE: "has missed its deadline",
        AlertRule.FINISH_WITHIN: "is late",
    }[AlertRule(document["rule"])]
    match document["news"]:
        case News.RECOVERED:
            return f"{flow} has recovered: it {words}"
        case News.REPEATED:
            return f"{flow} still {words}" + (f" ({count} times)" if count > 1 else "")
        case News.GROWN:
            return f"{flow} {words} ({count} times)"
    return f"{flow} {words}"


def _belongs(document: Mapping[str, Any]) -> str:
    parts = [
        f"owner {document['owner']}" if document["owner"] else "",
        f"tags {', '.join(document['tags'])}" if document["tags"] else "",
        document["description"] or "",
        document["service"],
    ]
    return " · ".join(part for part in parts if part)


def _summary(document: Mapping[str, Any]) -> tuple[str, list[str]]:
    parts: Sequence[Mapping[str, Any]] = document["parts"]
    lines = [f"{part['at']} {_title(part)}" for part in parts[:_MOST_PARTS]]
    if len(parts) > _MOST_PARTS:
        lines.append(f"and {len(parts) - _MOST_PARTS} more: turnout alerts --all")
    if any(part["news"] != News.RECOVERED for part in parts):
        return f"{len(parts)} alerts that were held back", lines
    flows = sorted({part["flow"] for part in parts})
    names = ", ".join(flows[:_MOST_NAMES])
    if len(flows) > _MOST_NAMES:
        names += f" and {len(flows) - _MOST_NAMES} more"
    have = "has" if len(flows) == 1 else "have"
    return f"{names} {have} recovered: {len(parts)} alerts are over", lines
