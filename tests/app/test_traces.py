"""A traced service sends each span once, under a parent that arrives too, whatever happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.collector import (
    CALLER,
    TRACE,
    TRACEPARENT,
    TRACES,
    Collector,
    collecting,
    noted,
)
from tests.support.program import Program, until
from tests.support.stub_http import Reply

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

FLOWS = """
import asyncio, os
from pathlib import Path
from turnout import Event, batch, current, debounce, emit, event, flow, http, sleep, task, webhook

HERE = Path(__file__).parent

@task
async def step(name: str) -> str:
    held = HERE / f"hold-{name}"
    if held.exists():
        (HERE / f"held-{name}").touch()
        while held.exists():
            await asyncio.sleep(0.01)
    return name

@task(retry=3)
async def shaky() -> str:
    if not (HERE / "failed").exists():
        (HERE / "failed").touch()
        raise OSError("not yet")
    return "now"

@flow
async def pack(name: str) -> str:
    await step(f"{name}-a")
    return await step(f"{name}-b")

@flow(on=webhook("/order"))
async def order() -> str:
    await step("1")
    await step("2")
    await pack("child")
    await sleep("200ms")
    await step("3")
    await shaky()
    await emit("order.done", {})
    return await step("5")

@flow(on=event("order.done"))
async def done() -> None:
    await step("done")

@flow(on=webhook("/call"))
async def call(given: dict[str, str]) -> str:
    await http.post(given["url"], json={})
    return f"{await in_thread.run()} {await in_process.run()} {current().trace['traceparent']}"

@task
def in_thread() -> str:
    return current().trace["traceparent"]

@task(pool="process")
def in_process() -> str:
    return current().trace["traceparent"]

@flow(on=batch(webhook("/many"), 2, "10s"))
async def many(given: list[Event]) -> int:
    await step("many")
    return len(given)

@flow(on=debounce(webhook("/late"), "200ms"))
async def late(given: dict[str, str]) -> None: ...

@flow(on=webhook("/fail"), retry=1)
async def fail() -> None:
    current().log.info("order.seen")
    print("printed")
    raise ValueError("no stock")

@flow(on=webhook("/steps"))
async def steps() -> None:
    for number in range(3):
        await step(str(number))

@flow(on=webhook("/wait"))
async def wait() -> None:
    await step("1")
    await sleep("1h")
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture
def program(tmp_path: Path, collector: Collector) -> Iterator[Program]:
    with served(tmp_path, collector) as made:
        made.start().ready()
        yield made


def served(folder: Path, collector: Collector, **env: str) -> Program:
    (folder / "flows.py").write_text(FLOWS)
    return Program(
        flows=folder / "flows.py",
        data=folder / "data",
        log=folder / "log",
        env=collector.env | {"TURNOUT_LOG_FORMAT": "json"} | env,
    )


def arrived(collector: Collector, name: str, count: int = 1) -> None:
    until(lambda: len(collector.named(name)) >= count, 20, f"{count} spans named {name}")


def test_a_run_is_one_tree_also_after_a_kill_in_the_middle(
    tmp_path: Path, collector: Collector
) -> None:
    (tmp_path / "hold-3").touch()
    with served(tmp_path, collector) as program:
        program.start().ready()
        program.post("order", {})
        until((tmp_path / "held-3").exists, 20, "the third step")
        arrived(collector, "step step", 4)
        until(lambda: noted(program.data) == 1, 20, "a note of the child's span")
        program.kill()
        (tmp_path / "hold-3").unlink()
        program.start().ready()
        program.quiet(20)
        arrived(collector, "run order")
        arrived(collector, "run done")
        assert program.stop() == 0
    assert collector.problems() == []
    spans = collector.spans
    assert len({span.trace for span in spans}) == 1
    (root,) = [span for span in spans if not span.parent]
    assert root.name == "run order"
    assert root.attributes["turnout.run.crashes"] == 1
    steps = [span.attributes.get("turnout.step.key") for span in spans if span.parent == root.id]
    tried = sorted(str(key) for key in steps if key is not None)
    assert tried == ["emit#1", "shaky#1", "shaky#1", "step#1", "step#2", "step#3", "step#4"]
    tries = collector.named("step shaky")
    assert [(each.attributes["turnout.step.try"], each.error) for each in tries] == [
        (1, "not yet"), (2, ""),
    ]  # fmt: skip
    below = {span.name for span in spans if span.parent == root.id}
    assert {"run pack", "run done", "attempt order"} < below
    assert {
        span.name for span in spans if span.attributes.get("turnout.step.key") == "sleep#1"
    } == set()


