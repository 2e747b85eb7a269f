"""State between runs: what a run keeps for the next one, if it succeeds, and only then."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.inside import emit_now, quiet
from turnout import Fail, Retry, cron, current, event, flow, sleep, task
from turnout.service.app.run_input import of_run, put
from turnout.service.domain.errors import MisplacedTask, NotKept
from turnout.service.journal.records import STATE_KEY
from turnout.service.operate.verbs import ClearState
from turnout.service.operate.verbs import Retry as RetryVerb
from turnout.service.project.check import check
from turnout.service.steps.flow_state import MAX_STATE_BYTES
from turnout.testing import run, serve, typed_event

PAGES = {0: ["a", "b"], 1: ["c"], 2: ["d", "e"]}


@task
async def fetch(page: int) -> list[str]:
    return PAGES.get(page, [])


@flow(on=cron("* * * * *"), concurrency=1)
async def poll() -> list[str]:
    page = current().state.get(default=0)
    items = await fetch(page)
    current().state.set(page + 1)
    return items


async def test_each_run_goes_on_where_the_last_one_has_ended() -> None:
    async with serve(poll) as service:
        results = [(await service.run(poll)).result for _ in range(4)]
        assert results == [["a", "b"], ["c"], ["d", "e"], []]
        assert await service.state(poll) == 4


@pytest.mark.parametrize("crash_at", [1, 2])
async def test_a_crash_neither_skips_nor_doubles_a_page(crash_at: int) -> None:
    @flow
    async def twice() -> list[str]:
        page = current().state.get(default=0)
        items = await fetch(page)
        current().state.set(page + 1)
        return items + await fetch(page)

    async with serve(twice) as service:
        first = await service.run(twice, crash_at=crash_at)
        assert first.result == ["a", "b"] * 2
        assert (await service.run(twice)).result == ["c"] * 2


async def test_the_value_that_was_read_is_the_same_in_every_attempt() -> None:
    seen: list[Any] = []

    @flow
    async def slow() -> None:
        seen.append(current().state.get(default=0))
        current().state.set(seen[-1] + 1)
        await fetch(7)
        await sleep("1h")
        seen.append(current().state.get(default=0))  # what was set
        current().state.set(seen[0] + 5)

    async with serve(slow) as service:
        await service.run(slow)
        assert seen == [0, 0, 1]
        await service.restart()
        assert await service.state(slow) == 5


async def test_a_run_that_fails_or_is_skipped_keeps_nothing() -> None:
    fails = [True]

    @flow
    async def fragile() -> None:
        current().state.set("moved")
        if fails:
            raise Fail("not now")

    async with serve(fragile) as service:
        assert (await service.run(fragile)).state == "failed"
        assert await service.state(fragile) is None
        fails.clear()
        await service.run(fragile)
        assert await service.state(fragile) == "moved"


async def test_a_retried_attempt_keeps_what_its_last_try_has_set() -> None:
    @flow(retry=3)
    async def stubborn() -> None:
        current().state.set(current().attempt)
        if current().attempt < 3:
            raise Retry("not yet")

    async with serve(stubborn) as service:
        assert (await service.run(stubborn)).state == "succeeded"
        assert await service.state(stubborn) == 3


async def test_each_ordering_key_has_a_state_of_its_own() -> None:
    @flow(on=event("read"), ordered_by=lambda event: event.data["meter"])
    async def meter(read: dict[str, Any]) -> int:
        total: int = current().state.get(default=0) + read["units"]
        current().state.set(total)
        return total

    async with serve(meter) as service:
        for name, units, total in (("a", 3, 3), ("b", 5, 5), ("a", 4, 7)):
            read = typed_event(meter, {"meter": name, "units": units})
            (result,) = await service.emit(read)
            assert result.result == total
        assert [await service.state(meter, key=key) for key in ("a", "b", "")] == [7, 5, None]


async def test_a_run_whose_state_another_one_has_changed_starts_over_from_it() -> None:
    fetched: list[int] = []

    @task
    async def take(page: int) -> int:
        fetched.append(page)
        return page

    @flow(on=event("go"), awaits=event("on"))
    async def racing(which: dict[str, str]) -> int:
        before = await take(-1)
        page = current().state.get(default=0)
        got = await take(page)
        if which["name"] == "slow" and got == 0:
            await sleep("1h")
        current().state.set(page + 1)
        return got + before

    async with serve(racing) as service:
        (receipt,) = await emit_now(
            service, None, typed_event(racing, {"name": "slow"}), trigger="event:go"
        )
        slow = receipt.runs[0]
        await quiet(service)
        (quick,) = await service.emit(typed_event(racing, {"name": "quick"}))
        assert quick.result == -1
        ended = await service.ended(slow)
        assert (ended.state, ended.result, ended.attempts) == ("succeeded", 0, 1)
        assert fetched == [-1, 0, -1, 0, 1]  # what stood before the state was not done again
        assert await service.state(racing) == 2


async def test_a_success_that_is_retried_by_an_operator_goes_on_from_the_newest_state() -> None:
    async with serve(poll) as service:
        first = await service.run(poll)
        await service.run(poll)
        await service.process.operator.do(RetryVerb(first.id))
        again = await service.ended(first.id)
        assert (again.state, again.result) == ("succeeded", ["d", "e"])
        assert await service.state(poll) == 3


async def test_an_earlier_run_that_is_tried_again_apart_has_the_state_it_had_read(
    tmp_path: Path,
) -> None:
    async with serve(poll) as service:
        for _ in range(2):
            last = await service.run(poll)
        given = await of_run(service.journal, last.id, "poll")
        assert given.earlier is not None
        assert [step.key for step in given.earlier.steps] == [STATE_KEY, "fetch#1"]
    async with serve(poll) as elsewhere:
        run_id = await put(elsewhere.journal, given.event, given.earlier)
        elsewhere.process.dispatcher.reread_queue("poll")
        again = await elsewhere.ended(run_id)
        assert (again.state, again.result) == ("succeeded", ["c"])
        assert await elsewhere.state(poll) == 2


async def test_a_run_that_has_read_what_an_operator_clears_starts_over_from_nothing() -> None:
    seen: list[int] = []
    may_end = asyncio.Event()

    @flow(concurrency=1)
    async def counts() -> None:
        seen.append(current().state.get(default=0))
        if seen[-1] == 1:
            await may_end.wait()
        current().state.set(seen[-1] + 1)

    async with serve(counts) as service:
        await service.run(counts)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.run(counts))
            while len(seen) < 2:  # noqa: ASYNC110  the run itself tells
                await asyncio.sleep(0.01)
            assert await service.process.operator.do(ClearState("counts", by="ada")) == 1
            assert await service.state(counts) is None
            may_end.set()
        assert seen == [0, 1, 0]
        assert await service.state(counts) == 1


async def test_a_renamed_flow_has_the_state_of_its_old_name(tmp_path: Path) -> None:
    @flow
    async def counted() -> None:
        current().state.set(current().state.get(default=0) + 1)

    async with serve(counted) as service:
        await service.run(counted)
        await service.journal.rename_flows({"counted": "renamed"})
        assert await service.state("renamed") == 1
        assert await service.state(counted) is None


async def test_none_is_no_value() -> None:
    @flow
    async def forgets(which: str) -> str:
        before: str = current().state.get(default="nothing")
        current().state.set(None if which == "forget" else which)
        return before

    async with serve(forgets) as service:
        given = [(await service.run(forgets, word)).result for word in ("x", "forget", "y")]
        assert given == ["nothing", "x", "nothing"]


def test_a_def_flow_keeps_state_too() -> None:
    @flow
    def counted() -> int:
        count: int = current().state.get(default=1)
        current().state.set({"at": [count]})
        return count

    assert run(counted).result == 1


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("nan"), r"JSON would not give this value back as it is \(float\)"),
        ({1: "a"}, r"back as it is \(dict\); keep text, numbers, lists, and dicts with text keys"),
        ((1, 2), r"back as it is \(tuple\)"),
        (2**70, r"back as it is \(int\)"),
        ("x" * MAX_STATE_BYTES, r"the value has 65,538 bytes and the limit is 65,536; keep a pos"),
    ],
)
def test_what_cannot_be_kept_is_refused_where_it_is_set(value: Any, problem: str) -> None:
    @flow
    async def keeps() -> None:
        with pytest.raises(NotKept, match=r"state\.set\(…\), called at .*test_flow_state\.py:\d+"):
            current().state.set(value)
        with pytest.raises(NotKept, match=problem):
            current().state.set(value)

    result = run(keeps)
    assert result.state == "succeeded", result.error


def test_a_task_has_no_state() -> None:
    @task
    async def nosy() -> None:
        with pytest.raises(MisplacedTask, match=r"current\(\)\.state\.get\(\), called at .*:\d+"):
            current().state.get()
        with pytest.raises(MisplacedTask, match="read it in the flow and pass it to the task"):
            current().state.set(1)

    @flow
    async def asks() -> None:
        await nosy()

    result = run(asks)
    assert result.state == "succeeded", result.error


def test_outside_a_run_nothing_is_kept() -> None:
    assert asyncio.run(poll()) == ["a", "b"]
    assert asyncio.run(poll()) == ["a", "b"]
    with pytest.raises(NotKept):
        current().state.set(object())


CHECKED = """
from turnout import current, flow, limit

@flow{options}
async def poll() -> None:
    current().state.set(current().state.get(default=0) + 1)
"""


@pytest.mark.parametrize(
    ("options", "is_warned"),
    [
        ("", True),
        ("(concurrency=2)", True),
        ("(concurrency=limit(1, per=lambda event: 1))", True),
        ("(concurrency=1)", False),
        ('(concurrency=limit("poll", 1))', False),
        ("(ordered_by=lambda event: event.data)", False),
        ('(mode="skip", timeout="1h")', False),
    ],
)
def test_check_wants_one_run_at_a_time(tmp_path: Path, options: str, is_warned: bool) -> None:
    file = tmp_path / "flows.py"
    file.write_text(CHECKED.replace("{options}", options))
    found = check([file])
    assert found.problems == ()
    warned = [str(each) for each in found.warnings if "keeps state" in str(each)]
    words = (
        f"{file}:4: flow 'poll' keeps state between runs, and several of them may run at once: "
        "a run whose state another one has changed starts over; write concurrency=1, or "
        "ordered_by= for a state of each key"
    )
    assert warned == [words] * is_warned
