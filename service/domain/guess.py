"""What was probably meant by a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

OF_CURRENT: Mapping[str, str] = {
    "run_id": "run.id", "id": "run.id", "flow_name": "run.flow", "logger": "log",
    "event_id": "event.id", "data": "event.data", "payload": "event.data", "input": "event.data",
    "trigger": "event.trigger", "idempotency_key": 'key("name")', "retry": "attempt",
    "retries": "attempt", "info": "log.info", "warning": "log.warning",
}  # fmt: skip
"""What a run might be asked for, and how `current()` answers it."""

OF_EVENT: Mapping[str, str] = {
    "payload": "data", "json": "data", "value": "data", "content": "data", "message": "data",
    "key": 'extensions["partitionkey"]', "topic": "source", "timestamp": "time", "name": "type",
    "kind": "type", "filename": "path", "file": "path", "args": "query", "raw": "body",
    "attributes": "extensions",
}  # fmt: skip
"""What an event might be asked for, and what it is called here."""


OF_APPROVAL: Mapping[str, str] = {
    "answer": "fields", "data": "fields", "value": "fields", "result": "fields", "form": "fields",
    "user": "by", "who": "by", "person": "by",
}  # fmt: skip
"""What an answer might be asked for, and what it is called here."""

OF_RESPONSE: Mapping[str, str] = {
    "status": "status_code", "code": "status_code", "body": "content", "data": "json()",
    "ok": "status_code", "reason": "status_code", "raw": "content",
}  # fmt: skip
"""What an answer to `http` might be asked for, and what it is called here."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is closest to `name`, None if none is close."""
    from difflib import get_close_matches  # needed after a mistake only

    return next(iter(get_close_matches(name, list(known), 1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'bill'?` if a known name is close, else nothing."""
    close = closest(name, known)
    return "" if close is None else f"; did you mean {close!r}?"


def no_attribute(
    owner: str, kind: str, name: str, meant: Mapping[str, str], known: Iterable[str]
) -> str:
    """Return what to say of an attribute that an object of turnout's does not have.

    `owner` is how an author writes the object, `kind` its class; `meant` goes before the closest
    of the `known` names.
    """
    public = [each for each in known if not each.startswith("_")]
    guess = meant.get(name) or closest(name, public)
    hint = f"; did you mean {owner}.{guess}?" if guess else f"; see `turnout help {kind}`"
    return f"{owner} has no {name!r}{hint}"
