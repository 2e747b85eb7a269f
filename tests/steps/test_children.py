"""Child runs: durable calls of other flows, at any width, cancelled with their parent."""

from __future__ import annotations

import asyncio
import io
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.running import Running, eventually, make_event, running
from turnout import Event, Fail, current, emit, event, flow, gather, retry, sleep, task
from turnout.service.domain.errors import StepFailed
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import Run, RunState
from turnout.service.journal.records import Filter, StepRecord
from turnout.service.journal.sqlite import claims
from turnout.service.journal.sqlite.steps import step_from
from turnout.service.operate.verbs import Cancel, Retry
from turnout.service.steps.step import StepCall
from turnout.service.telemetry import logs

done: list[str] = []
"""What the tasks really did, in order."""


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


@task
async def note(word: str) -> str:
    done.append(word)
    return word


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


def start(service: Running, parent: Any) -> None:
    """Let the test's trigger start the parent only."""
    service.emitter.flows = lambda _event: (parent,)


async def run_of(service: Running, parent: Any, data: Any = None) -> Run:
    start(service, parent)
    return await service.finished((await service.send(data)).runs[0])


async def until_state(service: Running, run_id: str, state: RunState) -> None:
    async def reached() -> bool:
        return (await service.run(run_id)).state is state

    await eventually(reached)


async def runs_of(service: Running, flow_name: str) -> list[Run]:
    return await service.process.journal.runs(Filter(flow=flow_name, limit=1000))


def result(run: Run) -> Any:
    assert run.state is RunState.SUCCEEDED, run
    return orjson.loads(run.result or b"null")


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


# ---------------------------------------------------------------- many at once

now_running = 0
most_running = 0


@flow
async def double(number: int) -> int:
    global now_running, most_running
    now_running += 1
    most_running = max(most_running, now_running)
    await asyncio.sleep(0.005)
    now_running -= 1
    return number * 2


@flow
async def fans_out() -> list[int]:
    return await double.map(range(12), limit=3)


@flow
async def gathers() -> Any:
    return await gather(*(double(number) for number in range(5)))


async def test_a_map_starts_at_most_so_many_and_keeps_the_order(tmp_path: Path) -> None:
    global most_running
    most_running = 0
    async with running(tmp_path, [fans_out, double]) as service:
        parent = await run_of(service, fans_out)
        children = await runs_of(service, "double")
    assert result(parent) == [number * 2 for number in range(12)]
    assert len(children) == 12 and most_running <= 3


async def test_children_gathered_run_at_once_and_once(tmp_path: Path) -> None:
    async with running(tmp_path, [gathers, double], concurrency=2) as service:
        assert result(await run_of(service, gathers)) == [0, 2, 4, 6, 8]
        assert len(await runs_of(service, "double")) == 5


@flow
async def countdown(number: int) -> int:
    return 0 if number == 0 else 1 + await countdown(number - 1)


async def test_flows_that_wait_for_each_other_need_no_second_slot(tmp_path: Path) -> None:
    async with running(tmp_path, [countdown], concurrency=1) as service:
        assert result(await run_of(service, countdown, 6)) == 6


async def test_a_chain_without_end_is_ended(tmp_path: Path) -> None:
    async with running(tmp_path, [countdown]) as service:
        run = await run_of(service, countdown, 1000)
    assert run.error is not None and "is it a cycle?" in run.error.message


