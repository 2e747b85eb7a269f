"""`mode=`: what happens to a new run while another one of its key is under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.inside import emit_now, quiet
from tests.support.running import eventually, running
from turnout import current, every, flow, sleep, task
from turnout.service.domain.errors import Refused, SetupError
from turnout.service.domain.run import RunState
from turnout.service.operate.verbs import Fire, Replay, Retry
from turnout.service.project.cautions import cautions
from turnout.testing import Service, hand_event, serve, timer_event

begun: list[Any] = []
"""What runs began with, in order: each once, whatever crashes."""


@pytest.fixture(autouse=True)
def nothing_begun() -> None:
    begun.clear()


@task
async def begin(number: Any) -> None:
    begun.append(number)


@dataclass
class Inside:
    """Counts who is inside a stretch of code at the same time."""

    now: int = 0
    most: int = 0
    went: list[Any] = field(default_factory=list)

    @contextmanager
    def as_(self, who: Any) -> Iterator[None]:
        self.now += 1
        self.most = max(self.most, self.now)
        self.went.append(who)
        try:
            yield
        finally:
            self.now -= 1


def tear_down(number: int) -> None:
    begun.append(f"undo {number}")


def key(event: Any) -> Any:
    return event.data["key"]


async def sent(service: Service, to: Any, *data: Any) -> list[str]:
    """Emit events in one delivery, and go on as far as no time must pass; returns their runs."""
    made = [hand_event(each, at=service.clock.now()) for each in data]
    receipts = await emit_now(service, to, *made)
    await quiet(service)
    return [receipt.runs[0] for receipt in receipts]


async def states(service: Service, runs: list[str]) -> list[RunState]:
    return [(await service.look(run)).state for run in runs]


# ---------------------------------------------------------------- replace


async def test_of_fifty_simultaneous_replace_events_the_last_survives(tmp_path: Path) -> None:
    inside = Inside()
    over = asyncio.Event()

    @flow(mode="replace", key=key)
    async def deploy(order: dict[str, Any]) -> int:
        with inside.as_(order["number"]):
            try:
                await over.wait()
            finally:
                await asyncio.sleep(0.05)  # it takes a while to stop
        return int(order["number"])

    async with running(tmp_path, [deploy]) as service:
        old = (await service.send({"key": "shop", "number": -1})).runs[0]
        await eventually(lambda: _is(inside.now == 1))
        receipts = await asyncio.gather(
            *(service.send({"key": "shop", "number": number}) for number in range(50))
        )
        runs = [await service.run(receipt.runs[0]) for receipt in receipts]
        survivors = [run.id for run in runs if run.state is not RunState.CANCELLED]
        assert survivors == [max(runs, key=lambda run: run.seq).id]
        over.set()
        last = await service.finished(survivors[0])
        assert last.state is RunState.SUCCEEDED
        assert (await service.run(old)).state is RunState.CANCELLED
        assert inside.most == 1, "a new run overlapped the old one"
        assert inside.went[0] == -1 and len(inside.went) == 2


async def _is(fact: bool) -> bool:
    return fact


async def test_a_thread_that_cannot_be_killed_delays_the_new_run(tmp_path: Path) -> None:
    inside = Inside()
    release = threading.Event()

    @flow(mode="replace")
    def crunch(number: int) -> None:
        with inside.as_(number):
            if number == 1:
                release.wait(10)

    async with running(tmp_path, [crunch]) as service:
        first = (await service.send(1)).runs[0]
        await eventually(lambda: _is(inside.now == 1))
        second = (await service.send(2)).runs[0]
        assert (await service.run(first)).state is RunState.CANCELLED
        run = await service.run(second)
        assert run.state is RunState.QUEUED
        waiting = service.process.dispatcher.waits_for(run)
        assert waiting is not None and waiting.cause == "mode"
        assert inside.went == [1]
        release.set()
        assert (await service.finished(second)).state is RunState.SUCCEEDED
        assert inside.most == 1


async def test_a_flow_that_catches_the_cancel_is_cancelled_again(tmp_path: Path) -> None:
    inside = Inside()

    @flow(mode="replace")
    async def stubborn(number: int) -> None:
        with inside.as_(number):
            if number == 1:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
                await asyncio.sleep(60)  # it goes on

    async with running(tmp_path, [stubborn], grace=timedelta(seconds=0.2)) as service:
        await service.send(1)
        await eventually(lambda: _is(inside.now == 1))
        second = (await service.send(2)).runs[0]
        assert (await service.finished(second)).state is RunState.SUCCEEDED
        assert (inside.went, inside.most) == ([1, 2], 1)


async def test_a_replaced_run_is_undone_before_the_new_one_starts() -> None:
    @flow(mode="replace")
    async def provision(number: int) -> None:
        await begin(number)
        current().on_undo(tear_down, number)
        await sleep("1h")

    async with serve(provision) as service:
        (first,) = await sent(service, provision, 1)
        (second,) = await sent(service, provision, 2)
        assert begun == [1, "undo 1", 2]
        assert await states(service, [first, second]) == ["cancelled", "waiting"]


async def test_replace_reaches_runs_that_wait_for_their_next_try() -> None:
    @flow(mode="replace", retry=3)
    async def sync(number: int) -> int:
        await begin(number)
        if number < 3:
            raise OSError("not now")
        return number

    async with serve(sync) as service:
        runs = [(await sent(service, sync, number))[0] for number in (1, 2, 3)]
        assert await states(service, runs) == ["cancelled", "cancelled", "succeeded"]


# ---------------------------------------------------------------- latest


@pytest.mark.slow
async def test_of_a_thousand_events_under_latest_only_the_newest_follows() -> None:
    @flow(mode="latest", key=key)
    async def index(change: dict[str, Any]) -> None:
        await begin(change["number"])
        await sleep("1h")

    async with serve(index) as service:
        changes = [{"key": "wiki", "number": number} for number in range(1001)]
        first = await sent(service, index, changes[0])
        runs = await sent(service, index, *changes[1:400])
        await service.restart()
        assert begun == [0]
        for start in range(400, 1001, 100):
            runs += await sent(service, index, *changes[start : start + 100])
        assert begun == [0], "one at a time"
        skipped = await states(service, runs)
        assert skipped == [RunState.SKIPPED] * 999 + [RunState.QUEUED]
        await service.advance("3h")
        assert begun == [0, 1000], "the second start is the last event's, and there is no third"
        assert await states(service, [*first, runs[-1]]) == ["succeeded", "succeeded"]
        assert all(state is RunState.SKIPPED for state in (await states(service, runs))[:-1])


async def test_the_run_under_way_is_never_touched_by_latest() -> None:
    @flow(mode="latest", retry=2)
    async def build(number: int) -> int:
        if current().attempt == 1:
            raise OSError("not now")
        await sleep("1h")
        await begin(number)
        return number

    async with serve(build) as service:
        runs = [(await sent(service, build, number))[0] for number in (1, 2, 3)]
        await service.advance("1d")
        assert begun == [1, 3]
        assert await states(service, runs) == ["succeeded", "skipped", "succeeded"]


# ---------------------------------------------------------------- skip


async def test_skip_names_the_run_under_way() -> None:
    @flow(mode="skip", key=key, timeout="1h")
    async def backup(order: dict[str, Any]) -> None:
        await begin(order["number"])
        await sleep("1h")

    async with serve(backup) as service:
        (first,) = await sent(service, backup, {"key": "db", "number": 1})
        made = hand_event({"key": "db", "number": 2}, at=service.clock.now())
        receipt = (await emit_now(service, backup, made))[0]
        decision = await service.assert_decided(made, "skip", flow=backup, other=first)
        assert decision["detail"] == f"run {first} was under way"
        assert decision["facts"] == {
            "run": receipt.runs[0], "other": first, "rule": 'mode="skip"', "key": "db",
        }  # fmt: skip
        await sent(service, backup, {"key": "files", "number": 3})
        assert begun == [1, 3]
        await service.advance("2h")
        await sent(service, backup, {"key": "db", "number": 4})
        assert begun == [1, 3, 4]


async def test_runs_of_a_key_never_overlap_under_skip_either() -> None:
    @flow(mode="skip")
    async def poll(number: int) -> None:
        await begin(number)
        await sleep("1h")

    async with serve(poll) as service:
        await service.process.operator.journal.probe()
        with service.process.dispatcher.changing(["poll"]):
            made = [hand_event(number, at=service.clock.now()) for number in (1, 2)]
            await emit_now(service, poll, *made)  # both wait: nothing is under way
        await quiet(service)
        assert begun == [1]
        await service.advance("3h")
        assert begun == [1, 2]


# ---------------------------------------------------------------- who obeys


@flow(on=every("1h", name="hourly"), mode="skip")
async def report() -> None:
    await begin("report")
    await sleep("10h")


async def test_timers_fire_and_replay_obey_and_force_does_not() -> None:
    async with serve(report) as service:
        operator = service.process.operator
        emitter = service.process.emitters["hourly"]
        first = (await emitter([timer_event(report)]))[0].runs[0]
        await quiet(service)
        late = (await emitter([timer_event(report, service.clock.now() + timedelta(hours=1))]))[
            0
        ].runs[0]
        fired = (await operator.do(Fire("hourly"))).runs[0]
        run = await service.journal.run(first)
        assert run is not None
        (replayed,) = await operator.do(Replay(run.event_id))
        await quiet(service)
        assert await states(service, [late, fired, replayed]) == ["skipped"] * 3
        assert begun == ["report"]
        forced = [(await operator.do(Fire("hourly", force=True))).runs[0]]
        forced += await operator.do(Replay(run.event_id, force=True))
        await quiet(service)
        assert await states(service, forced) == ["waiting"] * 2
        assert begun == ["report"] * 3
        for each in forced:
            stored = await service.journal.run(each)
            assert stored is not None and stored.forced
        assert not run.forced


async def test_an_operators_retry_obeys_and_force_does_not() -> None:
    fails = True

    @flow(mode="skip")
    async def job(number: int) -> None:
        await begin(number)
        if fails:
            raise OSError("no")
        await sleep("1h")

    async with serve(job) as service:
        operator = service.process.operator
        (failed,) = await sent(service, job, 1)
        fails = False
        (under_way,) = await sent(service, job, 2)
        with pytest.raises(Refused) as refused:
            await operator.do(Retry(failed))
        assert str(refused.value) == (
            f"run {failed} cannot be retried: run {under_way} was under way (mode='skip' of flow "
            "job); retry it when that has ended, or with --force beside it"
        )
        assert await states(service, [failed]) == ["failed"]
        await operator.do(Retry(failed, force=True))
        await quiet(service)
        assert await states(service, [failed, under_way]) == ["waiting", "waiting"]


async def test_a_retry_under_replace_ends_what_is_under_way() -> None:
    fails = True

    @flow(mode="replace")
    async def job(number: int) -> None:
        await begin(number)
        if fails:
            raise OSError("no")
        await sleep("1h")

    async with serve(job) as service:
        (failed,) = await sent(service, job, 1)
        fails = False
        (under_way,) = await sent(service, job, 2)
        await service.process.operator.do(Retry(failed))
        await quiet(service)
        assert await states(service, [failed, under_way]) == ["waiting", "cancelled"]
        await service.assert_decided(
            (await event_of(service, under_way)), "replaced", run=under_way, other=failed
        )


async def event_of(service: Service, run_id: str) -> str:
    run = await service.journal.run(run_id)
    assert run is not None
    return run.event_id


# ---------------------------------------------------------------- declared


def test_check_warns_of_skip_without_a_timeout() -> None:
    limited = flow(mode="skip", timeout="1h")(report.function)
    (warning,) = cautions([report, limited])
    assert str(warning) == (
        f"{report.file}:{report.line}: flow 'report': mode=\"skip\" skips every run behind one "
        'that hangs; say how long an attempt may take at most, timeout="1h"'
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "newest"}, 'mode=\'newest\': write "skip", "replace" or "latest"'),
        ({"key": key}, "key= says which runs mode= is about; write mode="),
        ({"mode": "skip", "key": "id"}, "key='id': write a function, key=lambda event: …"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: Mapping[str, Any], words: str) -> None:
    with pytest.raises(SetupError) as refused:
        flow(**options)(report.function)
    assert words in str(refused.value) and str(refused.value).startswith(f"{__file__}:")
