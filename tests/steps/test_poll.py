"""`poll`: a run looks at something outside now and then, and holds nothing between the looks."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.support.inside import emit_now, serve_instead
from turnout import (
    Pending,
    PollTimeout,
    current,
    dependency,
    event,
    first,
    flow,
    gather,
    limit,
    poll,
    retry,
    sleep,
    task,
    wait_for,
)
from turnout.service.domain.errors import StepFailed
from turnout.service.domain.run import RunState
from turnout.service.operate.documents import post_mortem
from turnout.service.operate.verbs import Cancel, Pause, Resume
from turnout.service.operate.verbs import Retry as RetryRun
from turnout.testing import Service, run, serve, typed_event
from turnout.testing.clock import START
from turnout.testing.events import hand_event

looks: list[tuple[timedelta, str]] = []
"""When each look was made, after the start, and its idempotency key."""

outside: dict[str, Any] = {}
"""What the looks find: a value, or an error, by name; else nothing yet."""

clocks: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    looks.clear()
    outside.clear()
    clocks.clear()


def seen(name: str) -> Any:
    looks.append((clocks[0].now() - START if clocks else timedelta(0), current().key()))
    found = outside.get(name)
    if isinstance(found, Exception):
        raise found
    return Pending(f"{len(looks)} looked") if found is None else found


def times() -> list[timedelta]:
    return [at for at, _ in looks]


@task
async def ready(name: str) -> str | Pending:
    current().log.info("look.made")
    return seen(name)  # type: ignore[no-any-return]  # what the test has put there


@flow(concurrency=1)
async def polls(name: str) -> str:
    return await poll(ready, name, every="10m", timeout="1d")


@flow
async def polls_all_day(name: str) -> str:
    return await poll(ready, name, every="30m", timeout="1d")


@flow
async def other() -> str:
    return "other"


async def begun(service: Service, flow_: Any, data: Any) -> str:
    """Start a run, with the clock at hand; returns its id."""
    clocks[:] = [service.clock]
    (result,) = (
        await service.emit(typed_event(flow_, data))
        if flow_.triggers
        else [await started(service, flow_, data)]
    )
    return str(result.id)


async def started(service: Service, flow_: Any, data: Any) -> Any:
    """Start a run and leave it at its first wait."""
    (receipt,) = await emit_now(service, flow_, hand_event(data, at=service.clock.now()))
    await service.advance("0s")
    return await service.look(receipt.runs[0])


async def test_a_day_of_looks_holds_no_slot_and_each_comes_when_it_is_due() -> None:
    async with serve(polls_all_day, other, concurrency=1) as service:
        run_id = await begun(service, polls_all_day, "report")
        for _ in range(6):
            await service.advance("4h")
            assert (await service.run(other)).result == "other"
            await service.journal.probe()
        state = (await service.look(run_id)).state
        assert not service.process.dispatcher.running
    late = [at - timedelta(minutes=30) * number for number, at in enumerate(times())]
    assert len(late) == 49, "the first at once, the last at the end of the day"
    assert max(late) <= timedelta(seconds=1)
    assert state == RunState.FAILED


async def test_it_returns_what_a_look_finds_and_only_one_row_is_kept() -> None:
    async with serve(polls) as service:
        run_id = await begun(service, polls, "report")
        await service.advance("35m")
        waiting = await service.look(run_id)
        assert (waiting.state, list(waiting.steps)) == ("waiting", ["poll#1"])
        outside["report"] = "report.csv"
        await service.advance("5m")
        result = await service.look(run_id)
        journal_run = await service.journal.run(run_id)
        assert journal_run is not None
        attempts = await service.journal.attempts(journal_run.seq)
    assert (result.state, result.result, result.attempts) == ("succeeded", "report.csv", 1)
    assert list(result.steps) == ["poll#1"]
    assert result.steps["poll#1"].tries == len(looks) == 5
    assert len({key for _, key in looks}) == 5, "each look is a call of its own"
    [attempt] = attempts
    assert attempt.log is not None and attempt.log.count(b"look.made") == 1, "of the last look"


async def test_people_see_what_is_polled_how_often_and_when_next() -> None:
    async with serve(polls) as service:
        run_id = await begun(service, polls, "report")
        await service.advance("25m")
        document = await post_mortem(service.journal, run_id)
        await service.process.operator.do(Cancel(run_id))
    assert document["waits_for"] == (
        "for a result: polls ready, look 4, next at 2026-01-01T00:30:00Z, for 20m of 1d; "
        "the last one said: 3 looked"
    )
    facts = document["waiting"]["facts"]
    assert (facts["poll"], facts["looks"], facts["step"]) == ("ready", 3, "poll#1")
    assert "call" not in document["steps"][0]["result"], "a pickle is nobody's business"


async def test_it_goes_on_over_a_crash_and_repeats_only_the_look_that_was_cut_off() -> None:
    async with serve(holds) as service:
        run_id = await begun(service, holds, "report")
        await service.advance("10m")
        outside["hold"] = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            advancing = tasks.create_task(service.advance("10m"))
            while len(looks) < 3:  # noqa: ASYNC110  the third one hangs when the process dies
                await asyncio.sleep(0.001)
            advancing.cancel()
        outside.pop("hold")
        await service.restart()
        await service.advance("10m")
        outside["report"] = "there"
        result = await service.ended(run_id)
    assert result.result == "there"
    keys = [key for _, key in looks]
    assert keys[2] == keys[3], "the look that was cut off has the same key"
    assert len(set(keys)) == len(keys) - 1


@task
async def held(name: str) -> str | Pending:
    found = seen(name)
    if "hold" in outside:
        await outside["hold"].wait()
    return found  # type: ignore[no-any-return]  # what the test has put there


@flow
async def holds(name: str) -> str:
    return await poll(held, name, every="10m", timeout="1d")


async def test_a_look_that_keeps_killing_the_process_fails_its_run() -> None:
    outside["hold"] = asyncio.Event()
    async with serve(holds) as service:
        run_id = ""
        for death in range(5):
            async with asyncio.TaskGroup() as tasks:
                if death == 0:
                    run_id = (await starting(service)).runs[0]
                going = tasks.create_task(service.advance("1s"))
                while len(looks) < death + 1:  # noqa: ASYNC110  it hangs when the process dies
                    await asyncio.sleep(0.001)
                going.cancel()
            await service.restart()
        result = await service.ended(run_id)
    assert result.error is not None and result.error.type == "process_died"
    assert len(looks) == 5
    assert len({key for _, key in looks}) == 1


async def starting(service: Service) -> Any:
    (receipt,) = await emit_now(service, holds, hand_event("x", at=service.clock.now()))
    return receipt


# ---------------------------------------------------------------- errors of a look


@task(retry=retry(2, delay="2s", factor=1, jitter=False))
async def shaky(name: str) -> str | Pending:
    return seen(name)  # type: ignore[no-any-return]  # what the test has put there


@flow
async def polls_shaky(name: str) -> str:
    return await poll(shaky, name, every="1m")


async def test_a_failing_look_is_tried_again_as_its_task_says_then_the_poll_fails() -> None:
    async with serve(polls_shaky) as service:
        clocks[:] = [service.clock]
        outside["x"] = OSError("no route")
        result = await service.run(polls_shaky, "x")
    assert result.error is not None
    assert (result.error.type, result.error.message) == ("OSError", "no route")
    assert result.error.step == "poll#1"
    assert times() == [timedelta(seconds=2 * number) for number in range(3)]
    assert len({key for _, key in looks}) == 1, "the tries of one look share its key"


@task(retry=retry(1, delay="1h", factor=1, jitter=False))
def patient(name: str) -> str | Pending:
    return seen(name)  # type: ignore[no-any-return]  # what the test has put there


@flow(retry=1)
async def polls_patiently(name: str) -> str:
    return await poll(patient, name, every="1m", timeout=None)


async def test_a_long_backoff_of_a_look_gives_the_slot_back_and_spends_no_attempt() -> None:
    async with serve(polls_patiently, other, concurrency=1) as service:
        outside["x"] = OSError("no route")
        run_id = await begun(service, polls_patiently, "x")
        waiting = await service.look(run_id)
        assert (waiting.state, waiting.attempts) == ("waiting", 0)
        assert (await service.run(other)).result == "other"
        await service.restart()  # tries are counted over a restart
        outside["x"] = "there"
        result = await service.ended(run_id)
    assert (result.result, result.took) == ("there", timedelta(hours=1))


@flow(retry=retry(1, delay="1h", jitter=False))
async def polls_again(name: str) -> str:
    return await poll(ready, name)


async def test_a_poll_that_failed_begins_anew_with_the_next_attempt() -> None:
    async with serve(polls_again) as service:
        outside["x"] = OSError("it is gone")
        run_id = await begun(service, polls_again, "x")
        assert (await service.look(run_id)).state == "retrying"
        outside["x"] = "there"
        result = await service.ended(run_id)
    assert (result.result, result.attempts) == ("there", 2)


@task(fallback=lambda error: Pending(str(error)))
async def forgiving(name: str) -> str | Pending:
    return seen(name)  # type: ignore[no-any-return]  # what the test has put there


@flow
async def polls_forgiving(name: str) -> str:
    return await poll(forgiving, name, every="1m")


async def test_a_fallback_stands_for_a_look_that_fails() -> None:
    async with serve(polls_forgiving) as service:
        outside["x"] = OSError("no route")
        run_id = await begun(service, polls_forgiving, "x")
        await service.advance("3m")
        outside["x"] = "there"
        result = await service.ended(run_id)
    assert (result.result, len(looks)) == ("there", 5)


# ---------------------------------------------------------------- the end of its time


@flow
async def gives_up(name: str) -> list[str]:
    try:
        await poll(ready, name, every="4m", timeout="10m")
    except PollTimeout as error:
        await sleep("1h")
        return [type(error).__name__, str(error)]
    return []


async def test_the_last_look_is_at_the_end_of_its_time_then_it_is_a_named_error() -> None:
    async with serve(gives_up) as service:
        clocks[:] = [service.clock]
        result = await service.run(gives_up, "x")
    assert result.result == [
        "PollTimeout",
        "step 'poll#1' of flow 'gives_up' polled 'ready' for 10m, and the last of 4 looks found "
        "nothing yet: 3 looked",
    ]
    assert times() == [timedelta(minutes=each) for each in (0, 4, 8, 10)]
    assert issubclass(PollTimeout, TimeoutError)


async def test_after_a_stop_past_its_time_it_looks_once_more() -> None:
    async with serve(polls) as service:
        run_id = await begun(service, polls, "x")
        outside["x"] = "there"
        service.clock.set(START + timedelta(days=3))
        await service.restart()
        result = await service.ended(run_id)
    assert (result.result, len(looks)) == ("there", 2)


# ---------------------------------------------------------------- beside other waits

cancelled = event("job.cancelled")


@flow(on=event("job.begun"), awaits=cancelled)
async def whichever(name: str) -> list[Any]:
    match await first(poll(ready, name, every="10m"), wait_for(cancelled), sleep("35m")):
        case (0, value):
            return ["found", value]
        case (1, told):
            return ["cancelled", told.data]
        case which, _:
            return ["over", which]


async def test_the_first_of_a_poll_and_others() -> None:
    async with serve(whichever) as service:
        outside["a"] = "there"
        (found,) = await service.emit(typed_event(whichever, "a"))
        found = await service.ended(found.id)
        (called_off,) = await service.emit(typed_event(whichever, "b"))
        await service.advance("15m")
        before = len(looks)
        await service.emit(typed_event(cancelled, "b"))
        called_off = await service.look(called_off.id)
        (over,) = await service.emit(typed_event(whichever, "c"))
        await service.advance("2h")
        over = await service.look(over.id)
    assert found.result == ["found", "there"]
    assert called_off.result == ["cancelled", "b"]
    assert over.result == ["over", 2]
    assert over.steps["poll#1"].state == "dropped"
    assert len(looks) == before + 4, "a poll that came second looks no more"


@flow(on=event("both.begun"), awaits=cancelled)
async def both(names: list[str]) -> list[Any]:
    one, two, told = await gather(
        poll(ready, names[0], every="10m"), poll(ready, names[1], every="15m"), wait_for(cancelled)
    )
    return [one, two, told.data]


async def test_several_polls_of_a_run_look_each_at_its_time() -> None:
    async with serve(both) as service:
        clocks[:] = [service.clock]
        (begun_,) = await service.emit(typed_event(both, ["a", "b"]))
        await service.advance("31m")
        assert sorted(at.seconds // 60 for at in times()) == [0, 0, 10, 15, 20, 30, 30]
        outside.update(a="A")
        await service.advance("10m")
        outside.update(b="B")
        await service.advance("1h")
        assert (await service.look(begun_.id)).state == "waiting"
        count = len(looks)
        await service.advance("1h")
        assert len(looks) == count, "both are over"
        await service.emit(typed_event(cancelled, 7))
        result = await service.look(begun_.id)
    assert result.result == ["A", "B", 7]


@task
async def breaks() -> None:
    raise OSError("broken")


@flow
async def beside_a_failure(name: str) -> str:
    try:
        await gather(poll(ready, name, every="1m"), after_a_while())
    except StepFailed as error:
        await sleep("1h")
        return str(error)
    return "both"


@flow
async def after_a_while() -> None:
    await sleep("90s")
    await breaks()


async def test_a_poll_beside_a_branch_that_failed_looks_no_more() -> None:
    async with serve(beside_a_failure, after_a_while) as service:
        clocks[:] = [service.clock]
        result = await service.run(beside_a_failure, "x")
    assert result.result.startswith("broken (run ")
    assert times() == [timedelta(0), timedelta(minutes=1)]


bodies: list[timedelta] = []


@flow
async def quick() -> None: ...


@flow
async def naps() -> None:
    await sleep("90s")


@flow
async def behind_a_failure(name: str) -> str:
    bodies.append(clocks[0].now() - START)

    async def sleeps() -> None:
        await sleep("150s")

    with suppress(OSError):
        await gather(breaks(), quick(), naps(), sleeps())
    return await poll(ready, name, every="1m", timeout="1h")


@pytest.mark.slow
async def test_what_a_failed_gather_has_left_does_not_run_the_flow_at_every_check() -> None:
    bodies.clear()
    async with serve(behind_a_failure, quick, naps) as service:
        clocks[:] = [service.clock]
        result = await service.run(behind_a_failure, "x")
    assert result.error is not None and result.error.type == "PollTimeout"
    assert len(times()) == 61 and result.attempts == 1
    # The first, when something that was left is over (once for each), and the end.
    assert len(bodies) <= 6, bodies


# ---------------------------------------------------------------- what operators do


async def test_a_cancelled_run_looks_no_more() -> None:
    async with serve(polls) as service:
        run_id = await begun(service, polls, "x")
        await service.process.operator.do(Cancel(run_id))
        await service.advance("1d")
        result = await service.look(run_id)
    assert (result.state, len(looks)) == ("cancelled", 1)


async def test_a_paused_flow_looks_when_it_is_resumed() -> None:
    async with serve(polls) as service:
        run_id = await begun(service, polls, "x")
        await service.process.operator.do(Pause("polls"))
        await service.advance("2h")
        assert len(looks) == 1
        outside["x"] = "there"
        await service.process.operator.do(Resume("polls"))
        result = await service.ended(run_id)
    assert (result.result, result.took) == ("there", timedelta(hours=2))


async def test_a_retry_from_the_poll_looks_anew_and_one_after_it_does_not() -> None:
    async with serve(polls) as service:
        outside["x"] = "there"
        run_id = (await service.run(polls, "x")).id
        await service.process.operator.do(RetryRun(run_id))
        assert (await service.ended(run_id)).result == "there"
        assert len(looks) == 1
        outside["x"] = "elsewhere"
        await service.process.operator.do(RetryRun(run_id, from_step="poll#1"))
        assert (await service.ended(run_id)).result == "elsewhere"
    assert len(looks) == 2


# ---------------------------------------------------------------- limits and dependencies

working = 0
most = 0


@task(limit=limit("crm", 1))
async def one_at_a_time(name: str) -> str | Pending:
    global working, most
    working += 1
    most = max(most, working)
    await asyncio.sleep(0.002)
    working -= 1
    return seen(name)  # type: ignore[no-any-return]  # what the test has put there


@flow
async def polls_crm(name: str) -> str:
    return await poll(one_at_a_time, name, every="1m", timeout="3m")


async def test_looks_take_a_place_at_the_limit_of_their_task() -> None:
    async with serve(polls_crm) as service:
        runs = [await started(service, polls_crm, str(number)) for number in range(4)]
        await service.advance("5m")
        ended = [await service.look(each.id) for each in runs]
    assert [each.state for each in ended] == ["failed"] * 4
    assert (len(looks), most) == (16, 1)


@flow(concurrency=limit("crm", 1))
async def holds_crm(name: str) -> str:
    return await poll(one_at_a_time, name)


def test_a_look_that_would_wait_for_its_own_run_is_refused() -> None:
    result = run(holds_crm, "x")
    assert result.error is not None
    assert result.error.message.startswith("step 'poll#1' of flow 'holds_crm' would wait for ever")


@task(retry=retry(9, delay="10s", factor=1, jitter=False))
async def asks_bank(name: str) -> str | Pending:
    return seen(name)  # type: ignore[no-any-return]  # what the test has put there


@flow(needs=dependency("bank", errors=OSError, open_after="100% of 2", probe="1h"))
async def polls_bank(name: str) -> str:
    return await poll(asks_bank, name, every="10s", timeout=None)


async def test_looks_that_fail_open_the_breaker_of_what_the_flow_needs() -> None:
    async with serve(polls_bank) as service:
        outside["x"] = OSError("down")
        run_id = await begun(service, polls_bank, "x")
        await service.advance("50m")
        assert len(looks) == 2, "it is open: nobody looks"
        await service.advance("2h")
        probed = await service.look(run_id)
        assert (len(looks), probed.attempts) == (4, 0), "one goes alone, and spends nothing"
        assert probed.error is not None and probed.error.type == "OSError"
        outside["x"] = "there"
        result = await service.ended(run_id)
    assert (result.result, result.attempts) == ("there", 1)


# ---------------------------------------------------------------- values and arguments


@task
def large(name: str) -> str | Pending:
    return "x" * 200_000


@task(pool="process")
def elsewhere(pid: int) -> bool | Pending:
    return os.getpid() != pid


@task
def sees_the_run(name: str) -> list[str] | Pending:
    return [current().run.flow, current().event.type, name]


@flow
async def kinds(name: str) -> list[Any]:
    text = await poll(large, name)
    other_process = await poll(elsewhere, os.getpid())
    await sleep("1h")
    return [len(text), other_process, await poll(sees_the_run, name)]


@pytest.mark.slow
def test_a_look_is_a_task_of_any_kind_and_its_value_is_kept_like_a_result() -> None:
    result = run(kinds, "x")
    assert result.result == [200_000, True, ["kinds", "testing", "x"]]


@task
def photographs(name: str) -> str | Pending:
    current().attach(f"look-{len(looks)}.txt", f"{len(looks)}".encode())
    return seen(name)  # type: ignore[no-any-return]  # what the test has put there


@flow
async def polls_photographs(name: str) -> str:
    return await poll(photographs, name, every="1m", timeout="2m")


async def test_what_a_look_attaches_is_kept_with_the_end_of_the_poll() -> None:
    async with serve(polls_photographs) as service:
        kept = []
        for found in ("there", OSError("broken")):
            looks.clear()
            outside.pop("x", None)
            run_id = await begun(service, polls_photographs, "x")
            await service.advance("1m")
            outside["x"] = found
            await service.advance("1m")
            known = await service.journal.run(run_id)
            assert known is not None
            files = await service.journal.artefacts(known.seq, 10)
            kept.append((known.state, [each.name for each in files]))
    assert kept == [("succeeded", ["look-2.txt"]), ("failed", ["look-2.txt"])]


@task(timeout="20ms")
async def hangs(name: str) -> str | Pending:
    await asyncio.sleep(60)
    return name


@flow
async def polls_hanging(name: str) -> str:
    return await poll(hangs, name)


def test_the_timeout_of_a_task_is_that_of_a_look() -> None:
    result = run(polls_hanging, "x")
    assert result.error is not None and result.error.type == "TimeoutError"


async def test_outside_a_run_it_looks_in_a_loop() -> None:
    outside["later"] = None
    asyncio.get_running_loop().call_later(0.03, outside.update, {"later": "there"})
    assert await poll(ready, "later", every="10ms") == "there"
    with pytest.raises(PollTimeout, match="polled 'patient' for 20ms: nothing yet"):
        await poll(patient, "never", every="5ms", timeout="20ms")


# ---------------------------------------------------------------- mistakes


@task
async def from_a_task() -> str:
    return await poll(ready, "x")


@flow
async def in_a_task() -> str:
    return await from_a_task()


@flow
def plain_flow() -> None:
    _ = poll(ready, "x")


def not_a_task(name: str) -> str | Pending:
    return Pending()


@task(undo=not_a_task)
def with_undo(name: str) -> str | Pending:
    return Pending()


@flow
async def asks(what: str) -> Any:
    @task
    def inner() -> str | Pending:
        return Pending()

    bad: dict[str, Callable[[], Any]] = {
        "function": lambda: poll(not_a_task, "x"),
        "flow": lambda: poll(other),
        "undo": lambda: poll(with_undo, "x"),
        "inner": lambda: poll(inner),
        "lock": lambda: poll(ready, threading.Lock()),  # type: ignore[arg-type]  # the mistake
        "large": lambda: poll(ready, "x" * 20_000),
        "every": lambda: poll(ready, "x", every="0s"),
    }
    return await bad[what]()


@pytest.mark.parametrize(("what", "kind", "words"), [
    ("function", "TypeError", "poll(not_a_task, …), called at FILE: a look is a task: write @task "
     "above its function, and give the task itself"),
    ("flow", "TypeError", "poll(other, …), called at FILE: flow 'other' is a flow, and a look is a "
     "task: write @task"),
    ("undo", "SetupError", "poll(with_undo, …), called at FILE: task 'with_undo' has undo=, and a "
     "look is made many times: leave it out"),
    ("inner", "not_kept", "poll(inner, …): a restart could not find asks.<locals>.inner again; "
     "define it with `def` at the top of a file, and pass what it needs as arguments"),
    ("lock", "not_kept", "poll(ready, …): an argument cannot be kept (TypeError: cannot pickle "
     "'_thread.lock' object); pass plain data or an id instead"),
    ("large", "not_kept", "poll(ready, …): the arguments come to 20,024 bytes and are kept with "
     "each look, at most 16,384; pass an id instead"),
    ("every", "SetupError", "poll(ready, every='0s'): write how long, such as '5s'"),
])  # fmt: skip
def test_what_cannot_be_polled_is_refused_by_name(what: str, kind: str, words: str) -> None:
    error = run(asks, what).error
    assert error is not None
    assert (error.type, re.sub(r"called at \S+:\d+", "called at FILE", error.message)) == (
        kind, words,
    )  # fmt: skip


def test_it_is_for_async_flows_outside_their_tasks() -> None:
    in_task, in_def = run(in_a_task).error, run(plain_flow).error
    assert in_task is not None and in_def is not None
    assert "poll(ready, …), called at" in in_task.message
    assert "is for the flow itself: call it outside its tasks" in in_task.message
    assert "is awaited; write the flow with `async def`" in in_def.message


# ---------------------------------------------------------------- changed code


async def old_code(name: str) -> str:
    return await poll(ready, name, every="10m")


async def calls_another_check(name: str) -> str:
    return await poll(shaky, name, every="10m")


async def calls_it_elsewhere(name: str) -> str:
    return await poll(moved, name, every="10m")


moved = replace(ready)


def edition(content: str, function: Any) -> Any:
    """Return a flow as the loader would make it of one edition of its file."""
    return flow(name="edited", version=content)(function)


async def over_an_edit(new: Any, change: Callable[[], object]) -> Any:
    """Poll under the old code, change it, and go on under the new one; returns the run."""
    old = edition("old", old_code)
    async with serve(old) as service:
        run_id = await begun(service, old, "x")
        await service.advance("15m")
        change()
        serve_instead(service, edition("new", new))
        await service.restart()
        await service.advance("10m")
        outside["x"] = "there"
        await service.advance("10m")
        return await service.look(run_id)


async def test_a_poll_that_calls_another_check_is_refused_once_it_has_looked() -> None:
    outside["y"] = "there"
    result = await over_an_edit(calls_another_check, lambda: None)
    assert result.error is not None and result.error.type == "code_changed"
    assert result.error.message.startswith(
        "the code changed under this run: step 'poll#1' is recorded for poll('ready', 'x') and is "
        "now called with other arguments, poll('shaky', 'x')"
    )
    assert len(looks) == 4, "looks go on by what is recorded"


async def test_a_check_that_moved_looks_from_where_it_is_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vars(moved).update(vars(ready) | {"__qualname__": "moved"})
    result = await over_an_edit(
        calls_it_elsewhere, lambda: monkeypatch.setitem(globals(), "ready", None)
    )
    assert (result.state, result.result) == ("succeeded", "there")


async def test_a_check_that_is_gone_fails_the_run_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serve(polls) as service:
        run_id = await begun(service, polls, "x")
        known = ready

        async def loses_it(name: str) -> str:
            globals()["ready"] = known  # there while the flow runs, and gone when it looks
            try:
                return await poll(known, name, every="10m", timeout="1d")
            finally:
                globals()["ready"] = None

        monkeypatch.setitem(globals(), "ready", None)
        serve_instead(service, flow(name="polls")(loses_it))
        await service.restart()
        await service.advance("10m")
        result = await service.look(run_id)
    assert result.error is not None and result.error.type == "code_changed"
    assert result.error.message == (
        "step 'poll#1' of flow 'polls' cannot look any more: ready is no longer in the code"
    )