@pytest.mark.timeout(60)
async def test_a_wide_map_costs_each_child_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map is woken for every few children; what it reads again must not grow with the others."""
    global width
    looked_at: list[str] = []
    read, recorded, recall = step_from, StepCall.recorded, StepCall.recall

    def counted_read(row: Any) -> Any:
        looked_at.append("read")
        return read(row)

    def counted_look(call: StepCall) -> Any:
        looked_at.append("looked")
        return recorded(call)

    def counted_recall(call: StepCall, known: StepRecord) -> Any:
        looked_at.append("recalled")
        return recall(call, known)

    monkeypatch.setattr(claims, "step_from", counted_read)
    monkeypatch.setattr(StepCall, "recorded", counted_look)
    monkeypatch.setattr(StepCall, "recall", counted_recall)
    costs = []
    for width in (200, 800):
        looked_at.clear()
        async with running(tmp_path / str(width), [fans_wide, double]) as service:
            parent = await run_of(service, fans_wide)
            assert result(parent) == [number * 2 for number in range(width)]
        costs.append(len(looked_at) / width)
    few, many = costs
    assert many < 1.5 * few, costs


width = 0


@flow
async def fans_wide() -> list[int]:
    return await double.map(range(width), limit=8)


@flow
async def long_word(number: int) -> str:
    return str(number) * 10_000


@flow
async def collects() -> int:
    words = await long_word.map(range(20), limit=4)
    assert words == [str(number) * 10_000 for number in range(20)]
    return sum(map(len, words))


async def test_large_results_of_children_come_back_too(tmp_path: Path) -> None:
    async with running(tmp_path, [collects, long_word]) as service:
        assert result(await run_of(service, collects)) == 300_000


@flow
async def far() -> int:
    return 2**70


@flow
async def goes_far() -> list[Any]:
    return [await far(), await far() == 2**70]


async def test_a_large_integer_of_a_child_is_no_float(tmp_path: Path) -> None:
    async with running(tmp_path, [goes_far, far]) as service:
        run = await run_of(service, goes_far)
    assert run.as_dict()["result"] == [2**70, True]


async def test_a_wide_map_goes_on_over_a_restart(tmp_path: Path) -> None:
    global width
    width = 150
    async with running(tmp_path, [fans_wide, double]) as service:
        start(service, fans_wide)
        run_id = (await service.send()).runs[0]

        async def half_way() -> bool:
            return len(await runs_of(service, "double")) > 80

        await eventually(half_way)
    async with running(tmp_path, [fans_wide, double]) as service:
        assert result(await service.finished(run_id)) == [number * 2 for number in range(150)]
        assert len(await runs_of(service, "double")) == 150


# ---------------------------------------------------------------- restart and cancel


@flow
async def slow(data: str) -> str:
    await note(f"slow {data}")
    await sleep("150ms")
    return data


@flow
async def patient() -> str:
    return await slow("child") + "!"


async def test_parent_and_child_go_on_over_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path, [patient, slow]) as service:
        start(service, patient)
        run_id = (await service.send()).runs[0]
        await until_state(service, run_id, RunState.WAITING)
    async with running(tmp_path, [patient, slow]) as service:
        assert result(await service.finished(run_id)) == "child!"
        assert len(await runs_of(service, "slow")) == 1
    assert done == ["slow child"]


@flow
async def forever(data: str) -> None:
    await note(f"{data} runs")
    try:
        await asyncio.sleep(60)
    finally:
        done.append(f"{data} is told")


@flow
async def middle(data: str) -> None:
    await forever(data)


@flow
async def top() -> None:
    await gather(middle("one"), middle("two"))


async def test_a_cancel_reaches_children_and_their_children(tmp_path: Path) -> None:
    async with running(tmp_path, [top, middle, forever]) as service:
        start(service, top)
        run_id = (await service.send()).runs[0]

        async def both_run() -> bool:
            return len([word for word in done if word.endswith("runs")]) == 2

        await eventually(both_run)
        await service.process.operator.do(Cancel(run_id))
        runs = await service.all_finished()

        async def both_told() -> bool:
            return len([word for word in done if word.endswith("told")]) == 2

        await eventually(both_told)
    assert [run.state for run in runs] == [RunState.CANCELLED] * 5


@flow
async def one_fails() -> None:
    await gather(forever("other"), gives_up())


@flow
async def gives_up() -> None:
    raise Fail("no use")


async def test_no_child_outlives_a_parent_that_failed(tmp_path: Path) -> None:
    async with running(tmp_path, [one_fails, forever, gives_up]) as service:
        parent = await run_of(service, one_fails)
        await service.all_finished()
        (child,) = await runs_of(service, "forever")
    assert parent.state is RunState.FAILED and child.state is RunState.CANCELLED


async def test_a_cancelled_child_fails_its_parent(tmp_path: Path) -> None:
    async with running(tmp_path, [middle, forever]) as service:
        start(service, middle)
        run_id = (await service.send("x")).runs[0]
        await until_state(service, run_id, RunState.WAITING)
        (child,) = await runs_of(service, "forever")
        await service.process.operator.do(Cancel(child.id))
        parent = await service.finished(run_id)
    assert parent.error is not None and parent.error.type == "cancelled"


in_thread = threading.Event()
pause = threading.Event()


@flow
def counts() -> None:
    in_thread.set()
    while not current().cancelled:
        pause.wait(0.002)
    done.append("thread told")


async def test_a_thread_is_told_that_it_was_cancelled(tmp_path: Path) -> None:
    in_thread.clear()
    async with running(tmp_path, [counts]) as service:
        run_id = (await service.send()).runs[0]
        assert await asyncio.to_thread(in_thread.wait, 5)
        await service.process.operator.do(Cancel(run_id))

        async def told() -> bool:
            return done == ["thread told"]

        await eventually(told)
        assert (await service.run(run_id)).state is RunState.CANCELLED


async def test_a_retried_parent_calls_its_cancelled_child_anew(tmp_path: Path) -> None:
    async with running(tmp_path, [patient, slow]) as service:
        start(service, patient)
        run_id = (await service.send()).runs[0]
        await until_state(service, run_id, RunState.WAITING)
        await service.process.operator.do(Cancel(run_id))
        await service.process.operator.do(Retry(run_id))
        assert result(await service.finished(run_id)) == "child!"
        states = sorted(run.state for run in await runs_of(service, "slow"))
    assert states == [RunState.CANCELLED, RunState.SUCCEEDED]


@flow
async def stranger() -> None: ...


@flow
async def calls_stranger() -> None:
    await stranger()


async def test_a_flow_that_is_not_served_cannot_be_called(tmp_path: Path) -> None:
    async with running(tmp_path, [calls_stranger]) as service:
        run = await run_of(service, calls_stranger)
    assert run.error is not None and "not served here" in run.error.message


# ---------------------------------------------------------------- what travels in an event


@flow
async def greet(name: str = "world") -> str:
    return f"[{name}]"


@flow
def measure(raw: bytes = b"default") -> int:
    return len(raw)


@flow
async def greet_nobody() -> list[Any]:
    return [await greet(""), await greet(), await measure.run(b""), await measure.run()]


async def test_an_empty_text_given_to_a_child_is_not_its_default(tmp_path: Path) -> None:
    async with running(tmp_path, [greet_nobody, greet, measure]) as service:
        assert result(await run_of(service, greet_nobody)) == ["[]", "[world]", 0, 7]


@flow(on=event("greeting"))
async def greeted(name: str | None = "nobody") -> None:
    done.append(repr(name))


@flow
async def emits_greetings() -> None:
    await emit("greeting")
    await emit("greeting", None)
    await emit("greeting", "")


async def test_an_event_emitted_without_data_has_none_and_none_is_a_value(tmp_path: Path) -> None:
    async with running(tmp_path, [emits_greetings, greeted]) as service:
        await run_of(service, emits_greetings)
        await service.all_finished()
    assert sorted(done) == ["''", "'nobody'", "None"]


@flow
async def redact(event: Event) -> str:
    event.data["card"]["number"] = "****"
    current().event.data["cvc"] = None
    return str(event.data)


@flow
async def pay(data: dict[str, Any]) -> str:
    await note("pay")
    return str(current().event.data["card"] | data["card"])


@flow
def pay_in_a_thread(data: Any) -> str:
    return str(data)


@flow(retry=retry(1, delay="1ms"))
async def pay_again(data: Any) -> str:
    data["tries"] = data.get("tries", 0) + 1
    current().event.data["card"].clear()
    if current().attempt == 1:
        raise OSError("no answer")
    return str(data)


seen_by_hook: list[Any] = []


@flow(on_failure=lambda event: seen_by_hook.append(event.data))
async def failing(event: Event) -> None:
    event.data.clear()
    raise OSError("no answer")


async def test_runs_of_one_event_do_not_see_what_the_others_do_to_it(tmp_path: Path) -> None:
    seen_by_hook.clear()
    flows: list[Flow[..., Any]] = [redact, pay, pay_in_a_thread, pay_again, failing]
    async with running(tmp_path, flows) as service:
        receipt = await service.send({"card": {"number": "4111"}})
        runs = [await service.finished(run_id) for run_id in receipt.runs]
    said = {run.flow: run.result and orjson.loads(run.result) for run in runs}
    assert said["redact"] == "{'card': {'number': '****'}, 'cvc': None}"
    assert said["pay"] == "{'number': '4111'}"
    assert said["pay_in_a_thread"] == "{'card': {'number': '4111'}}"
    assert said["pay_again"] == "{'card': {}, 'tries': 1}"  # its own doing, of this attempt only
    assert seen_by_hook == [{"card": {"number": "4111"}}]


async def test_what_a_run_starts_is_logged_as_its_own_not_its_parent_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @flow(name="failing", on=event("go"))
    async def failing(data: int) -> None:
        current().log.warning("child.works")
        raise ValueError("its own")

    @flow
    async def parent() -> None:
        await emit("go", 1)
        try:
            await failing(2)
        except StepFailed:
            current().log.warning("parent.heard")

    stream = io.StringIO()
    undo = logs.configure("json", "info", stream)
    try:
        async with running(tmp_path, [failing, parent]) as service:
            service.process.emitters["test"].flows = lambda _event: (parent,)
            receipt = await service.send()
            run = await service.finished(receipt.runs[0])
            runs = {each.id: each for each in await service.all_finished()}
            attempts = await service.process.journal.attempts(run.seq)
    finally:
        undo()
    lines = [orjson.loads(line) for line in stream.getvalue().splitlines()]
    failures = [line for line in lines if line["message"] == "run.failed"]
    assert len(failures) == 2
    for line in failures:
        assert runs[line["run"]].flow == line["flow"] == "failing"
        assert not any(name.endswith("_") for name in line)
    kept = b"".join(attempt.log or b"" for attempt in attempts)
    assert b"parent.heard" in kept
    assert b"run.failed" not in kept and b"child.works" not in kept
