"""Events as the triggers of a flow would make them, for tests: nothing listens, nothing is signed.

Each function takes the flow and finds its first trigger of that kind, or takes the trigger (one a
flow awaits, say), which makes the event itself; a webhook's signature is not asked for. Give it to
`Service.emit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import orjson

from turnout.service.domain.event import NO_BODY, Event, mint_id
from turnout.service.domain.flow import Flow
from turnout.service.domain.trigger import Inbound, Trigger
from turnout.service.project import AnyFlow
from turnout.triggers.events import EventTrigger
from turnout.triggers.files import FilesTrigger
from turnout.triggers.files.file_version import FileVersion
from turnout.triggers.files.file_version import file_event as event_of_file
from turnout.triggers.files.scan import Version
from turnout.triggers.timers import Timer
from turnout.triggers.webhook import WebhookTrigger

from .clock import START

T = TypeVar("T")
_offsets = count()


def webhook_event(
    of: AnyFlow | Trigger,
    json: Any = None,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
    query: Mapping[str, str | Sequence[str]] | None = None,
    method: str = "POST",
    at: datetime = START,
) -> Event:
    """Return the event of a verified request: with `json`, or any `body` and its headers.

    A `GET` has no body, and its `query` for data.
    """
    trigger = _trigger(of, WebhookTrigger, "webhook")
    if method == "GET" and json is None and body is None:
        body = b""
    sent = {"content-type": "application/json"} if body is None else {}
    sent |= {name.lower(): value for name, value in (headers or {}).items()}
    inbound = Inbound(
        method=method,
        path=trigger.route.format_map(params or {}),
        params=dict(params or {}),
        query=urlencode(query or {}, doseq=True).encode(),
        headers={name: (value.encode(),) for name, value in sent.items()},
        body=orjson.dumps(json) if body is None else body,
        client="127.0.0.1",
        received_at=at,
    )
    return trigger.event(inbound)


def file_event(of: AnyFlow | Trigger, path: Path, *, at: datetime = START) -> Event:
    """Return the event of a file that came to rest, in the watched folder or anywhere else.

    The file must be there. Elsewhere it is not moved or deleted once its run has ended.
    """
    trigger = _trigger(of, FilesTrigger, "files")
    version = Version.of(path.stat())
    path, root = path.absolute(), Path(trigger.pattern.root)
    root = root if path.is_relative_to(root) else path.parent
    digest = sha256(path.read_bytes()).hexdigest() if trigger.id == "content" else None
    file = FileVersion(str(path.relative_to(root)), version, content=digest)
    event = event_of_file(str(root), file, time=at)
    return trigger.identified(_of(trigger.name, event), version)


def timer_event(of: AnyFlow | Trigger, due: datetime = START) -> Event:
    """Return the tick of a `cron`, `every` or `at` that is due at `due`."""
    return _trigger(of, Timer, "timer").event(due)


def kafka_event(
    of: AnyFlow | Trigger,
    json: Any = None,
    *,
    key: str | None = None,
    value: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    at: datetime = START,
) -> Event:
    """Return the event of a record: with `json`, or any bytes as its `value`."""
    from turnout.triggers.kafka import KafkaTrigger
    from turnout.triggers.kafka.record import Record

    trigger = _trigger(of, KafkaTrigger, "kafka")
    topic = trigger.topics[0] if trigger.topics else "topic"
    record = Record(
        offset=next(_offsets),
        timestamp=int(at.timestamp() * 1000),
        key=None if key is None else key.encode(),
        value=orjson.dumps(json) if value is None else value,
        headers=[(name, text.encode()) for name, text in (headers or {}).items()],
    )
    return trigger.decoder("testing", topic, 0, 0).event(record, at)


def typed_event(of: AnyFlow | Trigger, json: Any = None, *, at: datetime = START) -> Event:
    """Return an emitted event of the type a flow starts on, or waits for (`event("…")`)."""
    trigger = _trigger(of, EventTrigger, "event")
    return _of(trigger.name, hand_event(json, at=at, type=trigger.event_type))


def hand_event(json: Any = None, *, at: datetime = START, type: str = "testing") -> Event:
    """Return an event nobody's trigger made, for `Service.run`."""
    return Event(
        id=mint_id(),
        source="/testing",
        type=type,
        time=at,
        datacontenttype="application/json",
        body=NO_BODY if json is None else orjson.dumps(json),
        minted=True,
    )


def _of(trigger: str, event: Event) -> Event:
    from dataclasses import replace

    return replace(event, trigger=trigger)


def _trigger(of: AnyFlow | Trigger, kind: type[T], word: str) -> T:
    triggers = of.triggers if isinstance(of, Flow) else (of,)
    for trigger in triggers:
        if isinstance(trigger, kind):
            return trigger
    raise ValueError(f"{of.name!r} has no {word} trigger; it has {triggers!r}")
