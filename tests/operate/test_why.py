"""Why: each flow's answer to an event, with values, and what a run waits for or how it ended."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import Running, eventually, make_event, running
from turnout import Fail, Skip, approval, event, flow, retry, sleep, wait_for
from turnout.service.domain.errors import NotFound, Refused
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import RunState
from turnout.service.operate.verbs import Cancel, Emit, Pause
from turnout.service.operate.why import why
from turnout.service.project import Project

paid = event("order.paid")


@flow(on=paid, when=lambda event: event.data["amount"] > 100)
async def audit(event: Event) -> None: ...


@flow(on=paid)
async def ship(event: Event) -> None: ...


@flow(on=event("order.*"), when=lambda event: event.data["limit"] > 1)
async def watch(event: Event) -> None: ...


async def emitted(service: Running, data: Any, event_type: str = "order.paid") -> str:
    """Emit an event, and return its id."""
    sent = replace(make_event(data), id=mint_id(), type=event_type, trigger="api")
    await service.process.operator.do(Emit(sent))
    return sent.id


async def explained(service: Running, name: str, project: Project | None = None) -> dict[str, Any]:
    process = service.process
    (document,) = await why(
        process.journal, name, project=project or process.project, waits_for=process.waits_for
    )
    return document


async def test_each_flow_says_what_it_did_with_an_event_and_what_it_reads(tmp_path: Path) -> None:
    async with running(tmp_path, [audit, ship, watch]) as service:
        event_id = await emitted(service, {"amount": 7})
        await service.all_finished()
        document = await explained(service, event_id)
    flows = {each["flow"]: each for each in document["flows"]}
    assert {name: each["answer"] for name, each in flows.items()} == {
        "audit": "filtered", "ship": "started", "watch": "started",
    }  # fmt: skip
    assert flows["audit"]["decisions"][0]["facts"]["condition"] == (
        'when=lambda event: event.data["amount"] > 100'
    )
    assert flows["audit"]["now"] == {
        "code_version": "", "listens": True, "would": "filtered",
        "condition": 'when=lambda event: event.data["amount"] > 100',
        "location": f"{__file__}:{audit.line}", "read": {"data.amount": "7"}, "error": None,
    }  # fmt: skip
    assert (flows["ship"]["now"]["would"], flows["ship"]["now"]["read"]) == ("start", {})
    now = flows["watch"]["now"]
    assert (now["would"], now["read"]) == ("fail", {"data.limit": "missing"})
    assert now["error"]["type"] == "filter_error"


async def test_a_flow_that_did_not_listen_then_is_asked_today(tmp_path: Path) -> None:
    async with running(tmp_path, [ship]) as service:
        event_id = await emitted(service, {"amount": 7})
        document = await explained(service, event_id, Project.of([audit]))
    flows = {each["flow"]: each for each in document["flows"]}
    assert (flows["audit"]["answer"], flows["audit"]["now"]["would"]) == ("not_asked", "filtered")
    assert flows["ship"]["now"] is None, "it is not loaded any more"


@flow
async def naps() -> None:
    await sleep("3h")


@flow(awaits=paid)
async def awaits() -> None:
    await wait_for(paid, match={"order": 7}, timeout="2d")


@flow
async def asks() -> None:
    await approval("ops")


@flow
async def calls() -> None:
    await naps()


@flow(retry=retry(2, delay="1h", jitter=False))
async def retries() -> None:
    raise ConnectionError("no answer")


@pytest.mark.parametrize(
    ("waits", "state", "cause", "because"),
    [
        (naps, RunState.WAITING, "instant", "it waits: for its time, until 20"),
        (
            awaits, RunState.WAITING, "event",
            "it waits: for an event of event:order.paid with order=7, until 20",
        ),
        (asks, RunState.WAITING, "approval", "it waits: for the approval of ops"),
        (calls, RunState.WAITING, "child", "it waits: for its child run "),
        (retries, RunState.RETRYING, "instant", "it waits: for its next try, at 20"),
    ],
)  # fmt: skip
async def test_a_run_says_what_it_has_asked_to_wait_for(
    tmp_path: Path, waits: Any, state: RunState, cause: str, because: str
) -> None:
    async with running(tmp_path, [waits, naps]) as service:
        service.process.emitters["test"].flows = lambda _event: (waits,)
        run_id = (await service.send()).runs[0]

        async def is_there() -> bool:
            return (await service.run(run_id)).state is state

        await eventually(is_there)
        document = await explained(service, run_id)
    assert document["because"].startswith(because)
    assert document["waiting"]["cause"] == cause


@flow
async def skips() -> None:
    raise Skip("nothing new")


@flow
async def fails() -> None:
    raise Fail("no such card")


@pytest.mark.parametrize(
    ("ends", "because"),
    [
        (skips, "it was skipped: nothing new"),
        (fails, "it failed: failed: no such card"),
        (ship, "it succeeded"),
    ],
)
async def test_a_run_that_has_ended_says_how(tmp_path: Path, ends: Any, because: str) -> None:
    async with running(tmp_path, [ends]) as service:
        run_id = (await service.send()).runs[0]
        await service.finished(run_id)
        document = await explained(service, run_id)
    assert (document["because"], document["waiting"]) == (because, None)


async def test_a_cancelled_run_says_by_whom_and_why(tmp_path: Path) -> None:
    async with running(tmp_path, [asks]) as service:
        run_id = (await service.send()).runs[0]
        await service.process.operator.do(Cancel(run_id, "too late", "ada"))
        await service.finished(run_id)
        document = await explained(service, run_id[:30])
    assert document["because"] == "it was cancelled: by ada, too late"


async def held_until_cancelled(event: Event) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("mode", "which", "state", "reason"),
    [
        ("skip", 1, "skipped", "skip"),
        ("replace", 0, "cancelled", "replaced"),
    ],
)
async def test_a_run_that_a_rule_has_ended_names_the_rule_and_the_other_run(
    tmp_path: Path, mode: Any, which: int, state: str, reason: str
) -> None:
    one_at_a_time = flow(mode=mode, timeout="1h")(held_until_cancelled)
    async with running(tmp_path, [one_at_a_time]) as service:
        runs = [(await service.send()).runs[0] for _ in range(3)]

        async def is_over() -> bool:
            return (await service.run(runs[which])).state == state

        await eventually(is_over)
        document = await explained(service, runs[which])
        for run_id in runs:
            with suppress(Refused):
                await service.process.operator.do(Cancel(run_id, "", ""))
    (decision,) = document["decisions"]
    assert decision["reason"] == reason
    assert decision["facts"]["run"] == runs[which]
    assert decision["facts"]["other"] in runs
    assert document["because"].startswith(f"it was {state}: ")
    assert decision["facts"]["other"] in document["because"]


async def test_a_run_of_a_paused_flow_waits_for_its_resume(tmp_path: Path) -> None:
    async with running(tmp_path, [ship]) as service:
        await service.process.operator.do(Pause("ship"))
        receipt = await service.send()
        document = await explained(service, receipt.runs[0])
        (run,) = (await explained(service, receipt.event))["runs"]
    assert document["waiting"]["cause"] == "pause"
    assert document["because"] == "it waits: for flow 'ship' to be resumed"
    assert run["waits_for"] == "for flow 'ship' to be resumed", "the event says so too"


async def test_what_is_neither_event_nor_run_is_said_to_be_neither(tmp_path: Path) -> None:
    async with running(tmp_path, [ship]) as service:
        with pytest.raises(NotFound) as refused:
            await explained(service, "nothing")
    assert str(refused.value) == (
        "no event and no run 'nothing'; `turnout events` and `turnout runs` list them"
    )
