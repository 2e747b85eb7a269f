"""The bodies of verbs: how fields of a verb are read from a body, and written into one.

Without FastAPI, because commands write bodies too. A body that cannot be read raises `InvalidData`
with the field. What `write` makes of a verb, `read` reads as the same fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from turnout.service.domain import cloudevents
from turnout.service.domain.errors import InvalidData, SetupError
from turnout.service.domain.payload import decode_json
from turnout.service.domain.trigger import Seek
from turnout.service.domain.units import format_duration, parse_duration
from turnout.service.operate import documents
from turnout.service.operate.verbs import (
    Answer,
    Emit,
    Fire,
    MuteAlert,
    Pause,
    SeekTrigger,
    SetLimit,
)

MAX_REASON_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Received:
    """A body as it came, its headers by lower-case name, and when it was read."""

    content: bytes
    headers: Mapping[str, Sequence[bytes]]
    at: datetime


@dataclass(frozen=True, slots=True)
class Body:
    """A body: `read` returns fields of the verb by name, `write` makes the body of a verb."""

    read: Callable[[Received], Mapping[str, Any]]
    write: Callable[[Any], bytes]
    content_type: str = "application/json"


def _members(*names: str) -> Callable[[Any], bytes]:
    """Write these fields of a verb as the members of an object."""
    return lambda verb: documents.encode({name: getattr(verb, name) for name in names})


def _known(received: Received, *known: str) -> dict[str, Any]:
    """Return the members of an optional body; refuses unknown ones."""
    members = decode_json(received.content) if received.content else {}
    if not isinstance(members, dict):
        raise InvalidData(f"the body is an object with the fields {', '.join(known)}")
    for name in members:
        if name not in known:
            raise InvalidData(f"no field {name!r}; there are {', '.join(known)}", field=name)
    return members


# ---------------------------------------------------------------- why, and who


def _read_reason(received: Received) -> Mapping[str, Any]:
    texts = {"by": "api"} | _known(received, "reason", "by")
    _check_texts(texts)
    return texts


def _check_texts(texts: Mapping[str, Any]) -> None:
    """Refuse what is no text, or a very long one."""
    for name, text in texts.items():
        if not isinstance(text, str) or len(text) > MAX_REASON_CHARACTERS:
            raise InvalidData(
                f"{name} is text of at most {MAX_REASON_CHARACTERS} characters", field=name
            )


REASON = Body(_read_reason, _members("reason", "by"))
"""Why an operator does it, and who: both may be left out."""


# ---------------------------------------------------------------- replays


def _read_not_undone(received: Received) -> Mapping[str, Any]:
    accepts = _known(received, "not_undone").get("not_undone", False)
    if not isinstance(accepts, bool):
        raise InvalidData("not_undone is true or false", field="not_undone")
    return {"not_undone": accepts}


NOT_UNDONE = Body(_read_not_undone, _members("not_undone"))
"""Whether the caller accepts a replay of runs that are not undone."""


# ---------------------------------------------------------------- approvals


def read_answer(answered: Any, *, by: str, step: str | None = None) -> dict[str, Any]:
    """Return the fields of `Answer` from a decoded body, or from the form behind a link.

    `by` is who answers if it does not say, `step` the approval that the link is for.
    """
    if not isinstance(answered, dict) or not isinstance(answered.get("approve"), bool):
        raise InvalidData('send {"approve": true} or {"approve": false}', field="approve")
    step = step or answered.get("step")
    if not isinstance(step, str | None):
        raise InvalidData("step is the key of a step", field="step")
    return {
        "approved": answered["approve"],
        "fields": answered.get("fields"),
        "reason": str(answered.get("reason") or ""),
        "by": str(answered.get("by") or by),
        "step": step,
    }


def _write_answer(verb: Answer) -> bytes:
    return documents.encode(
        {
            "approve": verb.approved,
            "fields": verb.fields,
            "reason": verb.reason,
            "by": verb.by,
            "step": verb.step,
        }
    )


ANSWER = Body(lambda received: read_answer(decode_json(received.content), by="api"), _write_answer)


# ---------------------------------------------------------------- pauses


def _read_pause(received: Received) -> Mapping[str, Any]:
    asked = _known(received, "name", "for", "note", "by")
    name = asked.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidData('the body is {"name": FLOW, TRIGGER or "*"}', field="name")
    return {"name": name, "lasts": _read_lasts(asked.get("for")), **_read_note(asked)}


def _read_note(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return why an operator does it, and who."""
    texts = {"note": "", "by": "api"} | {key: asked[key] for key in ("note", "by") if key in asked}
    _check_texts(texts)
    return texts


