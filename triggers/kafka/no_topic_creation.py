"""Keeps a client from creating topics, even where brokers create each topic that one asks for.

A consumer of a deleted topic would recreate it within a second, with the broker's defaults. The
request has an option for that, and the client has no setting for it.
"""

from __future__ import annotations

from functools import partial
from types import FunctionType
from typing import Any

from aiokafka.client import AIOKafkaClient  # type: ignore[import-untyped]  # it carries no types
from aiokafka.protocol.metadata import MetadataRequest  # type: ignore[import-untyped]  # as above

# The client's own method, with one option of its request changed.
_metadata_update = FunctionType(
    AIOKafkaClient._metadata_update.__code__,
    {
        **AIOKafkaClient._metadata_update.__globals__,
        "MetadataRequest": partial(MetadataRequest, allow_auto_topic_creation=False),
    },
)


def make_no_topics(client: Any) -> None:
    """Let this client ask for topics without creating them."""
    client._metadata_update = partial(_metadata_update, client)
