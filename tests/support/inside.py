"""What has no public name in a service and its parts: tests reach into it here only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from turnout.service.app.process import Process
from turnout.service.client import outbound
from turnout.service.dispatch.memory import Memory
from turnout.service.dispatch.queue import Queue
from turnout.service.dispatch.scheduling import Scheduler
from turnout.service.domain import event
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.trigger import Receipt
from turnout.service.flowcontrol.admission import FlowGates
from turnout.service.flowcontrol.gate import Gate
from turnout.service.governance import secrets
from turnout.service.journal.records import Queued
from turnout.service.journal.sqlite import rescue
from turnout.service.journal.sqlite.journal import SqliteJournal
from turnout.service.journal.sqlite.writer import CallJob, Job
from turnout.service.project import Project
from turnout.testing import Service


def scheduler(process: Process) -> Scheduler:
    """Return what decides whose turn it is."""
    return process.dispatcher._scheduler


async def emit_now(
    service: Service, flow: Any, *events: Event, trigger: str = "testing"
) -> Sequence[Receipt]:
    """Emit events in one delivery of a trigger, and wait for nothing that they start."""
    return await service._emitter(trigger, flow)(list(events))


async def quiet(service: Service) -> None:
    """Wait until nothing can happen in a service before its clock goes on."""
    await service._quiet()


async def end(service: Service) -> None:
    """End the process of a service; `restart` starts another one."""
    await service._end()


def serve_instead(service: Service, *flows: Flow[..., Any]) -> None:
    """Have a service serve these flows from its next restart on."""
    service._flows = {flow.name: flow for flow in flows}


def gates_of(gates: FlowGates) -> Sequence[Gate]:
    """Return every gate of a flow, in the order in which they are asked."""
    return gates._gates


def remembered_types(project: Project) -> int:
    """Return for how many types of events a project remembers its flows."""
    return len(project.by_type._found)


def forget_certificates() -> None:
    """Have the next request read the trusted certificates again."""
    outbound._load.cache_clear()


def keep_windows_ahead(patch: pytest.MonkeyPatch) -> None:
    """Leave windows that were opened by a clock ahead as they are, until `patch` is undone."""
    patch.setattr(rescue, "_WINDOWS", {**rescue._WINDOWS, "pull_back": "SELECT ?1"})


def queues(process: Process) -> Iterable[Queue]:
    """Return each queue once; a renamed flow's queue has two names."""
    return list(scheduler(process).queues())


def memory(process: Process) -> Memory:
    """Return the memory that queued runs share."""
    return scheduler(process)._memory


def keep_only_windows(process: Process) -> None:
    """Leave no memory beyond the window of each queue, as in a large backlog."""
    memory(process).left = 0


def held_keys(process: Process) -> dict[str, dict[str, dict[str, int]]]:
    """Return the ordering keys each flow holds, with their holders."""
    return {queue.flow: queue.gates.order.held() for queue in queues(process)}


def window(queue: Queue) -> int:
    """Return how many runs are in the window of a queue."""
    return sum(len(queue.head(level).window) for level in queue.levels)


def has_orphans(process: Process) -> bool:
    """Whether due runs of flows that are not served were looked at."""
    return bool(process.dispatcher._due.orphans)


def waits_for_previous_attempt(process: Process, run_id: str) -> bool:
    """Whether a run has an attempt that begins when the one before has ended."""
    return process.dispatcher._attempts._running[run_id].previous is not None


def occupy_writer(journal: SqliteJournal, work: Callable[[], object]) -> asyncio.Future[Any]:
    """Have the journal's thread do something before whatever is asked of it next."""
    return journal._writer.submit(CallJob(lambda _connection, _counters: work()))


def forget_secrets(patch: pytest.MonkeyPatch) -> None:
    """Be a process in which no secret was revealed yet, until `patch` is undone."""
    patch.setattr(secrets, "_revealed", {})
    patch.setattr(secrets, "live_forms", ())


def mint_the_same_ids(patch: pytest.MonkeyPatch) -> None:
    """Mint ids that depend on neither time nor chance, until `patch` is undone."""
    patch.setattr(event, "_last_stamp", 0)
    patch.setattr(event, "_chance", Random(0))
    patch.setattr(event, "time", SimpleNamespace(time_ns=lambda: 0))


def write_at_once(journal: SqliteJournal) -> None:
    """Have every write done by the call that submits it, without the journal's thread."""
    writer = journal._writer

    def submit(job: Job) -> asyncio.Future[Any]:
        job.result = job.error = None
        job.future = asyncio.get_running_loop().create_future()
        writer._write([job])
        return job.future

    writer.submit = submit  # type: ignore[method-assign]


async def queues_read(process: Process) -> None:
    """Wait until the queues know what the journal holds: a run whose gates are open starts at once.

    Until then every run that arrives waits for the runs that may be due before it.
    """
    while not all(map(_is_read, queues(process))):  # noqa: ASYNC110  no event tells of it
        await asyncio.sleep(0.001)


def _is_read(queue: Queue) -> bool:
    heads = ((level, queue.head(level)) for level in queue.levels)
    return not (
        queue.due_unread or any(queue.lacks(level) or head.reading for level, head in heads)
    )


def count_claims(process: Process) -> list[int]:
    """Return a list that gets the number of runs of each claim from now on."""
    claiming, counts = process.dispatcher._claiming, list[int]()
    claim = claiming._claim

    async def counted(chosen: list[Queued]) -> None:
        counts.append(len(chosen))
        await claim(chosen)

    claiming._claim = counted  # type: ignore[method-assign]
    return counts


def unfinished_writes(journal: SqliteJournal) -> int:
    """Return how many writes have been submitted and are not done."""
    return journal._writer._queue.qsize() + len(journal._writer._in_progress)