def _read_lasts(asked: Any) -> timedelta | None:
    """Return how long something lasts, None for no end; refuses what is no duration."""
    if asked is None:
        return None
    if not isinstance(asked, str):
        raise InvalidData('for is a duration such as "1h"', field="for")
    try:
        return parse_duration(asked)
    except SetupError as error:
        raise InvalidData(str(error), field="for") from None


def _write_pause(verb: Pause) -> bytes:
    lasts = None if verb.lasts is None else format_duration(verb.lasts)
    return documents.encode({"name": verb.name, "for": lasts, "note": verb.note, "by": verb.by})


PAUSE = Body(_read_pause, _write_pause)


# ---------------------------------------------------------------- limits


def _read_limit(received: Received) -> Mapping[str, Any]:
    asked = _known(received, "count", "for", "note", "by")
    count, lasts = asked.get("count"), _read_lasts(asked.get("for"))
    if not isinstance(count, int) or isinstance(count, bool):
        raise InvalidData("count is a whole number", field="count")
    if lasts is None:
        raise InvalidData('say for how long: {"count": 10, "for": "2h"}', field="for")
    return {"count": count, "lasts": lasts, **_read_note(asked)}


def _write_limit(verb: SetLimit) -> bytes:
    lasts = format_duration(verb.lasts)
    return documents.encode({"count": verb.count, "for": lasts, "note": verb.note, "by": verb.by})


LIMIT = Body(_read_limit, _write_limit)


# ---------------------------------------------------------------- alerts


def _read_mute(received: Received) -> Mapping[str, Any]:
    asked = _known(received, "for", "note", "by") if received.content else {}
    return {"lasts": _read_lasts(asked.get("for")), **_read_note(asked)}


def _write_mute(verb: MuteAlert) -> bytes:
    lasts = None if verb.lasts is None else format_duration(verb.lasts)
    return documents.encode({"for": lasts, "note": verb.note, "by": verb.by})


MUTE = Body(_read_mute, _write_mute)


# ---------------------------------------------------------------- triggers


def _read_data(received: Received) -> Mapping[str, Any]:
    if not received.content:
        return {}
    decode_json(received.content)
    return {"data": received.content}


def _write_data(verb: Fire) -> bytes:
    return verb.data


DATA = Body(_read_data, _write_data)
"""The data of an event as it is, in JSON, or none."""


def _read_seek(received: Received) -> Mapping[str, Any]:
    asked = decode_json(received.content)
    if not isinstance(asked, dict) or not isinstance(asked.get("to"), str):
        raise InvalidData(
            'the body is {"to": "now", "start", "end", OFFSET or INSTANT}', field="to"
        )
    partition = asked.get("partition")
    seek = Seek(
        to=asked["to"],
        partition=None if partition is None else str(partition),
        rerun=asked.get("rerun") is True,
        asked_at=received.at,
    )
    return {"seek": seek, "dry_run": asked.get("dry_run") is True}


def _write_seek(verb: SeekTrigger) -> bytes:
    seek = verb.seek
    return documents.encode(
        {"to": seek.to, "partition": seek.partition, "rerun": seek.rerun, "dry_run": verb.dry_run}
    )


SEEK = Body(_read_seek, _write_seek)


# ---------------------------------------------------------------- events


def _read_event(received: Received) -> Mapping[str, Any]:
    return {"event": cloudevents.parse(received.headers, received.content, now=received.at)}


def _write_event(verb: Emit) -> bytes:
    return cloudevents.as_document(verb.event)


EVENT = Body(_read_event, _write_event, cloudevents.STRUCTURED)
"""A CloudEvent: structured or binary when it is read, structured when it is written."""