NEVER_SENT = """
import os
from turnout.service.app.spans import SpanSender

async def none_owed(self, seqs=None, *, after=0):
    return []

if not os.path.exists(os.environ["MARKER"]):
    SpanSender._owed = none_owed
"""


def test_the_span_of_a_run_that_ended_just_before_the_end_of_the_process_comes_at_the_next_start(
    tmp_path: Path, collector: Collector
) -> None:
    with served(tmp_path, collector, MARKER=str(tmp_path / "marker")) as program:
        program.sabotage = NEVER_SENT
        program.start().ready()
        program.post("order", {})
        program.quiet(20)
        arrived(collector, "attempt order")
        program.kill()
        assert collector.named("run order") == []
        (tmp_path / "marker").touch()
        program.start().ready()
        arrived(collector, "run order")
        arrived(collector, "run pack")
        arrived(collector, "run done")
        assert program.stop() == 0
        program.start().ready()
        assert program.stop() == 0
    assert collector.problems() == []


def test_a_trace_that_comes_in_goes_on_to_what_is_called(
    program: Program, collector: Collector
) -> None:
    address = collector.stub.says("/called", Reply())
    program.ask(
        "/hooks/call", method="POST", body=json.dumps({"url": address}).encode(),
        headers={"traceparent": TRACEPARENT, "tracestate": "vendor=1"},
    )  # fmt: skip
    arrived(collector, "run call")
    arrived(collector, "step http.post")
    (run,), (step,) = collector.named("run call"), collector.named("step http.post")
    assert (run.trace, run.parent, run.kind) == (TRACE, CALLER, "consumer")
    (asked,) = collector.stub.to("/called")
    assert asked.headers["traceparent"] == f"00-{TRACE}-{step.id}-01"
    assert asked.headers["tracestate"] == "vendor=1"
    assert step.parent == run.id
    (called,) = program.api("/runs?flow=call")["items"]
    tasks = [collector.named(f"step {name}")[0].id for name in ("in_thread", "in_process")]
    assert called["result"].split() == [f"00-{TRACE}-{each}-01" for each in (*tasks, run.id)]
    assert collector.problems() == []


def test_a_batch_has_links_to_what_it_came_from(program: Program, collector: Collector) -> None:
    for _ in range(2):
        program.ask("/hooks/many", method="POST", body=b"{}", headers={"traceparent": TRACEPARENT})
    arrived(collector, "run many")
    (run,) = collector.named("run many")
    assert run.parent == "" and run.trace != TRACE
    assert run.links == [(TRACE, CALLER)] * 2
    assert run.attributes["turnout.run.events"] == 2


def test_a_run_that_is_held_back_has_a_link_to_what_it_came_from(
    program: Program, collector: Collector
) -> None:
    program.ask("/hooks/late", method="POST", body=b"{}", headers={"traceparent": TRACEPARENT})
    arrived(collector, "run late")
    (run,) = collector.named("run late")
    assert (run.parent, run.links) == ("", [(TRACE, CALLER)])
    assert run.trace != TRACE


def test_log_lines_name_their_span_and_failures_their_error(
    program: Program, collector: Collector
) -> None:
    program.post("fail", {})
    arrived(collector, "attempt fail", 2)
    arrived(collector, "run fail")
    (run,) = collector.named("run fail")
    assert run.error == "no stock" and run.attributes["error.type"] == "ValueError"
    assert run.events[0]["exception.type"] == "ValueError"
    assert "no stock" in str(run.events[0]["exception.stacktrace"])
    lines = [json.loads(line) for line in program.log_text().splitlines()]
    for message in ("order.seen", "printed"):
        of_run = [line for line in lines if line["message"] == message]
        assert {(line["trace_id"], line["span_id"]) for line in of_run} == {(run.trace, run.id)}


def test_a_run_that_is_cancelled_while_it_waits_has_its_span(
    tmp_path: Path, program: Program, collector: Collector
) -> None:
    run_id = program.post("wait", {})
    arrived(collector, "attempt wait")
    token = (program.data / "api-token").read_text().strip()
    answer = program.ask(
        f"/api/runs/{run_id}/cancel", method="POST", body=b"{}",
        headers={"Authorization": f"Bearer {token}", "content-type": "application/json"},
    )  # fmt: skip
    assert answer is not None and answer.status == 200, answer
    program.stop()
    program.start().ready()
    arrived(collector, "run wait")
    assert collector.named("run wait")[0].attributes["turnout.run.state"] == "cancelled"
    assert collector.problems() == []


