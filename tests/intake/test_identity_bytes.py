"""What identifies a delivery is stored: the bytes never change, or old journals would forget it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from turnout.service.domain import cloudevents
from turnout.service.domain.event import Event
from turnout.service.journal.sqlite.dedupe import identity
from turnout.triggers.files.file_version import FileVersion, file_event
from turnout.triggers.files.scan import Version

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)

DELIVERY = Event(
    id="d-1", source="/hooks/orders", type="turnout.webhook", time=NOW, body=b'{"id": 1}',
    trigger="webhook:/orders", extensions={"traceparent": "00-1-2-03"},
)  # fmt: skip
CLOUDEVENT = replace(
    cloudevents.parse(
        {
            "content-type": [b"application/json"],
            **{
                f"ce-{name}": [text.encode()]
                for name, text in {
                    "specversion": "1.0", "id": "e-1", "source": "/shop", "type": "order.placed",
                    "subject": "7", "partition": "a", "partitionkey": "b",
                }.items()
            },
        },
        b'{"b": 1, "a": [2.5, "\xc3\xbc"]}',
        now=NOW,
    ),
    trigger="webhook:/orders",
)  # fmt: skip
FILE = replace(
    file_event("/in", FileVersion("a/b.csv", Version(7, 12, 1_700_000_000, 3)), time=NOW),
    trigger="files:/in/**",
)


@pytest.mark.parametrize(
    ("event", "key", "content"),
    [
        (
            DELIVERY,
            "6c07bcd21f64052c4f425c13c9508028ee93296d",
            "ec80013884832f8863909d0b56c2b46734",
        ),
        (
            CLOUDEVENT,
            "62989abc63f124a8d44735deae64cf0633334df4",
            "0793356e873137006d8c57096109d279bd",
        ),
        (FILE, "f49921572a5301d12b21f1ad255e1862bf23e069", "5fdf71ba26e97166b00ed04d2e61a79c72"),
    ],
    ids=["webhook", "cloudevent", "file"],
)
def test_events_without_id_have_the_identity_they_always_had(
    event: Event, key: str, content: str
) -> None:
    found = identity(event)
    assert (found[0].hex(), found[1].hex()) == (key, content)
