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

_MAKERS = {
    "webhook": "webhook_event(…)", "files": "file_event(…)", "cron": "timer_event(…)",
    "every": "timer_event(…)", "at": "timer_event(…)", "kafka": "kafka_event(…)",
    "event": "typed_event(…)",
}  # fmt: skip
"""What makes the events of a trigger, by its kind."""

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
    """Return the event of a verified request to a flow's webhook; give it to `service.emit`.

    The trigger makes it, so `data`, `id=` and headers are as in a real one; only the signature is
    not asked for.

    * `of`: the flow, whose first webhook is taken, or the trigger (one that a flow awaits, say)
    * `json`: the body, as JSON
    * `body`: any other body, with its `headers`
    * `headers`: the request's headers
    * `params`: the values of the path's parameters
    * `query`: the fields behind the `?`
    * `method`: a `GET` has no body, and its `query` for data
    * `at`: when it came

    Raises `ValueError` for a flow without a webhook.

    ```python
    from turnout import Event, flow, webhook
    from turnout.testing import serve, webhook_event


    @flow(on=webhook("/t/{tenant}", verify="none"))
    async def received(event: Event) -> str:
        return f"{event.params['tenant']}: {event.data['id']}"


    async def test_the_path_says_who() -> None:
        async with serve(received) as service:
            sent = webhook_event(received, {"id": "7"}, params={"tenant": "acme"})
            (result,) = await service.emit(sent)
            assert result.result == "acme: 7"
    ```
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
        body=_json(json) if body is None else body,
        client="127.0.0.1",
        received_at=at,
    )
    return trigger.event(inbound)


def file_event(of: AnyFlow | Trigger, path: Path, *, at: datetime = START) -> Event:
    r"""Return the event of a file that came to rest; give it to `service.emit`.

    The file must be there, in the watched folder or anywhere else. Elsewhere it is not moved or
    deleted once its run has ended.

    * `of`: the flow, whose first `files` trigger is taken, or the trigger
    * `path`: the file
    * `at`: when it was seen

    Raises `ValueError` for a flow that watches no files, `FileNotFoundError` for a file that is not
    there.

    ```python
    from pathlib import Path

    from turnout import files, flow
    from turnout.testing import file_event, serve


    @flow(on=files("inbox/*.csv"))
    def load(path: Path) -> int:
        return len(path.read_text().splitlines())


    async def test_lines_are_counted(tmp_path: Path) -> None:
        dropped = tmp_path / "sales.csv"
        dropped.write_text("a\nb\n")
        async with serve(load) as service:
            (result,) = await service.emit(file_event(load, dropped))
            assert result.result == 2
    ```
    """
    trigger = _trigger(of, FilesTrigger, "files")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: write it before file_event(…)")
    version = Version.of(path.stat())
    path, root = path.absolute(), Path(trigger.pattern.root)
    root = root if path.is_relative_to(root) else path.parent
    digest = sha256(path.read_bytes()).hexdigest() if trigger.id == "content" else None
    file = FileVersion(str(path.relative_to(root)), version, content=digest)
    event = event_of_file(str(root), file, time=at)
    return trigger.identified(_of(trigger.name, event), version)


def timer_event(of: AnyFlow | Trigger, due: datetime = START) -> Event:
    """Return one tick of a `cron`, `every` or `at`; `service.advance` makes them by itself.

    * `of`: the flow, whose first timer is taken, or the trigger
    * `due`: the instant it is due at

    Raises `ValueError` for a flow without a timer.

    ```python
    from turnout import Event, cron, flow
    from turnout.testing import START, serve, timer_event


    @flow(on=cron("0 9 * * *"))
    async def report(event: Event) -> str:
        return str(event.data["due"])[:10]


    async def test_the_report_is_of_its_day() -> None:
        async with serve(report) as service:
            (result,) = await service.emit(timer_event(report, START))
            assert result.result == "2026-01-01"
    ```
    """
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
    """Return the event of a record, decoded as the trigger would; give it to `service.emit`.

    * `of`: the flow, whose first `kafka` trigger is taken, or the trigger
    * `json`: the value, as JSON
    * `key`: the record's key
    * `value`: any bytes as the value
    * `headers`: the record's headers
    * `at`: the record's time

    Raises `ValueError` for a flow that reads no topic.

    ```python
    from turnout import flow, kafka
    from turnout.testing import kafka_event, serve


    @flow(on=kafka("orders", group="billing"), ordered_by="key")
    async def bill(order: dict[str, str]) -> str:
        return order["id"]


    async def test_a_record_is_billed() -> None:
        async with serve(bill) as service:
            (result,) = await service.emit(kafka_event(bill, {"id": "7"}, key="acme"))
            assert result.result == "7"
    ```
    """
    from turnout.triggers.kafka import KafkaTrigger
    from turnout.triggers.kafka.record import Record

    trigger = _trigger(of, KafkaTrigger, "kafka")
    topic = trigger.topics[0] if trigger.topics else "topic"
    record = Record(
        offset=next(_offsets),
        timestamp=int(at.timestamp() * 1000),
        key=None if key is None else key.encode(),
        value=_json(json) if value is None else value,
        headers=[(name, text.encode()) for name, text in (headers or {}).items()],
    )
    return trigger.decoder("testing", topic, 0, 0).event(record, at)


def typed_event(of: AnyFlow | Trigger, json: Any = None, *, at: datetime = START) -> Event:
    """Return an event of the type a flow starts on, or waits for; give it to `service.emit`.

    * `of`: the flow, whose first `event("…")` is taken, or the trigger
    * `json`: the event's data
    * `at`: when it was emitted

    Raises `ValueError` for a flow without such a trigger.

    ```python
    from turnout import event, flow, wait_for
    from turnout.testing import serve, typed_event

    paid = event("order.paid")


    @flow(on=event("order.placed"), awaits=paid)
    async def place(order: dict[str, str]) -> str:
        payment = await wait_for(paid, match={"order": order["id"]}, timeout="2d")
        return f"paid by {payment.data['by']}"


    async def test_an_order_waits_for_its_payment() -> None:
        async with serve(place) as service:
            (waiting,) = await service.emit(typed_event(place, {"id": "7"}))
            assert waiting.state == "waiting"
            await service.emit(typed_event(paid, {"order": "7", "by": "ada"}))
            assert (await service.ended(waiting.id)).result == "paid by ada"
    ```
    """
    trigger = _trigger(of, EventTrigger, "event")
    return _of(trigger.name, hand_event(json, at=at, type=trigger.event_type))


def hand_event(json: Any = None, *, at: datetime = START, type: str = "testing") -> Event:
    """Return an event that no trigger made, for `service.emit(event, flow)`.

    * `json`: the event's data; without it the event has no body
    * `at`: when it happened
    * `type`: its type

    Raises `TypeError` for what is no JSON.

    ```python
    from turnout import Event, flow
    from turnout.testing import hand_event, serve


    @flow
    async def log(event: Event) -> str:
        return event.type


    async def test_by_hand() -> None:
        async with serve(log) as service:
            (result,) = await service.emit(hand_event({"id": 7}, type="order.placed"), log)
            assert result.result == "order.placed"
    ```
    """
    return Event(
        id=mint_id(),
        source="/testing",
        type=type,
        time=at,
        datacontenttype="application/json",
        body=NO_BODY if json is None else _json(json),
        minted=True,
    )


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise TypeError(
            f"json={value!r} is no JSON ({error}); give what a sender would send: text, numbers, "
            'lists, dicts; of a model, model.model_dump(mode="json")'
        ) from None


def _of(trigger: str, event: Event) -> Event:
    from dataclasses import replace

    return replace(event, trigger=trigger)


def _trigger(of: AnyFlow | Trigger, kind: type[T], word: str) -> T:
    triggers = of.triggers if isinstance(of, Flow) else (of,)
    for trigger in triggers:
        if isinstance(trigger, kind):
            return trigger
    names = ", ".join(each.name for each in triggers) or "none"
    fitting = sorted({_MAKERS[each.kind] for each in triggers if each.kind in _MAKERS})
    fitting = fitting or ["hand_event(…), and service.emit(event, flow)"]
    raise ValueError(
        f"{of.name!r} has no {word} trigger; its triggers: {names}; use {' or '.join(fitting)}"
    )