def test_a_run_that_is_tried_again_by_hand_has_another_span_under_its_own(
    program: Program, collector: Collector
) -> None:
    run_id = program.post("fail", {})
    arrived(collector, "run fail")
    token = (program.data / "api-token").read_text().strip()
    answer = program.ask(
        f"/api/runs/{run_id}/retry", method="POST", body=b"{}",
        headers={"Authorization": f"Bearer {token}", "content-type": "application/json"},
    )  # fmt: skip
    assert answer is not None and answer.status == 200, answer
    arrived(collector, "run fail", 2)
    own, again = sorted(collector.named("run fail"), key=lambda span: bool(span.parent))
    assert again.parent == own.id and again.attributes["turnout.run.retried"] == 1
    assert collector.problems() == []


def test_a_collector_that_is_away_is_told_and_gets_the_spans_of_runs_later(
    program: Program, collector: Collector
) -> None:
    collector.answers(Reply(400))
    program.post("fail", {})
    program.said("traces.not_sent", 20)
    collector.answers(Reply())
    program.stop()
    program.start().ready()
    arrived(collector, "run fail")


OF_STEPS = ["attempt steps", "run steps", *["step step"] * 3]


def names(collector: Collector) -> list[str]:
    return sorted(span.name for span in collector.spans)


def test_the_spans_of_a_run_and_of_its_steps_go_in_one_request(
    tmp_path: Path, collector: Collector
) -> None:
    with served(tmp_path, collector, OTEL_BSP_SCHEDULE_DELAY="2000") as program:
        program.start().ready()
        program.post("steps", {})
        arrived(collector, "run steps")
        assert names(collector) == OF_STEPS
        assert len(collector.stub.to(TRACES)) == 1


def test_what_waits_to_be_sent_is_sent_at_the_end(tmp_path: Path, collector: Collector) -> None:
    with served(tmp_path, collector, OTEL_BSP_SCHEDULE_DELAY="3600000") as program:
        program.start().ready()
        program.post("steps", {})
        program.quiet(20)
        assert collector.spans == []
        assert program.stop() == 0
    assert names(collector) == OF_STEPS


def test_a_full_request_is_sent_at_once_and_no_request_has_more(
    tmp_path: Path, collector: Collector
) -> None:
    full = {"OTEL_BSP_SCHEDULE_DELAY": "3600000", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5"}
    with served(tmp_path, collector, **full) as program:
        program.start().ready()
        for _ in range(3):
            program.post("steps", {})
            program.quiet(20)
        until(lambda: len(collector.spans) == 15, 20, "three requests")
        assert len(collector.stub.to(TRACES)) == 3
    assert names(collector) == sorted(OF_STEPS * 3)


def test_spans_that_do_not_fit_into_the_queue_are_counted_and_those_of_runs_come(
    tmp_path: Path, collector: Collector
) -> None:
    with served(tmp_path, collector, OTEL_BSP_MAX_QUEUE_SIZE="2") as program:
        program.start().ready()
        with collector.shut():  # the first request is not answered before the others wait
            for _ in range(3):
                program.post("steps", {})
            program.quiet(20)
        program.said(r"traces\.lost", 20)
        arrived(collector, "run steps", 3)
    assert len(collector.spans) < 15
    assert collector.problems() == []


def test_a_collector_that_does_not_answer_holds_up_no_stop(
    tmp_path: Path, collector: Collector
) -> None:
    with served(tmp_path, collector, OTEL_EXPORTER_OTLP_TIMEOUT="1") as program:
        program.start().ready()
        with collector.shut():
            program.post("steps", {})
            program.quiet(20)
            assert program.stop() == 0
        program.start().ready()
        arrived(collector, "run steps")


def test_what_is_not_sampled_is_not_sent_nor_are_its_children(
    tmp_path: Path, collector: Collector
) -> None:
    none = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
    with served(tmp_path, collector, **none) as program:
        program.start().ready()
        program.post("order", {})
        program.ask("/hooks/fail", method="POST", body=b"{}", headers={"traceparent": TRACEPARENT})
        program.quiet(20)
        assert program.stop() == 0
    assert {span.trace for span in collector.spans} == {TRACE}


def test_a_variable_that_cannot_be_used_is_named(tmp_path: Path, collector: Collector) -> None:
    with served(tmp_path, collector, OTEL_EXPORTER_OTLP_PROTOCOL="grpc") as program:
        assert program.start().ended(20) == 78
        program.said(r"OTEL_EXPORTER_OTLP_PROTOCOL=grpc: .*\(4318\)", 1)
