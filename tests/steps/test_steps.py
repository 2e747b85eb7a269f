"""Steps: recorded once, found again, run again only where that is right."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.attempts import NOW, attempts
from turnout import Fail, Retry, current, flow, gather, retry, sleep, task
from turnout.service.domain.errors import JournalFull, MisplacedTask, StepFailed
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.run import Outcome, RunState
from turnout.testing import run

NOW_AND_THEN = retry(5, delay="1ms", jitter=False)
done: list[str] = []
"""What the tasks really did, in order."""


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


@dataclass
class Receipt:
    id: str
    amount: float


class Refused(Exception):
    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason, code)
        self.code = code


class Declined(Exception):
    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.lock = threading.Lock()  # which nothing keeps


class Untransferable(Exception):
    def __init__(self, left: str, right: str) -> None:
        self.both: Callable[[], str] = lambda: f"{left} {right}"

    def __str__(self) -> str:
        return self.both()


@task
async def charge(name: str) -> Receipt:
    done.append(name)
    return Receipt(name, 1.5)


@task
def weigh(name: str) -> int:
    done.append(name)
    return len(name)


@task
def declines() -> None:
    raise Declined(7, reason="no money")


@task(pool="process")
def declines_elsewhere() -> None:
    raise Declined(7, reason="no money")


fail_at: set[str] = set()


@task
async def fragile(name: str) -> str:
    done.append(name)
    if name in fail_at:
        raise Refused(f"no {name}", 7)
    return name


@pytest.fixture(autouse=True)
def all_well() -> None:
    fail_at.clear()


def message(outcome: Outcome) -> str:
    assert outcome.error is not None, outcome
    return outcome.error.message


@flow(retry=NOW_AND_THEN)
async def two_then_fail() -> list[str]:
    first = await charge("a")
    second = await charge("b")
    assert isinstance(first, Receipt)
    await fragile("c")
    return [first.id, second.id]


async def test_a_retry_goes_on_after_the_last_recorded_step(tmp_path: Path) -> None:
    fail_at.add("c")
    async with attempts(tmp_path) as run:
        outcome = await run.first(two_then_fail)
        assert outcome.state is RunState.RETRYING
        assert outcome.error is not None
        assert outcome.error.step == "fragile#1"
        fail_at.clear()
        outcome = await run.again(two_then_fail)
        assert (outcome.state, outcome.result) == (RunState.SUCCEEDED, b'["a","b"]')
        assert done == ["a", "b", "c", "c"]
        assert list(await run.steps()) == ["charge#1", "charge#2", "fragile#1"]


async def test_a_restart_in_the_middle_runs_only_what_is_not_recorded(tmp_path: Path) -> None:
    gate = asyncio.Event()

    @flow
    async def waits() -> int:
        await charge("a")
        if not gate.is_set():
            await gate.wait()
        await charge("b")
        return 1

    async with attempts(tmp_path) as run:
        await run.new_run(waits)
        async with asyncio.TaskGroup() as tasks:
            attempt = tasks.create_task(run.execute(waits))
            await run.until_recorded("charge#1")
            attempt.cancel()
        gate.set()
        await run.crash()
        assert (await run.execute(waits)).state is RunState.SUCCEEDED
    assert done == ["a", "b"]


@flow(retry=NOW_AND_THEN)
async def catches() -> str:
    try:
        await fragile("a")
    except Refused as error:
        await charge(f"refund {error.code}")
    return await fragile("b")


async def test_an_error_the_flow_caught_is_raised_again_as_itself(tmp_path: Path) -> None:
    fail_at.update(("a", "b"))
    async with attempts(tmp_path) as run:
        assert (await run.first(catches)).state is RunState.RETRYING
        fail_at.clear()  # the task would succeed now, but its failure is a fact
        assert (await run.again(catches)).state is RunState.SUCCEEDED
    assert done == ["a", "refund 7", "b", "b"]


async def test_an_error_keeps_its_type_and_text_whatever_it_holds(tmp_path: Path) -> None:
    seen: list[str] = []

    @task
    async def breaks() -> None:
        raise Untransferable("left", "right")

    @flow(retry=NOW_AND_THEN)
    async def caught() -> None:
        try:
            await breaks()
        except (Untransferable, StepFailed) as error:
            seen.append(f"{type(error).__name__}: {error}")
        await fragile("b")

    fail_at.add("b")
    async with attempts(tmp_path) as run:
        await run.first(caught)
        fail_at.clear()
        await run.again(caught)
    assert seen == ["Untransferable: left right"] * 2


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_an_error_with_a_constructor_of_its_own_is_raised_again_as_itself(pool: str) -> None:
    @flow
    async def careful() -> list[Any]:
        try:
            await (declines.run() if pool == "thread" else declines_elsewhere.run())
        except Declined as error:
            await sleep("1h")
            return [str(error), error.code, repr(error.lock)[:9]]
        return []

    assert run(careful).result == ["7: no money", 7, "<unlocked"]


async def test_a_wrapped_step_error_still_runs_its_step_again(tmp_path: Path) -> None:
    @flow(retry=NOW_AND_THEN)
    async def wraps() -> str:
        try:
            return await fragile("a")
        except Refused as error:
            raise RuntimeError("could not") from error

    fail_at.add("a")
    async with attempts(tmp_path) as run:
        outcome = await run.first(wraps)
        assert outcome.error is not None
        assert (outcome.error.type, outcome.error.step) == ("RuntimeError", "fragile#1")
        fail_at.clear()
        assert (await run.again(wraps)).state is RunState.SUCCEEDED


# ---------------------------------------------------------------- retries of a task


def _flaky(policy: RetryPolicy, errors: list[BaseException]) -> tuple[Any, Any]:
    @task(retry=policy)
    async def flaky() -> str:
        done.append("try")
        if errors:
            raise errors.pop(0)
        return "well"

    @flow(name="flaky_flow")
    async def flaky_flow() -> str:
        return await flaky()

    return flaky, flaky_flow


async def test_a_task_retries_inside_its_attempt_and_journals_the_try(tmp_path: Path) -> None:
    _, flaky_flow = _flaky(NOW_AND_THEN, [OSError("one"), OSError("two")])
    async with attempts(tmp_path) as run:
        outcome = await run.first(flaky_flow)
        assert outcome.result == b'"well"'
        step = (await run.steps())["flaky#1"]
        assert (step.state, step.tries, done) == ("succeeded", 3, ["try"] * 3)


async def test_fail_is_never_retried_by_the_task(tmp_path: Path) -> None:
    _, flaky_flow = _flaky(NOW_AND_THEN, [Fail("no such customer")])
    async with attempts(tmp_path) as run:
        outcome = await run.first(flaky_flow)
        assert (outcome.state, done) == (RunState.FAILED, ["try"])
        assert message(outcome) == "no such customer"


async def test_retry_after_overrides_the_delay(tmp_path: Path) -> None:
    _, flaky_flow = _flaky(retry(1, delay="1h", jitter=False), [Retry(after="1ms")])
    async with attempts(tmp_path) as run:
        async with asyncio.timeout(5):
            assert (await run.first(flaky_flow)).state is RunState.SUCCEEDED


@pytest.mark.parametrize("kind", ["async", "def"])
async def test_a_crash_between_tries_spends_none_and_goes_on_waiting(
    tmp_path: Path, kind: str
) -> None:
    errors: list[BaseException] = [OSError("one")]
    _, flaky_flow = _flaky(retry(1, delay="1h", jitter=False), errors)
    flow_of_kind = flaky_flow if kind == "async" else _flaky_in_thread()
    now = [NOW]

    async with attempts(tmp_path, now=lambda: now[0]) as run:
        first = await run.first(flow_of_kind)
        assert (first.state, first.due_at) == (RunState.RETRYING, NOW + timedelta(hours=1))
        assert (await run.steps())["flaky#1"].state == "retrying"
        await run.reclaim()
        await run.crash()
        now[0] += timedelta(minutes=20)
        early = await run.execute(flow_of_kind)
        assert (early.state, early.due_at) == (RunState.RETRYING, NOW + timedelta(hours=1))
        now[0] += timedelta(minutes=40)
        assert (await run.again(flow_of_kind)).state is RunState.SUCCEEDED
        assert (await run.steps())["flaky#1"].tries == 2


def _flaky_in_thread() -> Any:
    tries: list[int] = []

    @task(name="flaky", retry=retry(1, delay="1h", jitter=False))
    def flaky() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("one")

    @flow
    def flaky_flow() -> None:
        flaky()

    return flaky_flow


async def test_a_timeout_names_the_task(tmp_path: Path) -> None:
    @task(timeout="10ms")
    async def slow() -> None:
        await asyncio.Event().wait()

    @flow
    async def hurried() -> None:
        await slow()

    async with attempts(tmp_path) as run:
        outcome = await run.first(hurried)
        assert message(outcome) == "task 'slow' did not end within its timeout of 0.01s"
        assert outcome.error is not None and outcome.error.type == "TimeoutError"


# ---------------------------------------------------------------- sync flows


@flow(retry=NOW_AND_THEN)
def in_a_thread() -> list[int]:
    first = weigh("a")
    several = weigh.map(["bb", "ccc", "dddd"], limit=2)
    if "thread" in fail_at:
        raise OSError("not yet")
    return [first, *several]


async def test_a_def_flow_records_its_steps_too(tmp_path: Path) -> None:
    fail_at.add("thread")
    async with attempts(tmp_path, threads=1) as run:  # one thread: steps need none of the flows'
        assert (await run.first(in_a_thread)).state is RunState.RETRYING
        fail_at.clear()
        assert (await run.again(in_a_thread)).result == b"[1,2,3,4]"
        assert sorted(done) == ["a", "bb", "ccc", "dddd"]
        assert next(iter(await run.steps())) == "weigh#1"
        assert {"weigh.map#1[0]", "weigh.map#1[2]"} <= set(await run.steps())


async def test_a_timed_out_thread_holds_its_call_until_it_returns(tmp_path: Path) -> None:
    release, started = threading.Event(), threading.Event()

    @flow(timeout="20ms")
    def stuck() -> None:
        started.set()
        release.wait(5)
        weigh("never: the attempt is over")

    async with attempts(tmp_path) as run:
        await run.new_run(stuck)
        async with asyncio.TaskGroup() as tasks:
            attempt = tasks.create_task(run.execute(stuck))
            await asyncio.to_thread(started.wait, 5)
            await asyncio.wait([attempt], timeout=0.1)
            assert not attempt.done()
            release.set()
        assert message(attempt.result()) == "flow 'stuck' did not end within its timeout of 0.02s"
    assert done == []


async def test_a_task_in_a_def_flow_is_told_when_its_time_is_over(tmp_path: Path) -> None:
    @task(timeout="20ms", fallback=lambda error: str(error))
    def polls() -> str:
        while not current().cancelled:
            time.sleep(0.001)
        return "late"

    @flow
    def patient() -> list[Any]:
        return [polls(), current().cancelled]

    async with attempts(tmp_path) as run:
        result = (await run.first(patient)).result
    assert result == b"""["task 'polls' did not end within its timeout of 0.02s",false]"""


async def test_a_sync_task_from_an_async_flow_runs_off_the_loop(tmp_path: Path) -> None:
    @task
    def where() -> str:
        return threading.current_thread().name

    @flow
    async def asks() -> str:
        return await where.run()

    async with attempts(tmp_path) as run:
        assert (await run.first(asks)).result == b'"turnout-step_0"'


# ---------------------------------------------------------------- branches


async def test_every_branch_finds_its_own_steps_again(tmp_path: Path) -> None:
    async def side(name: str, pause: int) -> str:
        for _ in range(pause):
            await asyncio.sleep(0)
        one = await charge(f"{name}1")
        two = await charge(f"{name}2")
        return one.id + two.id

    @flow(retry=NOW_AND_THEN)
    async def branches(pauses: dict[str, int]) -> list[str]:
        both = await gather(side("left", pauses["left"]), side("right", pauses["right"]))
        many = await fragile.map(["x", "y", "z"], limit=2)
        if "end" in fail_at:
            raise OSError
        return [*both, *many]

    fail_at.add("end")
    async with attempts(tmp_path) as run:
        assert (await run.first(branches, {"left": 9, "right": 0})).state is RunState.RETRYING
        before = sorted(done)
        fail_at.clear()
        outcome = await run.again(branches)
        assert outcome.result == b'["left1left2","right1right2","x","y","z"]'
        assert sorted(done) == before
        assert sorted(await run.steps()) == [
            "fragile.map#1[0]", "fragile.map#1[1]", "fragile.map#1[2]",
            "gather#1[0]/charge#1", "gather#1[0]/charge#2",
            "gather#1[1]/charge#1", "gather#1[1]/charge#2",
        ]  # fmt: skip


async def test_branches_that_fail_together_all_run_again(tmp_path: Path) -> None:
    @flow(retry=NOW_AND_THEN)
    async def both() -> list[str]:
        return list(await gather(fragile("a"), fragile("b")))

    fail_at.update(("a", "b"))
    async with attempts(tmp_path) as run:
        outcome = await run.first(both)
        assert outcome.error is not None and outcome.error.step == "fragile#1"
        fail_at.clear()
        assert (await run.again(both)).result == b'["a","b"]'


async def test_map_bounds_its_fan_out(tmp_path: Path) -> None:
    running, most = 0, 0

    @task
    async def counted(_: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    @flow
    async def wide() -> None:
        await counted.map(range(20), limit=3)

    async with attempts(tmp_path) as run:
        assert (await run.first(wide)).state is RunState.SUCCEEDED
    assert most == 3
    with pytest.raises(ValueError, match="at most 10,000"):
        await counted.map(range(10_001))


async def test_errors_asked_for_as_values_are_facts(tmp_path: Path) -> None:
    @flow(retry=NOW_AND_THEN)
    async def collects() -> list[str]:
        found = await gather(fragile("a"), fragile("b"), return_exceptions=True)
        if "end" in fail_at:
            raise OSError
        return [str(each) for each in found]

    fail_at.update(("a", "end"))
    async with attempts(tmp_path) as run:
        await run.first(collects)
        fail_at.clear()
        outcome = await run.again(collects)
        assert outcome.result == b"""["('no a', 7)","b"]"""


# ---------------------------------------------------------------- calls out of place


async def _outcome(tmp_path: Path, declared: Any) -> Outcome:
    async with attempts(tmp_path) as run:
        return await run.first(declared)


async def test_a_task_in_an_asyncio_task_of_its_own_names_gather(tmp_path: Path) -> None:
    @flow
    async def spawns() -> None:
        async def elsewhere() -> None:
            await charge("a")

        async with asyncio.TaskGroup() as tasks:
            await tasks.create_task(elsewhere())

    outcome = await _outcome(tmp_path, spawns)
    assert re.search(r"asyncio task or thread.*gather", message(outcome))
    assert done == []


async def test_asyncio_gather_of_calls_is_fine_because_places_are_taken_when_called(
    tmp_path: Path,
) -> None:
    @flow
    async def old_habit() -> int:
        return len(await asyncio.gather(charge("a"), charge("b")))

    assert (await _outcome(tmp_path, old_habit)).result == b"2"


async def test_a_task_in_a_thread_of_its_own_names_gather(tmp_path: Path) -> None:
    caught: list[str] = []

    def elsewhere() -> None:
        try:
            weigh("a")
        except MisplacedTask as error:
            caught.append(str(error))

    @flow
    def threads() -> None:
        own = threading.Thread(target=elsewhere)
        own.start()
        own.join()

    await _outcome(tmp_path, threads)
    assert "thread turnout did not open" in caught[0] and "gather" in caught[0]
    assert done == []


async def test_a_sync_task_on_the_loop_names_run(tmp_path: Path) -> None:
    @flow
    async def blocks() -> int:
        return weigh("a")

    assert "await weigh.run(…)" in message(await _outcome(tmp_path, blocks))


async def test_an_async_task_in_a_def_flow_names_async_def(tmp_path: Path) -> None:
    @flow
    def cannot_await() -> None:
        charge("a")  # type: ignore[unused-coroutine]  # what is under test

    assert "async def" in message(await _outcome(tmp_path, cannot_await))


async def test_inside_a_step_everything_is_one_piece(tmp_path: Path) -> None:
    @task
    async def outer() -> list[str]:
        return [each.id for each in await gather(charge("a"), charge("b"))]

    @flow
    async def nests() -> list[str]:
        return await outer()

    async with attempts(tmp_path) as run:
        assert (await run.first(nests)).result == b'["a","b"]'
        assert list(await run.steps()) == ["outer#1"]


# ---------------------------------------------------------------- what cannot be kept


async def test_a_result_that_cannot_be_kept_stops_the_flow_before_its_next_step(
    tmp_path: Path,
) -> None:
    @task(retry=NOW_AND_THEN)
    async def returns_a_lock() -> Any:
        done.append("lock")
        return threading.Lock()

    @flow(retry=NOW_AND_THEN)
    async def keeps() -> None:
        await returns_a_lock()
        await charge("b")

    outcome = await _outcome(tmp_path, keeps)
    assert (outcome.state, done) == (RunState.FAILED, ["lock"])
    assert message(outcome).startswith("step 'returns_a_lock#1' of flow 'keeps': the result, lock")


async def test_code_that_changed_under_a_recorded_step_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(two_then_fail), "code_version", "of the file as it was")
    async with attempts(tmp_path) as run:
        fail_at.add("c")
        await run.first(two_then_fail)

        @flow(name="two_then_fail")
        async def changed() -> None:
            await weigh.run("new")
            await charge("a")

        vars(changed)["code_version"] = "of the file as it is now"
        outcome = await run.again(changed)
    assert outcome.error is not None and outcome.error.type == "code_changed"
    assert re.search(r"runs step 'weigh#1' where step '\w+#\d' is recorded", message(outcome))
    assert "new" not in done


async def test_a_full_disk_holds_the_step_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnout.service.steps.recording.FULL_DISK_WAIT_SECONDS", 0.001)

    @flow
    async def pays() -> None:
        await charge("a")

    async with attempts(tmp_path) as run:
        record, refusals = run.journal.record_step, [JournalFull("full"), JournalFull("full")]

        async def sometimes_full(*args: Any) -> None:
            if refusals:
                raise refusals.pop()
            await record(*args)

        monkeypatch.setattr(run.journal, "record_step", sometimes_full)
        assert (await run.first(pays)).state is RunState.SUCCEEDED
        assert "charge#1" in await run.steps()
    assert done == ["a"]


async def test_step_seconds_are_measured(tmp_path: Path) -> None:
    @flow
    async def pays() -> None:
        await charge("a")

    async with attempts(tmp_path) as run:
        await run.first(pays)
        assert 'turnout_step_seconds_count{flow="pays",task="charge"} 1.0' in (
            run.metrics.render().decode()
        )


async def test_keys_are_stable_over_retries_and_differ_by_place(tmp_path: Path) -> None:
    keys: list[str] = []

    @task
    async def sends() -> None:
        keys.append(current().key("mail"))
        if len(keys) < 3:
            raise OSError("again")

    @flow(retry=NOW_AND_THEN)
    async def mails() -> None:
        keys.append(current().key("mail"))
        await sends()

    async with attempts(tmp_path) as run:
        await run.first(mails)
        await run.again(mails)
    in_flow, in_step = keys[::2], keys[1::2]
    assert len(set(in_flow)) == len(set(in_step)) == 1
    assert in_flow[0] != in_step[0]
