"""Throttles: no more starts than the rate says, in order, over failures, restarts and deploys."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.gates import NOW, Asking, declare, gates, refused_by
from tests.support.running import Running, eventually, make_event, running
from turnout import current, flow, limit, retry, sleep, task, throttle
from turnout.service.app.reload import reload_project
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.run import RunState, Start
from turnout.service.domain.units import utc_now
from turnout.service.flowcontrol.admission import Admission
from turnout.service.flowcontrol.gate import Refusal
from turnout.service.project import Project

SECOND = timedelta(seconds=1)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def refusal(flow: Any, run: Asking, seconds: float) -> Refusal:
    answer = flow.ask(run, at(seconds))
    assert answer is not None
    return answer  # type: ignore[no-any-return]


# ---------------------------------------------------------------- the gate


def test_no_more_start_than_the_rate_says_and_the_next_at_the_first_free_instant() -> None:
    paced = gates(rate=throttle("2/10s"))
    for number, seconds in enumerate((0, 4)):
        assert refused_by(paced, Asking(str(number)), at(seconds)) is None
    assert refusal(paced, Asking("x"), 5).answer == at(10)
    assert refused_by(paced, Asking("x"), at(9.999999)) == "throttle"
    assert refused_by(paced, Asking("x"), at(10)) is None
    assert refusal(paced, Asking("y"), 10).answer == at(14)


def test_what_has_started_counts_after_it_has_ended() -> None:
    paced = gates(rate=throttle("1/10s"))
    run = Asking("1")
    assert refused_by(paced, run, at(0)) is None
    paced.leave(run, keeps_key=False)
    assert refused_by(paced, Asking("2"), at(9)) == "throttle"


def test_each_key_has_the_rate_to_itself_and_no_key_waits_for_nobody() -> None:
    paced = gates(rate=throttle("1/10s", per=lambda event: event.id))
    assert refused_by(paced, Asking("1", keys={"throttle": "a"})) is None
    assert refused_by(paced, Asking("2", keys={"throttle": "a"})) == "throttle"
    assert refused_by(paced, Asking("3", keys={"throttle": "b"})) is None
    for number in "456":
        free = Asking(number, keys={"throttle": None})
        assert refused_by(paced, free) is None
        assert not free.starts


def test_a_run_that_resumes_is_neither_counted_nor_refused() -> None:
    paced = gates(rate=throttle("1/10s"))
    for number in "123":
        resumed = Asking(number, resumes=True)
        assert refused_by(paced, resumed) is None
        assert not resumed.starts
    assert refused_by(paced, Asking("4")) is None
    assert refused_by(paced, Asking("5", resumes=True)) is None


def test_a_start_is_recorded_with_the_instant_at_which_it_was_decided() -> None:
    paced = gates(rate=[throttle("5/10s"), throttle("crm", "9/m", per=lambda event: event.id)])
    run = Asking("1", keys={"throttle:crm": "acme"})
    assert refused_by(paced, run, at(3)) is None
    assert list(run.starts) == [
        Start("bill", "throttle", "", at(3), at(13)),
        Start("", "throttle:crm", "acme", at(3), at(63)),
    ]


def test_a_run_that_another_gate_refuses_is_not_counted() -> None:
    paced = gates(rate=throttle("1/10s"), concurrency=limit(1))
    first = Asking("1")
    assert refused_by(paced, first, at(0)) is None
    assert refused_by(paced, Asking("2"), at(20)) == "flow"
    paced.leave(first, keeps_key=False)
    assert refused_by(paced, Asking("2"), at(20)) is None


def test_two_rates_of_a_flow_are_both_kept() -> None:
    paced = gates(rate=[throttle("2/s"), throttle("3/10s")])
    assert [rule.place for rule in declare(rate=[throttle("2/s"), throttle("3/10s")]).rate] == [
        "throttle",
        "throttle.2",
    ]
    for seconds in (0, 0, 1):
        assert refused_by(paced, Asking("1"), at(seconds)) is None
    assert refusal(paced, Asking("2"), 2).answer == at(10)


def test_flows_share_a_throttle_by_its_name() -> None:
    admission, crm = Admission(10), throttle("crm", "2/10s")
    bill, remind = gates(admission, rate=crm), gates(admission, rate=crm)
    own = gates(admission, rate=throttle("2/10s"))
    assert refused_by(bill, Asking("1")) is None
    assert refused_by(remind, Asking("2")) is None
    assert refused_by(bill, Asking("3")) == "throttle"
    assert refused_by(remind, Asking("3")) == "throttle"
    assert refused_by(own, Asking("3")) is None


def test_a_start_that_did_not_happen_is_given_back() -> None:
    paced = gates(rate=throttle("1/10s"))
    run = Asking("1")
    assert refused_by(paced, run) is None
    paced.give_back(run)
    paced.leave(run, keeps_key=False)
    assert not run.starts
    assert refused_by(paced, Asking("2")) is None


def test_a_new_rate_counts_what_has_started_under_the_old_one() -> None:
    paced = gates(rate=throttle("3/10s"))
    for number in "123":
        assert refused_by(paced, Asking(number)) is None
    paced.declare(declare(rate=throttle("5/10s")), NOW)
    for number in "45":
        assert refused_by(paced, Asking(number)) is None
    assert refused_by(paced, Asking("6")) == "throttle"
    paced.declare(declare(rate=throttle("2/10s")), NOW)
    assert refusal(paced, Asking("6"), 9).answer == at(10)


def test_what_an_old_name_has_started_counts_for_the_new_one() -> None:
    admission = Admission(10)
    old, new = gates(admission, rate=throttle("1/10s")), gates(admission)
    new.declare(declare("charge", rate=throttle("1/10s")), NOW)
    assert refused_by(old, Asking("1")) is None
    new.take_over(old, NOW)
    assert refused_by(new, Asking("2")) == "throttle"


def test_what_was_started_before_the_process_counts() -> None:
    admission = Admission(10)
    paced = gates(admission, rate=throttle("2/10s", per=lambda event: event.id))
    admission.recall(
        [
            Start("bill", "throttle", "a", at(-20), at(-10)),
            Start("bill", "throttle", "a", at(-5), at(5)),
            Start("other", "throttle", "a", at(-5), at(5)),
            Start("bill", "throttle", "b", at(-4), at(6)),
            Start("bill", "throttle", "b", at(-3), at(7)),
        ]
    )
    assert refused_by(paced, Asking("1", keys={"throttle": "a"})) is None
    assert refused_by(paced, Asking("2", keys={"throttle": "a"})) == "throttle"
    assert refusal(paced, Asking("3", keys={"throttle": "b"}), 0).answer == at(6)


# ---------------------------------------------------------------- what cannot be meant


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (
            "100/m",
            "rate='100/m': write throttle('100/m'), which lets runs wait, or "
            "rate_limit('100/m'), which skips them, or a list of these",
        ),
        (
            [throttle("crm", "1/s"), throttle("crm", "1/s")],
            "rate= names the throttle 'crm' twice",
        ),
        (throttle("1/s", per="customer"), "per='customer': write a function, per=lambda event: …"),  # type: ignore[call-overload]
    ],
)
def test_a_rate_that_cannot_be_meant_is_refused_by_name(rate: Any, said: str) -> None:
    with pytest.raises(SetupError) as refused:
        declare(rate=rate)
    assert refused.value.message == f"flow 'bill': {said}"
    assert refused.value.file == declare.__code__.co_filename


def test_a_name_of_a_throttle_is_text() -> None:
    with pytest.raises(SetupError, match="throttle\\('', '1/s'\\): a name is printable text"):
        throttle("", "1/s")


def test_one_name_has_one_rate() -> None:
    first = declare("bill", rate=throttle("crm", "100/m"))
    flows = [first, declare("remind", rate=throttle("crm", "5/s"))]
    with pytest.raises(SetupError) as refused:
        Project.of(flows)
    assert refused.value.message == (
        f'throttle("crm", "5/s") is throttle("crm", "100/m") in flow \'bill\' '
        f"({first.file}:{first.line}); a name has one meaning: write the rule once and use it in "
        "both flows"
    )


# ---------------------------------------------------------------- the service


async def starts(service: Running) -> list[datetime]:
    """Return the instants of the recorded starts."""
    return [start.at for start in await service.process.journal.starts()]


def spread(instants: Sequence[datetime], count: int) -> timedelta:
    """Return the shortest stretch in which more than so many starts lie."""
    return min(later - earlier for earlier, later in zip(instants, instants[count:], strict=False))


async def test_runs_start_in_order_as_the_rate_lets_them(tmp_path: Path) -> None:
    seen: list[int] = []

    @flow(rate=throttle("3/200ms"))
    async def paced(event: Event) -> None:
        seen.append(event.data)

    async with running(tmp_path, [paced]) as service:
        await service.emitter([make_event(number) for number in range(10)])
        await service.all_finished()
        recorded = await starts(service)
    assert seen == list(range(10))
    assert len(recorded) == 10
    assert spread(recorded, 3) >= timedelta(milliseconds=200)
    assert recorded[2] - recorded[0] < timedelta(milliseconds=200), "at once while there is room"


async def test_a_throttled_key_holds_up_only_its_own_runs(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    @flow(rate=throttle("1/300ms", per=lambda event: event.data[0]))
    async def paced(event: Event) -> None:
        seen.append(tuple(event.data))

    async with running(tmp_path, [paced]) as service:
        sent = [("a", 1), ("a", 2), ("a", 3), ("b", 1), (None, 1), (None, 2)]
        await service.emitter([make_event(one) for one in sent])
        await service.all_finished()
        recorded = await service.process.journal.starts()
    assert set(seen[:4]) == {("a", 1), ("b", 1), (None, 1), (None, 2)}
    assert seen[4:] == [("a", 2), ("a", 3)]
    assert len(recorded) == 4, "a run without a key is not counted"


async def test_failed_attempts_and_retries_of_the_flow_count(tmp_path: Path) -> None:
    @flow(rate=throttle("2/200ms"), retry=retry(2, delay="1ms"))
    async def charge(event: Event) -> None:
        if current().attempt <= 2:
            raise ConnectionError

    async with running(tmp_path, [charge]) as service:
        await service.emitter([make_event(number) for number in range(3)])
        runs = await service.all_finished()
        recorded = await starts(service)
    assert [run.state for run in runs] == [RunState.SUCCEEDED] * 3
    assert len(recorded) == 9
    assert spread(recorded, 2) >= timedelta(milliseconds=200)


async def test_flows_that_share_a_name_start_no_more_together(tmp_path: Path) -> None:
    crm = throttle("crm", "2/100ms")
    seen: list[str] = []

    @flow(rate=crm)
    async def bill(event: Event) -> None:
        seen.append("bill")

    @flow(rate=crm)
    async def remind(event: Event) -> None:
        seen.append("remind")

    async with running(tmp_path, [bill, remind]) as service:
        await service.emitter([make_event(number) for number in range(6)])
        await service.all_finished()
        recorded = await starts(service)
    assert len(recorded) == 12
    assert spread(recorded, 2) >= timedelta(milliseconds=100)
    assert {"bill", "remind"} == set(seen[:6]), "neither flow starves"


async def test_a_restart_forgets_no_start(tmp_path: Path) -> None:
    @flow(rate=throttle("3/h"))
    async def paced() -> None: ...

    async with running(tmp_path, [paced]) as service:
        for number in range(2):
            await service.finished((await service.send(number)).runs[0])
    for _ in range(2):
        async with running(tmp_path, [paced]) as service:
            await service.send()
            await service.send()

            async def waits(service: Running = service) -> bool:
                return service.process.dispatcher.next_alarm_at() is not None

            await eventually(waits)
            recorded = await starts(service)
            assert len(recorded) == 3
            alarm = service.process.dispatcher.next_alarm_at()
            assert alarm == recorded[0] + timedelta(hours=1)


async def test_a_flow_that_a_reload_brings_back_forgets_no_start(tmp_path: Path) -> None:
    @flow(rate=throttle("2/h"))
    async def paced() -> None: ...

    @flow
    async def other() -> None: ...

    async with running(tmp_path, [paced]) as service:
        for _ in range(2):
            await service.finished((await service.send()).runs[0])
    async with running(tmp_path, [other]) as service:  # which knows of no throttle
        await reload_project(service.process, Project.of([paced]))
        service.emitter.flows = lambda _event: (paced,)
        await service.send()

        async def waits() -> bool:
            return service.process.dispatcher.next_alarm_at() is not None

        await eventually(waits)
        recorded = await starts(service)
        assert service.process.dispatcher.next_alarm_at() == recorded[0] + timedelta(hours=1)
        assert len(recorded) == 2


async def test_a_delivery_that_comes_twice_gives_its_start_back(tmp_path: Path) -> None:
    @flow(rate=throttle("2/h"))
    async def paced() -> None: ...

    async with running(tmp_path, [paced]) as service:
        await service.finished((await service.send(1, event_id="a")).runs[0])
        for _ in range(3):
            assert (await service.send(1, event_id="a")).duplicate
        again = await service.send(1, event_id="b")
        assert (await service.finished(again.runs[0])).state is RunState.SUCCEEDED
        assert len(await starts(service)) == 2


async def test_a_clock_that_was_once_ahead_stops_nothing(tmp_path: Path) -> None:
    @flow(rate=throttle("1/h"))
    async def paced() -> None: ...

    async with running(tmp_path, [paced], now=lambda: utc_now() + timedelta(days=99)) as service:
        await service.finished((await service.send()).runs[0])
    async with running(tmp_path, [paced]) as service:
        await service.finished((await service.send()).runs[0])


async def test_retries_of_a_task_and_runs_that_wake_up_do_not_count(tmp_path: Path) -> None:
    tries = 0

    @task(retry=retry(2, delay="1m"))
    async def fetch() -> None:
        nonlocal tries
        tries += 1
        if tries < 2:
            raise ConnectionError

    @flow(rate=throttle("1/h"))
    async def nap(event: Event) -> None:
        await sleep("10ms")
        await fetch()
        await sleep("10ms")

    ahead = timedelta(0)
    async with running(tmp_path, [nap], now=lambda: utc_now() + ahead) as service:
        first = await service.send(1)
        await service.send(2)  # it is held until an hour has passed

        async def backs_off() -> bool:
            return (await service.run(first.runs[0])).state is RunState.RETRYING

        await eventually(backs_off)
        ahead = timedelta(minutes=5)
        service.process.dispatcher.clock_set()
        assert (await service.finished(first.runs[0])).state is RunState.SUCCEEDED
        assert len(await starts(service)) == 1
        assert service.process.journal.counts()[0]["queued"] == 1


async def test_a_throttled_flow_keeps_a_bounded_part_of_its_backlog_in_memory(
    tmp_path: Path,
) -> None:
    @flow(rate=throttle("1/h"))
    async def paced() -> None: ...

    async with running(tmp_path, [paced]) as service:
        for _ in range(20):
            await service.emitter([make_event(number) for number in range(50)])
        queue = service.process.dispatcher._scheduler.queue("paced")
        assert sum(1 for _ in queue.rows()) <= 300


async def test_a_run_that_is_accepted_while_the_flow_waits_starts_behind_the_others(
    tmp_path: Path,
) -> None:
    seen: list[int] = []

    @flow(rate=throttle("1/100ms"))
    async def paced(event: Event) -> None:
        seen.append(event.data)

    async with running(tmp_path, [paced]) as service:
        for number in range(12):
            await service.send(number)
            await asyncio.sleep(0.03)
        await service.all_finished()
    assert seen == list(range(12))


async def test_a_run_that_wakes_up_does_not_wait_behind_a_retry(tmp_path: Path) -> None:
    free = asyncio.Event()

    @flow(rate=throttle("3/h"), concurrency=1, retry=retry(1, delay="50ms"))
    async def work(event: Event) -> None:
        if event.data == "first":
            await free.wait()
        if event.data == "fails":
            raise ConnectionError
        if event.data == "sleeps":
            await sleep("300ms")  # meanwhile the retry is due, and waits for an hour

    async with running(tmp_path, [work]) as service:
        await service.send("first")
        await service.send("fails")
        asleep = await service.send("sleeps")
        free.set()
        assert (await service.finished(asleep.runs[0])).state is RunState.SUCCEEDED
        assert service.process.journal.counts()[0]["retrying"] == 1
