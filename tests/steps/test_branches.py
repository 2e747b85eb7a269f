"""Branches that fail: what the flow caught is a fact, what it did not hear of runs again."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import running
from turnout import current, event, flow, gather, limit, retry, sleep, task, wait_for
from turnout.service.domain.flow import Flow
from turnout.service.operate.documents import post_mortem
from turnout.testing import run, serve, typed_event

done: list[str] = []
fail_at: set[str] = set()


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()
    fail_at.clear()


@task
async def fragile(name: str) -> str:
    done.append(name)
    if name in fail_at:
        raise OSError(f"no {name}")
    return name


@task
async def hangs() -> None:
    done.append("hangs")
    await asyncio.Event().wait()


@task
def clean_up(name: str) -> None:
    done.append(f"clean {name}")


def test_errors_caught_in_several_branches_are_facts() -> None:
    async def try_it(name: str) -> str:
        try:
            return await fragile(name)
        except OSError as error:
            return str(error)

    @flow
    async def cautious() -> list[str]:
        found = await gather(try_it("a"), try_it("b"))
        await sleep("1h")
        return list(found)

    fail_at.update(("a", "b"))
    assert run(cautious).result == ["no a", "no b"]
    assert done == ["a", "b"]


def test_once_the_flow_goes_on_after_a_failure_no_branch_runs_again() -> None:
    begun = threading.Semaphore(0)

    @task
    def slow() -> None:
        done.append("slow")
        begun.release()

    @task
    async def fails_meanwhile() -> None:
        for _ in range(2):  # both have begun: a branch that has not is skipped
            await asyncio.to_thread(begun.acquire, timeout=10)
        done.append("fails")
        raise OSError("meanwhile")

    @flow
    async def goes_on() -> str:
        try:
            await gather(slow.run(), fails_meanwhile(), slow.run())
        except OSError as error:
            said = str(error)
        try:
            await fragile.map(["x", "y", "z"], limit=1)
        except OSError as error:
            said += f", {error}"
        for _ in range(3):
            await sleep("1h")
        return said

    fail_at.add("y")
    result = run(goes_on)
    assert result.result == "meanwhile, no y"
    assert sorted(done) == ["fails", "slow", "slow", "x", "y"]
    assert result.steps["gather#1"].error is not None
    assert result.steps["fragile.map#1"].state == "failed"


def test_a_failure_raised_on_after_cleaning_up_is_tried_again() -> None:
    @flow(retry=retry(1))
    async def cleans_up() -> list[str]:
        try:
            return list(await gather(fragile("a"), fragile("b")))
        except OSError as error:
            await clean_up.run("first")
            fail_at.clear()
            raise RuntimeError("not this time") from error

    fail_at.update(("a", "b"))
    result = run(cleans_up)
    assert (result.result, result.attempts) == (["a", "b"], 2)
    assert done == ["a", "b", "clean first", "a", "b"]


def test_a_failure_nobody_catches_is_that_of_its_step_alone() -> None:
    @flow
    async def careless() -> None:
        await gather(fragile("a"), fragile("b"))

    fail_at.add("b")
    result = run(careless)
    assert result.error is not None and result.error.step == "fragile#2"
    assert list(result.steps) == ["fragile#1", "fragile#2"]


undone: list[str] = []


def undo(name: str) -> None:
    undone.append(name)


def test_what_branches_do_between_their_steps_they_do_in_every_attempt() -> None:
    hanging = asyncio.Event()

    @task
    async def hangs() -> None:
        done.append("hangs")
        hanging.set()
        await asyncio.Event().wait()

    @task
    async def fails() -> None:
        await hanging.wait()
        done.append("fails")
        raise OSError

    async def books(*names: str) -> None:
        for name in names:
            current().on_undo(undo, await fragile(name))
            booked.append(name)

    async def books_inside() -> None:
        await gather(books("c"), books("d"))
        await books("e")
        await hangs()
        booked.append("never")

    async def books_and_fails() -> None:
        await books("a")
        await fails()

    async def watches() -> None:
        await asyncio.Event().wait()  # no step: nothing is recorded of it

    async def waits() -> None:
        await books("w")
        await sleep("1d")
        booked.append("never")

    @flow
    async def trip() -> None:
        booked.clear()
        with suppress(OSError):
            await gather(books_and_fails(), books_inside(), waits(), watches())
        await sleep("1h")
        raise ValueError(" ".join(sorted(booked)))

    booked: list[str] = []
    undone.clear()
    result = run(trip)
    assert result.error is not None and result.error.message == "a c d e w"
    assert sorted(undone) == ["a", "c", "d", "e", "w"]
    assert sorted(done) == ["a", "c", "d", "e", "fails", "hangs", "w"], "once each"


async def test_a_caught_failure_is_kept_though_another_branch_only_waits() -> None:
    said = event("said")

    async def fails() -> str:
        await wait_for(said, match=lambda event: event.data == "go")
        try:
            await gather(fragile("a"), hangs())
        except OSError as error:
            return str(error)
        return "well"

    @flow(awaits=said)
    async def waits() -> list[str]:
        async def later() -> str:
            heard = await wait_for(said, match=lambda event: event.data == "yes")
            return str(heard.data)

        return list(await gather(fails(), later()))

    fail_at.add("a")
    async with serve(waits) as service:
        result = await service.run(waits)
        for word in ("go", "no", "no", "yes"):
            await service.emit(typed_event(said, word))
            result = await service.ended(result.id)
    assert result.result == ["no a", "yes"]
    assert done == ["a", "hangs"]


# ---------------------------------------------------------------- what never ran


async def states(tmp_path: Path, started: Flow[..., Any]) -> dict[str, tuple[str, str]]:
    """Run a flow; return the state of each step as people see it, and its error."""
    async with running(tmp_path, [started]) as service:
        receipt = await service.send()
        await service.finished(receipt.runs[0])
        document = await post_mortem(service.process.journal, receipt.runs[0])
    return {
        step["key"]: (step["state"], "" if step["error"] is None else step["error"]["message"])
        for step in document["steps"]
    }


async def test_a_branch_that_never_ran_is_shown_as_skipped(tmp_path: Path) -> None:
    @task(limit=limit("crm", 1))
    async def calls(name: str) -> None:
        done.append(name)
        if name in fail_at:
            raise OSError(f"no {name}")
        await asyncio.Event().wait()

    @flow
    async def fans_out() -> None:
        await gather(fragile("works"), calls("a"), calls("b"), calls("c"))

    fail_at.add("a")
    told = await states(tmp_path, fans_out)
    upstream = "upstream failed: step 'calls#1' failed"
    assert told["fragile#1"] == ("succeeded", "")
    assert told["calls#1"] == ("failed", "no a")
    assert told["calls#3"] == ("skipped", upstream)
    assert done[:2] == ["works", "a"]
    assert "c" not in done


async def test_items_of_a_map_that_were_not_begun_are_shown_as_skipped(tmp_path: Path) -> None:
    @flow
    async def fans_out() -> None:
        await fragile.map(["a", "b", "c", "d"], limit=1)

    fail_at.add("b")
    upstream = "upstream failed: step 'fragile.map#1[1]' failed"
    assert await states(tmp_path, fans_out) == {
        "fragile.map#1[0]": ("succeeded", ""),
        "fragile.map#1[1]": ("failed", "no b"),
        "fragile.map#1[2]": ("skipped", upstream),
        "fragile.map#1[3]": ("skipped", upstream),
    }
    assert done == ["a", "b"]


@task
async def takes_long() -> str:
    if "b" in fail_at:
        await asyncio.Event().wait()
    return "done"


async def test_a_step_that_was_cut_off_is_shown_as_skipped(tmp_path: Path) -> None:
    @flow
    async def fans_out() -> list[str]:
        return list(await gather(takes_long(), fragile("b")))

    fail_at.add("b")
    told = await states(tmp_path, fans_out)
    assert told["takes_long#1"] == ("skipped", "upstream failed: step 'fragile#1' failed")


def test_a_step_that_was_cut_off_runs_in_the_next_attempt() -> None:
    @flow(retry=retry(1, delay="1ms"))
    async def fans_out() -> list[str]:
        if current().attempt == 2:
            fail_at.clear()
        return list(await gather(takes_long(), fragile("b")))

    fail_at.add("b")
    result = run(fans_out)
    assert (result.result, result.attempts) == (["done", "b"], 2)
    assert result.steps["takes_long#1"].state == "succeeded"


# ---------------------------------------------------------------- def tasks in async flows


@task
def length(word: str) -> int:
    done.append(word)
    if word in fail_at:
        raise OSError(f"no {word}")
    return len(word)


def test_an_async_flow_awaits_the_map_of_a_def_task() -> None:
    most, now = 0, 0
    lock = threading.Lock()

    @task
    def counts(word: str) -> int:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.02)
        with lock:
            now -= 1
        return len(word)

    @flow
    async def fans_out() -> list[int]:
        return await counts.map(["a", "bb", "ccc", "dddd"], limit=2)

    result = run(fans_out)
    assert result.result == [1, 2, 3, 4]
    assert sorted(result.steps) == [f"counts.map#1[{index}]" for index in range(4)]
    assert most == 2


def test_a_map_of_a_def_task_is_recorded_over_a_crash() -> None:
    @flow
    async def fans_out() -> list[int]:
        return await length.map(["a", "bb"], limit=1)

    result = run(fans_out, crash_at=2)
    assert result.result == [1, 2]
    assert done == ["a", "bb", "bb"]


def test_a_map_of_a_def_task_that_is_not_awaited_fails_the_run() -> None:
    @flow
    async def forgets() -> int:
        length.map(["a"])
        return 1

    error = run(forgets).error
    assert error is not None and error.type == "not_awaited"
    assert "task 'length'.map" in error.message
    assert done == []


async def test_outside_a_run_a_map_of_a_def_task_is_a_list_that_can_be_awaited() -> None:
    assert length.map(["a", "bb"]) == [1, 2]
    assert await length.map(["a", "bb"]) == [1, 2]
