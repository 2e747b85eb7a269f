"""Code that changes under a run: noticed, harmless, or provided for with `patched`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from tests.support.attempts import attempts
from turnout import (
    flow,
    gather,
    patched,
    sleep,
    task,
)
from turnout.service.domain.errors import MisplacedTask
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.testing import run as run_flow

from .editions import broken, do, done, edition, nothing_done, over_an_edit, refused

__all__ = ["nothing_done"]  # the fixture


@task
async def clean() -> None:
    done.append("clean")


@task
async def other() -> None:
    done.append("other")


# ---------------------------------------------------------------- noticed


async def a_then_sleep() -> None:
    await do("a")
    await sleep("1h")
    await do("z")


async def test_a_step_put_before_a_recorded_one_is_named(tmp_path: Path) -> None:
    async def new() -> None:
        await do("a")
        await other()
        await sleep("1h")

    async with attempts(tmp_path) as run:
        refused(
            await over_an_edit(run, a_then_sleep, new),
            "now runs step 'other#1' where step 'sleep#1' is recorded",
        )
    assert done == ["a"]


async def test_a_recorded_step_that_is_gone_is_named_at_the_end(tmp_path: Path) -> None:
    async def new() -> None:
        await do("a")

    async with attempts(tmp_path) as run:
        refused(await over_an_edit(run, a_then_sleep, new), "ended without step 'sleep#1'")


async def test_a_gather_that_is_gone_is_noticed(tmp_path: Path) -> None:
    async def twice(name: str) -> None:
        await do(name)
        await sleep("1h")

    async def old() -> None:
        await gather(twice("l"), twice("r"))

    async def new() -> None:
        await other()

    async with attempts(tmp_path) as run:
        refused(await over_an_edit(run, old, new), "runs step 'other#1' where step 'gather#1[")


# ---------------------------------------------------------------- harmless


async def test_a_mended_flow_goes_on_though_its_clean_up_is_recorded(tmp_path: Path) -> None:
    async def old() -> None:
        try:
            await do("a")
            await do("b")
        finally:
            await clean()

    async def new() -> None:
        try:
            await do("a")
            await do("b")
            await other()
        finally:
            await clean()

    broken.add("b")
    async with attempts(tmp_path) as run:
        await run.first(edition("old", old))
        broken.clear()
        assert (await run.again(edition("new", new))).state is RunState.SUCCEEDED
    assert done == ["a", "b", "clean", "b", "other"]


async def test_what_a_handled_error_left_is_not_missed_after_the_fix(tmp_path: Path) -> None:
    async def old() -> None:
        await do("a")
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            await clean()
            raise

    async def new() -> None:
        await do("a")

    async with attempts(tmp_path) as run:
        assert (await over_an_edit(run, old, new)).state is RunState.SUCCEEDED


async def test_branches_ended_early_by_another_are_not_missed(tmp_path: Path) -> None:
    async def good() -> None:
        await do("good")
        await do("better")

    async def old() -> None:
        try:
            await gather(good(), do("bad"))
        except OSError:
            await clean()
        await sleep("1h")

    async def new() -> None:
        await old()
        await other()

    broken.add("bad")
    async with attempts(tmp_path) as run:
        await run.first(edition("old", old))
        outcome = await run.again(edition("new", new))
        assert outcome.state is RunState.WAITING, outcome.error


async def test_under_one_version_any_edit_is_the_authors_own(tmp_path: Path) -> None:
    async def new() -> None:
        await do("a")
        await other()

    async with attempts(tmp_path) as run:
        outcome = await over_an_edit(run, a_then_sleep, new, version=1)
        assert outcome.state is RunState.SUCCEEDED
    assert done == ["a", "other"]


async def test_another_version_is_compared(tmp_path: Path) -> None:
    async def new() -> None:
        await do("a")
        await other()

    async with attempts(tmp_path) as run:
        await run.first(edition("", a_then_sleep, version=1))
        refused(await run.again(edition("", new, version=2)), "'sleep#1'")


# ---------------------------------------------------------------- provided for


async def with_more() -> None:
    await do("a")
    if patched("more"):
        await other()
    await sleep("1h")
    await do("z")


async def test_an_old_run_past_the_place_keeps_the_old_way(tmp_path: Path) -> None:
    async with attempts(tmp_path) as run:
        outcome = await over_an_edit(run, a_then_sleep, with_more)
        assert outcome.state is RunState.WAITING, outcome.error
    assert done == ["a"]


async def test_an_old_run_before_the_place_takes_the_new_way_and_keeps_to_it(
    tmp_path: Path,
) -> None:
    async with attempts(tmp_path) as run:
        await run.new_run(edition("old", a_then_sleep))
        broken.add("a")
        await run.execute(edition("old", a_then_sleep))
        broken.clear()
        for version in ("new", "newer", "newest"):
            outcome = await run.again(edition(version, with_more))
            assert outcome.state is RunState.WAITING, outcome.error
        assert "patched:more#1" in await run.steps()
    assert done == ["a", "a", "other"]


async def test_in_a_loop_each_turn_decides_for_itself(tmp_path: Path) -> None:
    async def old() -> None:
        for turn in range(3):
            await do(str(turn))
            await sleep("1h")

    async def new() -> None:
        for turn in range(3):
            if patched("loud"):
                done.append(f"loud {turn}")
            await do(str(turn))
            await sleep("1h")

    async with attempts(tmp_path) as run:
        outcome = await over_an_edit(run, old, new)
        assert outcome.state is RunState.WAITING, outcome.error
        assert [each for each in done if "loud" in each] == []
        run.now = lambda: utc_now() + timedelta(hours=2)
        await run.again(edition("new", new))
    assert [each for each in done if "loud" in each] == ["loud 1"]


async def test_the_way_may_be_taken_out_again(tmp_path: Path) -> None:
    async def without() -> None:
        await do("a")
        await other()
        await sleep("1h")
        await do("z")

    async with attempts(tmp_path) as run:
        outcome = await over_an_edit(run, with_more, without)
        assert outcome.state is RunState.WAITING, outcome.error
    assert done == ["a", "other"]


def test_in_def_flows_and_outside_of_runs() -> None:
    @flow
    def plain() -> bool:
        return patched("x")

    assert patched("x")
    assert plain() is True
    assert run_flow(plain).result is True


def test_inside_a_task_it_is_misplaced() -> None:
    @task
    async def asks() -> bool:
        return patched("x")

    @flow
    async def one() -> bool:
        return await asks()

    result = run_flow(one)
    assert result.error is not None and result.error.type == MisplacedTask.__name__
