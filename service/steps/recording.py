"""Makes what an attempt records durable, in its order, waiting while the disk is full.

Not here: what is recorded (`step`, `wait`, `children`) and the marks between steps
(`durable_marks`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from turnout.service.domain.errors import (
    ClaimLost,
    JournalBroken,
    JournalError,
    JournalFull,
    Overloaded,
    TooManyRuns,
)
from turnout.service.journal.contract import Attachment, Steps
from turnout.service.journal.records import StepRecord

from .artefacts import Attached
from .context import RunContext

T = TypeVar("T")

FULL_DISK_WAIT_SECONDS = 0.5


async def store(
    context: RunContext, record: StepRecord, attached: Attached | None = None
) -> StepRecord:
    """Make a record durable, a large result in a file; see `durable`. Returns what is recorded.

    What the step has `attached` is recorded with it.
    """
    services = context.services
    assert services is not None  # steps are recorded where there is a journal only
    journal = services.journal
    result = record.result
    is_small = result is None or len(result) <= services.settings.max_result_bytes
    if is_small and attached is None:  # as most are
        await durable(context, context.record_step, record)
        return record
    write: Callable[[StepRecord], Awaitable[None]] = context.record_step
    if attached is not None:
        write = partial(_record_with, context, [*attached])
    with nullcontext() if attached is None else _held(journal, attached):
        if result is None or is_small:
            await durable(context, write, record)
            return record

        async def with_blob() -> StepRecord:
            async with journal.store_blob(result) as name:
                recorded = replace(record, result=None, blob=name)
                await write(recorded)
                return recorded

        return await durable(context, with_blob)


@contextmanager
def _held(journal: Steps, attached: Attached) -> Iterator[None]:
    """Keep content from being swept, also between two tries while the disk is full."""
    with ExitStack() as held:
        for each in attached:
            held.enter_context(journal.hold_blob(each.blob))
        yield


async def _record_with(
    context: RunContext, attached: Sequence[Attachment], record: StepRecord
) -> None:
    assert context.services is not None  # `store` has looked
    claim = context.writing(record.key)
    await context.services.journal.record_artefacts(claim, record, attached)


FULL_QUEUE_WAIT_SECONDS = 0.25
MOST_SECONDS_OVERLOADED = 10.0
"""How long a run waits for room in a full queue for what it starts."""


async def durable(context: RunContext, write: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Await `write(*args)`, again while the disk is full; other failures end the attempt.

    Raises `TooManyRuns` when what is written starts runs that have found no room for 10 s.
    """
    waited = 0.0
    while True:
        try:
            if context.durable_marks:
                await context.durable_marks.write_all()
            return await write(*args)
        except TooManyRuns:
            if waited >= MOST_SECONDS_OVERLOADED or context.services is None:
                raise
            waited += FULL_QUEUE_WAIT_SECONDS
            await context.services.sleep(FULL_QUEUE_WAIT_SECONDS)
        except (JournalFull, Overloaded):
            await asyncio.sleep(FULL_DISK_WAIT_SECONDS)
        except (ClaimLost, JournalError) as error:
            # A flow that catches this must not run its next step on top of a lost one.
            context.broken = error
            raise


async def write_marks(context: RunContext) -> None:
    """Write the durable marks the flow left since its last step; the next step waits for them."""
    await durable(context, partial(asyncio.sleep, 0))


async def write_last_marks(context: RunContext) -> None:
    """Write the durable marks the flow left since its last step, at the end of the attempt."""
    try:
        await write_marks(context)
    except JournalBroken:
        raise
    except JournalError:
        pass  # the next attempt leaves them again
