"""`first(…)` in trouble: errors, retries, cancels, mistakes, changed code."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.attempts import attempts
from tests.support.running import running
from turnout import (
    approval,
    current,
    first,
    flow,
    retry,
    sleep,
    wait_for,
)
from turnout.service.domain.run import RunState
from turnout.service.operate.verbs import Cancel, Retry
from turnout.testing import serve

from .waits import (
    done,
    note,
    nothing_done,
    one,
    open_waits,
    order,
    paid,
    result,
    run_async,
    start,
    steps_of,
    tell,
    two,
    until_waiting,
)

__all__ = ["nothing_done"]  # the fixture


FILE = re.compile(r", called at [^,]*,")


# ---------------------------------------------------------------- errors


@flow(awaits=[paid], retry=retry(1, delay="1ms"))
async def impatient(data: dict[str, Any]) -> list[Any]:
    try:
        got = await first(wait_for(paid, timeout="30ms"), sleep("1h"))
    except TimeoutError:
        if data["catches"]:
            await sleep("20ms")  # it comes by again
            return ["late", current().attempt]
        raise
    return [got.which, current().attempt]


async def test_an_error_comes_first_too_and_is_the_same_when_the_run_comes_by_again(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, [impatient]) as service:
        run_id = await start(service, impatient, {"catches": True})
        assert await result(service, run_id) == ["late", 1]
        steps = await steps_of(service, run_id)
    assert [steps[key].state for key in ("first#1", "wait_for#1", "sleep#1")] == [
        "succeeded", "failed", "dropped",
    ]  # fmt: skip


async def test_after_an_error_that_ends_the_attempt_all_is_awaited_anew(tmp_path: Path) -> None:
    async with running(tmp_path, [impatient]) as service:
        run_id = await start(service, impatient, {"catches": False})
        run = await service.finished(run_id)
        assert run.state is RunState.FAILED and run.attempts == 2
        assert run.error is not None and (run.error.type, run.error.step) == (
            "TimeoutError", "wait_for#1",
        )  # fmt: skip
        await service.process.operator.do(Retry(run_id))
        await tell(service, "order.paid", 1)
        assert await result(service, run_id) == [0, 1]


# ---------------------------------------------------------------- what operators do


@flow(awaits=[paid])
async def fails_then() -> int:
    got = await first(wait_for(paid), sleep("20ms"))
    await note(f"after {got.which}")
    if "mended" not in done:
        raise OSError("broken")
    return got.which


async def test_a_retry_keeps_the_answer_and_one_from_any_of_its_waits_asks_anew(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, [fails_then]) as service:
        do = service.process.operator.do
        run_id = await start(service, fails_then)
        assert (await service.finished(run_id)).state is RunState.FAILED
        await tell(service, "order.paid", 1)
        done.append("mended")
        await do(Retry(run_id))
        assert await result(service, run_id) == 1
        for number, step in enumerate(["wait_for#1", "sleep#1", "first#1"]):
            await do(Retry(run_id, from_step=step))
            assert await result(service, run_id) == 0, step
            assert done.count("after 0") == number + 1


async def test_a_cancelled_run_has_no_open_waits(tmp_path: Path) -> None:
    async with running(tmp_path, [order]) as service:
        run_id = await start(service, order, {"id": 7})
        await until_waiting(service, run_id)
        await service.process.operator.do(Cancel(run_id))
        assert (await service.finished(run_id)).state is RunState.CANCELLED
        assert await open_waits(service, run_id) == []


# ---------------------------------------------------------------- mistakes


async def outside() -> None: ...


@flow(awaits=paid)
async def mistakes() -> list[str]:
    asked, anything = approval("x"), cast("Callable[..., Any]", first)
    said = []
    calls: Sequence[Callable[[], Any]] = (
        lambda: anything(note("x"), sleep("1h")),
        lambda: anything(outside(), sleep("1h")),
        lambda: anything([]),
        lambda: anything(asked, asked),
        lambda: anything(),
        lambda: anything(*[sleep("1h") for _ in range(101)]),
    )
    for call in calls:
        try:
            await call()
        except Exception as error:  # noqa: BLE001  what an author sees
            said.append(str(error))
    return said


async def test_what_is_no_wait_is_refused_by_name() -> None:
    said = (await run_async(mistakes)).result
    assert [FILE.sub("", text.partition("; ")[2] or text) for text in said] == [
        "number 1 is task 'note': await it by itself, or make it a flow of its own, whose call is a"
        " wait",
        "number 1 is outside(): await it by itself, or make it a flow of its own, whose call is a"
        " wait",
        "number 1 is a list: await it by itself, or make it a flow of its own, whose call is a"
        " wait",
        "first() is given step 'approval#1' of flow 'mistakes' twice",
        "first() takes waits: first(wait_for(paid), sleep('2d'))",
        "first() takes at most 100 waits, got 101",
    ]


@flow
async def awaits_dropped() -> None:
    asked = approval("x")
    await first(asked, sleep("1ms"))
    await asked


async def test_a_dropped_question_that_is_awaited_says_what_to_write() -> None:
    async with serve(awaits_dropped) as service:
        run = await service.run(awaits_dropped)
        await service.advance("1s")
        error = (await service.look(run.id)).error
    assert error is not None and error.message == (
        "step 'approval#1' of flow 'awaits_dropped' was dropped, since another wait of its `first` "
        "came before it; call approval() again to wait anew"
    )


# ---------------------------------------------------------------- changed code


def edition(content: str, function: Any) -> Any:
    """Return a flow as the loader would make it of one edition of its file."""
    made = flow(name="edited", retry=retry(5, delay="1ms"))(function)
    vars(made)["code_version"] = content
    return made


async def three() -> None:
    await first(approval("a"), approval("b"), sleep("1h"))
    await note("z")


async def swapped() -> None:
    asked, slept = approval("a"), sleep("1h")
    await first(slept, asked)
    await note("z")


async def another() -> None:
    await first(approval("b"), sleep("1h"))
    await note("z")


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (
            three,
            "first('approval#1', 'sleep#1') and is now called with other arguments, first('app",
        ),
        (swapped, "is now called with other arguments, first('sleep#1', 'approval#1')"),
        (another, "step 'approval#1' is recorded for approval('a') and is now called with other"),
    ],
)
async def test_other_waits_at_the_same_place_are_refused_by_name(
    tmp_path: Path, new: Any, words: str
) -> None:
    async with attempts(tmp_path) as run:
        await run.first(edition("old", two))
        outcome = await run.again(edition("new", new))
    assert outcome.error is not None and outcome.error.type == "code_changed"
    assert words in outcome.error.message
    assert done == []


async def test_waits_that_depend_on_chance_are_refused_though_the_code_is_the_same(
    tmp_path: Path,
) -> None:
    async def unsteady() -> None:
        done.append("x")
        await first(*[sleep("1h") for _ in done])

    same = edition("same", unsteady)
    async with attempts(tmp_path) as run:
        await run.first(same)
        outcome = await run.again(same)
    assert outcome.error is not None and outcome.error.message == (
        "the waits of step 'first#1' of flow 'edited' changed under this run: it is recorded as "
        "first(sleep#1) and is now called as first(sleep#1, sleep#2); if they depend on a clock or "
        "on chance, ask that in a task, else put the old ones back, or keep both ways with "
        "`if patched(…)`"
    )


async def test_a_wait_that_became_one_of_several_goes_on(tmp_path: Path) -> None:
    async with attempts(tmp_path) as run:
        await run.first(edition("old", one))
        outcome = await run.again(edition("new", two))
    assert outcome.state is RunState.WAITING


async def test_waits_that_are_not_awaited_together_any_more_are_noticed(tmp_path: Path) -> None:
    async def apart() -> None:
        approval("a").close()
        sleep("1h").close()
        await note("z")

    async with attempts(tmp_path) as run:
        await run.first(edition("old", two))
        outcome = await run.again(edition("new", apart))
    assert outcome.error is not None and outcome.error.type == "code_changed"
    assert "runs step 'note#1' where step 'first#1' is recorded" in outcome.error.message
