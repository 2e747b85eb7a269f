"""Rate limits: what is over the rate ends as skipped, with what was asked and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.gates import declare
from tests.support.running import make_event, running
from turnout import Event, flow, limit, rate_limit, throttle
from turnout.service.domain.decisions import Reason
from turnout.service.domain.errors import SetupError
from turnout.service.domain.run import RunState
from turnout.service.journal.records import Filter
from turnout.service.operate.verbs import Replay, Retry
from turnout.testing import serve

SUCCEEDED, SKIPPED = RunState.SUCCEEDED, RunState.SKIPPED


async def test_what_is_over_the_rate_is_skipped_with_the_rule_and_the_next_free_instant() -> None:
    @flow(rate=rate_limit("2/10s"))
    async def charge() -> None: ...

    async with serve(charge) as service:
        began = service.clock.now()
        assert (await service.run(charge)).state is SUCCEEDED
        await service.advance("4s")
        assert (await service.run(charge)).state is SUCCEEDED
        await service.advance("5s")
        refused = await service.run(charge)
        assert refused.state is SKIPPED
        assert refused.attempts == 0
        run = await service.journal.run(refused.id)
        assert run is not None and run.started_at is None
        found = await service.assert_decided(
            run.event_id,
            "rate_limit",
            flow=charge,
            run=refused.id,
            rule='rate_limit("2/10s")',
            count=2,
            limit=2,
            period=10.0,
        )
        assert found["facts"]["next_free"].startswith(f"{began + timedelta(seconds=10):%FT%T}")
        await service.advance("1s")
        assert (await service.run(charge)).state is SUCCEEDED
        assert (await service.run(charge)).state is SKIPPED


async def test_each_key_has_the_rate_to_itself_and_no_key_is_never_refused() -> None:
    @flow(rate=rate_limit("1/h", per=lambda event: event.data))
    async def charge(event: Event) -> None: ...

    async with serve(charge) as service:
        states = [(await service.run(charge, key)).state for key in ("a", "a", "b", None, None)]
    assert states == [SUCCEEDED, SKIPPED, SUCCEEDED, SUCCEEDED, SUCCEEDED]


async def test_a_restart_forgets_no_accepted_run() -> None:
    @flow(rate=rate_limit("1/h"))
    async def charge() -> None: ...

    async with serve(charge) as service:
        assert (await service.run(charge)).state is SUCCEEDED
        await service.restart()
        assert (await service.run(charge)).state is SKIPPED


async def test_runs_of_one_delivery_count_for_each_other(tmp_path: Path) -> None:
    @flow(rate=rate_limit("3/h"), concurrency=limit(1))
    async def charge(event: Event) -> None: ...

    async with running(tmp_path, [charge]) as service:
        await service.emitter([make_event(number) for number in range(5)])
        runs = await service.all_finished()
        assert [run.state for run in runs] == [SUCCEEDED] * 3 + [SKIPPED] * 2
        again = await service.send(5)
        assert (await service.run(again.runs[0])).state is SKIPPED
        metric = service.process.metrics.decisions.labels("charge", Reason.RATE_LIMIT)
        assert metric.value == 3
        held = service.process.dispatcher.held_slots()
        assert not any(held.values()), "what was reserved for a refused run is given back"


async def test_a_delivery_that_comes_twice_does_not_count(tmp_path: Path) -> None:
    @flow(rate=rate_limit("2/h"))
    async def charge(event: Event) -> None: ...

    async with running(tmp_path, [charge]) as service:
        for _ in range(3):
            await service.send(1, event_id="a")
        other = await service.send(2, event_id="b")
        assert (await service.finished(other.runs[0])).state is SUCCEEDED


async def test_retries_and_replays_do_not_count(tmp_path: Path) -> None:
    @flow(rate=rate_limit("1/h"))
    async def charge(event: Event) -> None: ...

    async with running(tmp_path, [charge]) as service:
        first = await service.send(1)
        await service.finished(first.runs[0])
        await service.process.operator.do(Replay(first.event))
        refused = await service.send(2)
        assert (await service.run(refused.runs[0])).state is SKIPPED
        await service.process.operator.do(Retry(refused.runs[0]))
        runs = await service.all_finished()
    assert [run.state for run in runs] == [SUCCEEDED] * 3


async def test_an_awaited_child_does_not_count() -> None:
    @flow(rate=rate_limit("1/h"))
    async def child() -> str:
        return "done"

    @flow
    async def parent() -> list[str]:
        return [await child(), await child()]

    async with serve(parent, child) as service:
        assert (await service.run(parent)).result == ["done", "done"]


async def test_a_refused_run_takes_nothing_of_a_throttle(tmp_path: Path) -> None:
    @flow(rate=[rate_limit("1/h"), throttle("2/h")])
    async def charge(event: Event) -> None: ...

    async with running(tmp_path, [charge]) as service:
        for number in range(4):
            await service.send(number)
        assert len(await service.process.journal.starts()) == 1
        runs = await service.process.journal.runs(Filter())
    assert sorted(run.state for run in runs) == [SKIPPED] * 3 + [SUCCEEDED]


async def test_two_rates_are_both_asked_and_counted_together() -> None:
    @flow(rate=[rate_limit("2/s"), rate_limit("3/m")])
    async def charge() -> None: ...

    async with serve(charge) as service:
        states = []
        for seconds in (0, 0, 0, 1, 1, 70):
            await service.advance(f"{seconds}s")
            states.append((await service.run(charge)).state)
    assert states == [SUCCEEDED, SUCCEEDED, SKIPPED, SUCCEEDED, SKIPPED, SUCCEEDED]


def test_a_rate_limit_has_no_name_and_a_rate() -> None:
    assert [rule.rule_id for rule in declare(rate=[rate_limit("1/s"), rate_limit("9/m")]).rate] == [
        "rate_limit",
        "rate_limit.2",
    ]
    with pytest.raises(SetupError) as named:
        rate_limit("crm", "10/s")  # type: ignore[call-overload]
    assert str(named.value) == (
        "rate_limit('crm', '10/s'): a rate limit is of one flow and takes no name; write "
        'rate_limit("10/s"), or throttle("crm", "10/s"), which flows share by its name and which '
        "lets runs wait"
    )
    with pytest.raises(SetupError, match="cannot read the rate '10 per second'"):
        rate_limit("10 per second")


PAUSES = st.lists(st.integers(0, 3), max_size=25)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 3), st.integers(1, 4), PAUSES)
async def test_exactly_those_are_accepted_that_a_look_at_all_of_them_accepts(
    count: int, seconds: int, pauses: Sequence[int]
) -> None:
    @flow(rate=rate_limit(f"{count}/{seconds}s"))
    async def charge() -> None: ...

    accepted: list[int] = []
    now = 0
    async with serve(charge) as service:
        for pause in pauses:
            now += pause
            await service.advance(f"{pause}s")
            run = await service.run(charge)
            expected = sum(now - at < seconds for at in accepted) < count
            assert (run.state is SUCCEEDED) is expected
            if expected:
                accepted.append(now)
