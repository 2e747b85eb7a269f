"""What travels in the events of children and of `emit`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.running import running
from turnout import Event, current, emit, event, flow, retry
from turnout.service.domain.errors import StepFailed
from turnout.service.domain.flow import Flow
from turnout.service.telemetry import logs

from .families import done, note, nothing_done, result, run_of

__all__ = ["nothing_done"]  # the fixture


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
