"""A flow called in a run is a run of its own: arguments, results, errors, traces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support.running import make_event, running
from turnout import Event, current, emit, event, flow, retry, task
from turnout.service.domain.errors import StepFailed
from turnout.service.domain.flow import Flow

from .families import done, note, nothing_done, result, run_of, runs_of, start

__all__ = ["nothing_done"]  # the fixture


@dataclass
class Order:
    id: int
    price: float


@dataclass
class Bill:
    order: int
    total: float


@flow
async def bill(order: Order) -> Bill:
    await note(f"bill {order.id}")
    return Bill(order.id, order.price * 2)


@flow
async def shop() -> float:
    await note("shop")
    made = await bill(Order(7, 1.5))
    assert isinstance(made, Bill)
    await note("sent")
    return made.total


async def test_a_flow_called_in_a_run_is_a_run_of_its_own(tmp_path: Path) -> None:
    async with running(tmp_path, [shop, bill], concurrency=1) as service:
        parent = await run_of(service, shop)
        (child,) = await runs_of(service, "bill")
        (stored,) = await service.process.journal.event(child.event_id)
        steps = {step.key: step for step in await service.process.journal.steps(parent.seq)}
    assert result(parent) == 3.0 and done == ["shop", "bill 7", "sent"]
    assert steps["bill#1"].origin == child.id
    assert (stored.event.type, stored.event.hops) == ("turnout.flow.called", 1)
    assert stored.event.source == f"/runs/{parent.id}"
    assert stored.event.data == {"id": 7, "price": 1.5}
    assert parent.attempts == child.attempts == 1


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def trace_here() -> str:
    return current().event.trace["traceparent"]


@task
def in_a_thread() -> str:
    return trace_here()


@task(pool="process")
def in_a_process() -> str:
    return trace_here()


@flow
async def traced_child() -> str:
    return trace_here()


@flow(on=event("traced"))
async def traced_by_event() -> str:
    return trace_here()


@flow
async def traced() -> list[str]:
    await emit("traced")
    return [
        trace_here(), await in_a_thread.run(), await in_a_process.run(), await traced_child(),
    ]  # fmt: skip


async def test_the_trace_follows_wherever_the_run_goes(tmp_path: Path) -> None:
    async with running(tmp_path, [traced, traced_child, traced_by_event]) as service:
        start(service, traced)
        happened = replace(make_event(), headers={"traceparent": TRACE})
        run = await service.finished((await service.emitter([happened]))[0].runs[0])
        assert result(run) == [TRACE] * 4
        (caused,) = await runs_of(service, "traced_by_event")
        assert result(await service.finished(caused.id)) == TRACE


async def test_outside_a_run_it_is_a_plain_call() -> None:
    assert await bill(Order(1, 2.0)) == Bill(1, 4.0)
    assert await bill.map([Order(1, 2.0)]) == [Bill(1, 4.0)]


@flow(retry=retry(1, delay="1ms"))
async def breaks(data: int) -> None:
    done.append(f"try {data}")
    raise ConnectionError(f"no {data}")


@flow
async def catches() -> str:
    try:
        await breaks(5)
    except StepFailed as error:
        await note("caught")
        return f"{error.type}: {error}"
    return "?"


async def test_a_child_fails_after_its_own_retries_and_the_parent_may_catch_it(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, [catches, breaks]) as service:
        parent = await run_of(service, catches)
        (child,) = await runs_of(service, "breaks")
    assert result(parent) == f"ConnectionError: no 5 (run {child.id})"
    assert done == ["try 5", "try 5", "caught"] and child.dead


@flow
async def passes_on() -> None:
    await breaks(1)


async def test_an_uncaught_failure_of_a_child_names_the_step(tmp_path: Path) -> None:
    async with running(tmp_path, [passes_on, breaks]) as service:
        parent = await run_of(service, passes_on)
    assert parent.error is not None
    assert (parent.error.type, parent.error.step) == ("ConnectionError", "breaks#1")


@flow
async def wants_order() -> Any:
    return await bill({"id": "x"})  # type: ignore[arg-type]  # what the test is about


async def test_an_argument_the_child_would_refuse_is_the_callers_error(tmp_path: Path) -> None:
    async with running(tmp_path, [wants_order, bill]) as service:
        parent = await run_of(service, wants_order)
        assert await runs_of(service, "bill") == []
    assert parent.error is not None and parent.error.type == "invalid_data"


@flow
async def takes_text(text: str) -> str:
    return text.upper()


@flow
async def takes_event(event: Event, data: dict[str, Any]) -> Any:
    return [event.type, data]


@flow
async def takes_file(path: Path) -> str:
    return path.name


@flow
async def takes_nothing() -> str:
    return current().run.flow


@flow
def plain(number: int) -> int:
    return number + 1


@flow
async def calls_all_kinds() -> Any:
    return [
        await takes_text("words"),
        await takes_event(current().event, {"a": 1}),
        await takes_file(Path("/tmp/file.csv")),
        await takes_nothing(),
        await plain.run(1),
    ]


async def test_every_kind_of_parameter_is_filled_as_it_was_given(tmp_path: Path) -> None:
    flows: list[Flow[..., Any]] = [
        calls_all_kinds,
        takes_text,
        takes_event,
        takes_file,
        takes_nothing,
        plain,
    ]
    async with running(tmp_path, flows) as service:
        parent = await run_of(service, calls_all_kinds)
    assert result(parent) == [
        "WORDS", ["turnout.flow.called", {"a": 1}], "file.csv", "takes_nothing", 2,
    ]  # fmt: skip


@flow
def plain_parent() -> int:
    return plain(plain(1))


async def test_a_def_flow_calls_a_def_flow_as_a_child(tmp_path: Path) -> None:
    async with running(tmp_path, [plain_parent, plain], concurrency=1, threads=1) as service:
        assert result(await run_of(service, plain_parent)) == 3
        assert len(await runs_of(service, "plain")) == 2


@flow
async def stranger() -> None: ...


@flow
async def calls_stranger() -> None:
    await stranger()


async def test_a_flow_that_is_not_served_cannot_be_called(tmp_path: Path) -> None:
    async with running(tmp_path, [calls_stranger]) as service:
        run = await run_of(service, calls_stranger)
    assert run.error is not None and "not served here" in run.error.message
