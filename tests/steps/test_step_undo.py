"""`@task(undo=…)`: what a step may have done is undone, with its key, arguments and result."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.attempts import Attempts, attempts
from tests.support.running import eventually, running
from turnout import Fail, by_input, current, flow, gather, retry, task
from turnout.service.domain.errors import SetupError
from turnout.service.domain.run import RunState
from turnout.service.operate.verbs import Cancel

done: list[str] = []
keys: dict[str, str] = {}
hanging: dict[str, asyncio.Event] = {}
broken: set[str] = set()


@pytest.fixture(autouse=True)
def all_well() -> None:
    for each in (done, keys, hanging, broken):
        each.clear()


async def no_wait(_seconds: float) -> None:
    await asyncio.sleep(0)


@dataclass
class Receipt:
    """What a booking returns."""

    number: int
    places: tuple[str, ...]


def release(what: str, count: int, result: Receipt | None, key: str) -> None:
    done.append(f"release {what} {count} {result and (result.number, result.places)}")
    assert key == keys[what]


@task(retry=retry(1, delay="1ms"), undo=release)
async def book(what: str, seats: object = None, *, count: int = 1) -> Receipt:
    keys[what] = current().key()
    done.append(f"book {what}")
    if what in hanging:
        hanging[what].set()
        await asyncio.Event().wait()
    if what in broken:
        raise OSError(f"the answer about {what} was lost")
    return Receipt(count, (what,))


@task(undo=release)
def book_in_thread(what: str, count: int) -> Receipt:
    keys[what] = current().key()
    done.append(f"book {what}")
    if what in broken:
        raise OSError("lost")
    return Receipt(count, (what,))


def give_back(what: str, result: str | None, key: str) -> None:
    done.append(f"give back {what} {result}")
    keys[f"give back {what}"] = key


@task(pool="process", undo=give_back)
def book_in_process(what: str) -> str:
    return current().key()


@task(undo=give_back, fallback="nothing")
async def book_or_not(what: str) -> str:
    raise OSError("lost")


@task(undo=give_back, cache=by_input(ttl="1h"))
async def look_up(what: str) -> str:
    return f"found {what}"


@task(undo=give_back)
async def book_much(what: str) -> str:
    return what * 5000


async def cancel(what: str) -> None:
    done.append(f"cancel {what}")


@flow
async def trip() -> None:
    await book("flight")
    current().on_undo(cancel, "taxi")
    await book("hotel", count=3)
    raise Fail("no dinner")


async def fail(tmp_path: Path, chosen: Any, data: Any = None) -> list[str]:
    """Run a flow that fails; return what was done when it had."""
    async with attempts(tmp_path, sleep=no_wait) as run:
        outcome = await run.first(chosen, data)
        assert (outcome.state, outcome.undo) == (RunState.FAILED, "done"), outcome.error
        return done


async def reach(run: Attempts, chosen: Any, where: str) -> None:
    """Execute until the step `where` has begun, and be killed there."""
    reached = hanging[where] = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        attempt = tasks.create_task(run.execute(chosen))
        async with asyncio.timeout(5):
            await reached.wait()
        attempt.cancel()
    hanging.clear()


async def test_undone_in_reverse_with_what_each_step_was_given_and_returned(
    tmp_path: Path,
) -> None:
    assert (await fail(tmp_path, trip))[2:] == [
        "release hotel 3 (3, ('hotel',))", "cancel taxi", "release flight 1 (1, ('flight',))",
    ]  # fmt: skip


async def test_a_step_whose_answer_was_lost_on_every_try_is_undone_without_a_result(
    tmp_path: Path,
) -> None:
    broken.add("hotel")
    assert (await fail(tmp_path, trip))[3:] == [
        "release hotel 3 None", "cancel taxi", "release flight 1 (1, ('flight',))",
    ]  # fmt: skip


async def test_a_step_the_process_kept_dying_in_is_undone(tmp_path: Path) -> None:
    async with attempts(tmp_path) as run:
        await run.new_run(trip)
        for _ in range(5):
            await reach(run, trip, "hotel")
            await run.crash()
        assert (await run.execute(trip)).undo == "done"
        assert done == ["book flight", *["book hotel"] * 5, "release hotel 3 None", "cancel taxi",
                        "release flight 1 (1, ('flight',))"]  # fmt: skip


async def test_a_step_that_a_cancel_cut_off_is_undone(tmp_path: Path) -> None:
    hanging["hotel"] = asyncio.Event()
    async with running(tmp_path, [trip]) as service:
        run_id = (await service.send()).runs[0]
        await hanging["hotel"].wait()
        await service.process.operator.do(Cancel(run_id))

        async def is_over() -> bool:
            return (await service.run(run_id)).state is RunState.CANCELLED

        await eventually(is_over)
        assert done[2:] == ["release hotel 3 None", "cancel taxi",
                            "release flight 1 (1, ('flight',))"]  # fmt: skip


async def test_what_was_recorded_before_a_restart_is_undone_with_its_result(
    tmp_path: Path,
) -> None:
    async with attempts(tmp_path, max_result_bytes=1024) as run:

        @flow(retry=retry(1, delay="1ms"))
        async def much() -> None:
            await book_much("x")
            raise OSError("no dinner")

        await run.first(much)
        await run.again(much)
        assert done == [f"give back x {'x' * 5000}"]


async def test_a_retried_attempt_registers_a_step_once(tmp_path: Path) -> None:
    @flow(retry=retry(2, delay="1ms"))
    async def flaky() -> None:
        await book("flight")

    broken.add("flight")
    async with attempts(tmp_path, sleep=no_wait) as run:
        await run.first(flaky)
        await run.again(flaky)
        await run.again(flaky)
        assert done == [*["book flight"] * 6, "release flight 1 None"]


async def test_an_error_the_flow_caught_is_undone_too(tmp_path: Path) -> None:
    @flow
    async def goes_on() -> None:
        try:
            await book("flight")
        except OSError:
            raise Fail("no trip") from None

    broken.add("flight")
    assert (await fail(tmp_path, goes_on))[2:] == ["release flight 1 None"]


@pytest.mark.slow
async def test_in_every_pool_and_from_a_def_flow(tmp_path: Path) -> None:
    @flow
    def threaded() -> None:
        book_in_thread("boat", 2)
        book_in_process("train")
        broken.add("ship")
        book_in_thread("ship", count=3)

    assert (await fail(tmp_path / "def", threaded))[2:-1] == [
        "release ship 3 None", f"give back train {keys['give back train']}",
    ]  # fmt: skip
    assert done[-1] == "release boat 2 (2, ('boat',))"
    done.clear()

    @flow
    async def asynchronous() -> None:
        await book_in_process.run("train")
        await book_in_thread.run("boat", 2)
        raise Fail("no trip")

    assert (await fail(tmp_path / "async", asynchronous))[1:] == [
        "release boat 2 (2, ('boat',))", f"give back train {keys['give back train']}",
    ]  # fmt: skip


async def test_branches_are_undone_also_those_that_were_cut_off(tmp_path: Path) -> None:
    hanging["slow"] = asyncio.Event()

    async def breaks() -> None:
        await hanging["slow"].wait()
        raise Fail("no trip")

    @flow
    async def wide() -> None:
        await book.map(["a", "b"])
        await gather(book("slow"), breaks())

    await fail(tmp_path, wide)
    assert sorted(done[-3:]) == [
        "release a 1 (1, ('a',))", "release b 1 (1, ('b',))", "release slow 1 None",
    ]  # fmt: skip


async def test_a_result_that_is_not_the_step_s_own(tmp_path: Path) -> None:
    @flow
    async def looks(data: str) -> None:
        await look_up("x")
        await book_or_not("y")
        raise Fail("no trip")

    async with attempts(tmp_path) as run:
        await run.first(looks, "1")
        assert done == ["give back y None", "give back x found x"]
        done.clear()
        await run.first(looks, "2", id="e2")
        assert done == ["give back y None"]  # what the cache gave was not done by this run


async def test_arguments_are_those_of_the_call_and_only_those_it_takes(tmp_path: Path) -> None:
    @flow
    async def passes() -> None:
        await book("flight", asyncio.get_running_loop())  # which no undo takes
        raise Fail("no trip")

    assert (await fail(tmp_path, passes))[1:] == ["release flight 1 (1, ('flight',))"]


async def test_what_cannot_be_kept_fails_the_step_before_it_does_anything(tmp_path: Path) -> None:
    @flow
    async def passes() -> None:
        await book(asyncio.get_running_loop())  # type: ignore[arg-type]

    @flow
    def passes_in_thread() -> None:
        book_in_thread("x" * 3000, 1)

    for number, (chosen, words) in enumerate(
        [(passes, "plain data or an id"), (passes_in_thread, "larger than 1024 bytes")]
    ):
        async with attempts(tmp_path / str(number), max_result_bytes=1024) as run:
            outcome = await run.first(chosen)
            assert outcome.error is not None and outcome.error.type == "not_kept"
            assert words in outcome.error.message
            assert done == []


async def test_an_undo_whose_task_is_gone_fails_and_goes_on_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        @flow
        async def books() -> None:
            await book("flight")
            patch.delattr("tests.steps.test_step_undo.book")
            raise Fail("no trip")

        async with attempts(tmp_path) as run:
            assert (await run.first(books)).undo == "failed"
            patch.undo()
            await run.journal.retry("run-of-e1", None, now=run.now())
            assert (await run.again(books)).undo == "done"
            assert done[1:] == ["release flight 1 (1, ('flight',))"]


def test_what_could_not_be_filled_or_found_is_refused_at_its_task() -> None:
    def local(what: str) -> None: ...

    wrong: Any
    for wrong, words in (
        (needs_more, "nothing fills parameter 'colour'"),
        (local, "inside a function"),
        ("release", "write a function"),
    ):
        with pytest.raises(SetupError, match=rf"test_step_undo.py:\d+: task 'take': .*{words}"):
            task(undo=wrong)(take)


def needs_more(what: str, colour: str) -> None: ...


def take(what: str) -> None: ...


def test_called_plainly_it_is_the_function() -> None:
    assert asyncio.run(book("flight")) == Receipt(1, ("flight",))
    assert done == ["book flight"]
