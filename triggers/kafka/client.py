"""Opens and closes the client, with a timeout on each step, and names its errors.

The client's calls can wait forever when brokers are away, and end in a dozen kinds of errors; its
stop can raise or never end. Not here: what brokers are asked (`broker`, `cluster`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

from aiokafka import AIOKafkaConsumer  # type: ignore[import-untyped]  # it carries no types
from aiokafka.errors import (  # type: ignore[import-untyped]  # as above
    CommitFailedError,
    IllegalStateError,
    KafkaError,
)
from aiokafka.protocol.group import LeaveGroupRequest  # type: ignore[import-untyped]  # as above

from turnout.service.domain.errors import TriggerError

from .no_topic_creation import make_no_topics

# The client logs each attempt of each retry as an error; the trigger reports the state instead.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

ANSWER_SECONDS = 15.0
"""How long the cluster may take to answer before the trigger reports itself down and retries."""

CLIENT_ERRORS = (KafkaError, OSError, TimeoutError, AssertionError, RuntimeError)
"""What the client raises when brokers go away (RuntimeError: its transport is closed)."""

_STOP_SECONDS = 0.6
_START_SECONDS = 0.2


@contextmanager
def as_trigger_error(doing: str) -> Iterator[None]:
    """Turn the client's errors into a `TriggerError` that begins with what was being done.

    `IllegalStateError` and `CommitFailedError` pass: they only say that the assignment changed.
    """
    try:
        yield
    except (CommitFailedError, IllegalStateError):
        raise
    except CLIENT_ERRORS as error:
        raise TriggerError(f"{doing}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return Kafka's own message for an error, on one line."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    if not text:
        return "no answer in time" if isinstance(error, TimeoutError) else name
    return text if text.startswith(name) else f"{name}: {text}"


async def started(client: Any) -> None:
    """Start a consumer or admin client.

    A cancel waits a moment: the client would leak the connection that it is opening.
    """
    starting = asyncio.get_running_loop().create_task(client.start())
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        try:
            await asyncio.wait([starting], timeout=_START_SECONDS)
        finally:
            starting.cancel()
        starting.add_done_callback(_retrieved)
        await asyncio.wait([starting], timeout=_START_SECONDS)  # the client may swallow a cancel
        raise


def _retrieved(task: asyncio.Task[None]) -> None:
    """Mark the error of an abandoned task as retrieved."""
    if not task.cancelled():
        task.exception()


@asynccontextmanager
async def open_consumer(
    connection: Mapping[str, Any], **options: Any
) -> AsyncIterator[AIOKafkaConsumer]:
    """Open a consumer without starting it; it is stopped within a second at exit.

    It creates no topics, even where brokers create each topic that a client asks for.
    """
    made = AIOKafkaConsumer(**connection, **options)
    make_no_topics(made._client)
    try:
        yield made
    finally:
        await _stop(made)


async def _stop(made: AIOKafkaConsumer) -> None:
    coordinator = made._coordinator
    if coordinator is not None and coordinator.generation == 0:
        await _leave(coordinator)  # some brokers count from 0; the client takes that for no member
    if await ended(made.stop, _STOP_SECONDS):
        return
    # Its stop did not end (no broker, or a rebalance): close its tasks and connections here.
    if coordinator is not None:
        await ended(coordinator._stop_heartbeat_task)
        await ended(coordinator._stop_commit_offsets_refresh_task)
        await _leave(coordinator)
    if made._fetcher is not None:
        await ended(made._fetcher.close)
    await ended(made._client.close)


async def _leave(coordinator: Any) -> None:
    if coordinator.member_id:
        leave = LeaveGroupRequest(coordinator.group_id, coordinator.member_id)
        await ended(partial(coordinator._send_req, leave))


async def ended(step: Callable[[], Awaitable[Any]], seconds: float = 0.1) -> bool:
    """Run one step of closing down, with a timeout; returns whether it succeeded.

    Only a real cancel passes: the client raises CancelledError itself when its broker is away. And
    every real cancel does, though the client swallows one that comes while it waits for its tasks.
    """
    task = asyncio.current_task()
    assert task is not None
    cancels = task.cancelling()
    try:
        async with asyncio.timeout(seconds):
            await step()
        done = True
    except (*CLIENT_ERRORS, asyncio.CancelledError):
        done = False
    if task.cancelling() > cancels:
        raise asyncio.CancelledError
    return done
