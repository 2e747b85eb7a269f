"""Limits as a list, limits that flows share by name, and slots that waiting runs keep."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support import inside
from tests.support.running import Running, eventually, running
from turnout import Retry, current, flow, gather, limit, retry, sleep, task
from turnout.service.app.reload import reload_project
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import Run, RunState
from turnout.service.flowcontrol.limit import HeldLimit
from turnout.service.operate.verbs import Cancel
from turnout.service.project import Project
from turnout.service.project.check import check
from turnout.testing.clock import START, Clock


class Inside:
    """Counts the runs whose code runs now, by name, and the most there were at once."""

    def __init__(self) -> None:
        self.now: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.started: list[Any] = []

    async def run(
        self,
        *names: str,
        data: Any = None,
        seconds: float = 0.01,
        together: asyncio.Event | None = None,
    ) -> None:
        self.started.append(data)
        for name in names:
            self.now[name] = self.now.get(name, 0) + 1
            self.most[name] = max(self.most.get(name, 0), self.now[name])
        if together is not None:
            await together.wait()
        await asyncio.sleep(seconds)
        for name in names:
            self.now[name] -= 1


async def send_to(service: Running, to: Flow[..., Any], data: Any = None) -> str:
    service.emitter.flows = lambda _event: (to,)
    return (await service.send(data)).runs[0]


async def test_a_run_takes_all_limits_of_a_list_or_none(tmp_path: Path) -> None:
    seen = Inside()

    @flow(
        concurrency=[
            limit(4),
            limit(2, per=lambda event: event.data[0]),
            limit(1, per=lambda event: event.data[1]),
        ]
    )
    async def sync(event: Event) -> None:
        account, table = event.data
        await seen.run("all", f"account {account}", f"table {table}", data=event.data)

    async with running(tmp_path, [sync]) as service:
        for number in range(60):
            await service.send((number % 3, number % 7))
        runs = await service.all_finished()
        used = [dict(gate.used()) for gate in limits_of(service, "sync")]
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    assert runs[0].keys == {"limit.2": "0", "limit.3": "0"}
    assert seen.most["all"] <= 4
    assert all(most <= 2 for name, most in seen.most.items() if name.startswith("account"))
    assert all(most <= 1 for name, most in seen.most.items() if name.startswith("table"))
    assert used == [{}, {}, {}], "nothing is in use at rest"


def limits_of(service: Running, name: str) -> Any:
    return inside.scheduler(service.process).queue(name).gates.declared


async def test_a_limit_with_a_name_is_one_limit_for_every_flow_that_says_it(
    tmp_path: Path,
) -> None:
    seen, three = Inside(), asyncio.Event()

    def worker(name: str) -> Any:
        @flow(name=name, concurrency=limit("db", 3))
        async def work(event: Event) -> None:
            if len(seen.started) == 2:
                three.set()  # it is the third
            await seen.run("db", name, together=three)

        return work

    flows = [worker("bill"), worker("ship"), worker("report")]
    async with running(tmp_path, flows) as service:
        for number in range(30):
            await send_to(service, flows[number % 3])
        await service.all_finished()
        gates = {id(limits_of(service, each.name)[0]) for each in flows}
    assert len(gates) == 1
    assert seen.most["db"] == 3
    assert {seen.most[each.name] for each in flows} <= {1, 2, 3}


async def test_a_place_that_becomes_free_is_taken_at_once_by_another_flow(tmp_path: Path) -> None:
    go = asyncio.Event()
    done: list[str] = []

    @flow(concurrency=limit("db", 1))
    async def first(event: Event) -> None:
        await go.wait()

    @flow(concurrency=limit("db", 1))
    async def second(event: Event) -> None:
        done.append("second")

    async with running(tmp_path, [first, second]) as service:
        await send_to(service, first)
        run_id = await send_to(service, second)
        assert (await service.run(run_id)).state is RunState.QUEUED
        go.set()
        await service.finished(run_id)
    assert done == ["second"]


def account_flow(seen: Inside, *, count: int = 1) -> Any:
    """Return a flow whose runs wait in the middle, and keep their slot meanwhile."""

    @flow(concurrency=limit(count, per=lambda event: event.data["account"], hold="run"))
    async def approve(event: Event) -> int:
        seen.started.append(event.data["n"])
        await sleep(event.data.get("sleep", "30ms"))
        return int(event.data["n"])

    return approve


async def test_a_run_that_waits_keeps_its_place_and_others_of_its_key_wait(tmp_path: Path) -> None:
    seen = Inside()
    async with running(tmp_path, [account_flow(seen)]) as service:
        ids = [(await service.send({"account": "a", "n": n})).runs[0] for n in (1, 2)]
        ids.append((await service.send({"account": "b", "n": 3})).runs[0])
        runs = [await service.finished(run_id) for run_id in ids]
    order = seen.started  # each run's code begins twice: it resumes after its wait
    assert max(at for at, n in enumerate(order) if n == 1) < order.index(2), order
    assert order.index(3) < order.index(2), "another key"
    assert [run.state for run in runs] == [RunState.SUCCEEDED] * 3


async def waiting(service: Running, run_id: str) -> Run:
    async def waits() -> bool:
        return (await service.run(run_id)).state is RunState.WAITING

    await eventually(waits)
    return await service.run(run_id)


async def test_a_place_kept_by_a_waiting_run_is_kept_over_a_restart(tmp_path: Path) -> None:
    seen = Inside()
    made = account_flow(seen)
    async with running(tmp_path, [made]) as service:
        first = (await service.send({"account": "a", "n": 1, "sleep": "2s"})).runs[0]
        await waiting(service, first)
    async with running(tmp_path, [made]) as service:
        second = (await service.send({"account": "a", "n": 2})).runs[0]
        assert (await service.run(second)).state is RunState.QUEUED
        ended = [await service.finished(run_id) for run_id in (first, second)]
    assert ended[0].finished_at is not None and ended[1].started_at is not None
    assert ended[0].finished_at <= ended[1].started_at + timedelta(milliseconds=1)


async def test_a_run_that_is_retried_keeps_its_place(tmp_path: Path) -> None:
    tried: list[int] = []

    @flow(concurrency=limit(1, hold="run"), retry=retry(2, delay="30ms", jitter=False))
    async def work(event: Event) -> None:
        tried.append(event.data)
        if tried.count(event.data) < 3:
            raise Retry("again")

    async with running(tmp_path, [work]) as service:
        for number in (1, 2):
            await service.send(number)
        await service.all_finished()
    assert tried == [1, 1, 1, 2, 2, 2]


async def test_a_cancelled_run_that_waited_gives_its_place_to_the_next(tmp_path: Path) -> None:
    seen = Inside()
    async with running(tmp_path, [account_flow(seen)]) as service:
        first = (await service.send({"account": "a", "n": 1, "sleep": "1h"})).runs[0]
        await waiting(service, first)
        second = (await service.send({"account": "a", "n": 2})).runs[0]
        await service.process.operator.do(Cancel(first))
        assert (await service.finished(second)).state is RunState.SUCCEEDED
        (gate,) = limits_of(service, "approve")
    assert isinstance(gate, HeldLimit)
    assert gate.used() == {}


@pytest.mark.parametrize("which", [0, 1])
async def test_a_run_that_is_cancelled_while_a_reload_computes_its_key_keeps_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """Or while it computes that of another run: what was read before says that both wait."""

    def approve(**policy: Any) -> Any:
        @flow(name="approve", **policy)
        async def work(event: Event) -> None:
            if event.data["sleep"]:
                await sleep("1h")

        return work

    async with running(tmp_path, [approve()]) as service:
        sent = [await service.send({"account": name, "sleep": True}) for name in "ab"]
        ids = [receipt.runs[0] for receipt in sent]
        for run_id in ids:
            await waiting(service, run_id)
        journal = service.process.journal
        read, done, may_answer = journal.events_of_runs, asyncio.Event(), asyncio.Event()

        async def read_slowly(seqs: Sequence[int]) -> Mapping[int, Event]:
            events = await read(seqs)
            done.set()
            await may_answer.wait()
            return events

        monkeypatch.setattr(journal, "events_of_runs", read_slowly)
        per_account = limit(1, per=lambda event: event.data["account"], hold="run")
        limited = approve(concurrency=per_account)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(reload_project(service.process, Project.of([limited])))
            await done.wait()
            await service.process.operator.do(Cancel(ids[which]))
            may_answer.set()
        (gate,) = limits_of(service, "approve")
        assert isinstance(gate, HeldLimit)
        assert gate.used() == {"ab"[1 - which]: 1}
        again = await send_to(service, limited, {"account": "ab"[which], "sleep": False})
        assert (await service.finished(again)).state is RunState.SUCCEEDED


@pytest.mark.parametrize("keyed", [True, False])
async def test_a_child_that_wants_the_place_its_caller_keeps_fails_by_name(
    tmp_path: Path, keyed: bool
) -> None:
    per = {"per": lambda event: "a"} if keyed else {}

    @flow(concurrency=limit(1, hold="run", **per))
    async def nested(data: int) -> int:
        if data:
            await nested(data - 1)
        return data

    async with running(tmp_path, [nested]) as service:
        run = await service.finished((await service.send(1)).runs[0])
    assert run.error is not None
    of = " for 'a'" if keyed else ""
    assert run.error.message == (
        f'the child run would wait for ever: the slot of limit(1, hold="run"){of} of flow '
        "'nested' is held until this run ends; give the child another key (per=), a limit of its "
        "own, or make it a task"
    )


async def test_a_child_waits_for_a_place_that_an_unrelated_run_keeps(tmp_path: Path) -> None:
    @flow(concurrency=limit(2, hold="run"))
    async def nested(data: dict[str, Any]) -> str:
        if "sleep" in data:
            await sleep(data["sleep"])
        if data.get("calls"):
            await nested({})
        return "done"

    async with running(tmp_path, [nested]) as service:
        await service.send({"sleep": "200ms"})
        run = await service.finished((await service.send({"calls": True})).runs[0])
    assert run.state is RunState.SUCCEEDED


async def test_the_last_of_two_callers_that_fill_a_limit_fails_by_name(tmp_path: Path) -> None:
    @flow(concurrency=limit(2, hold="run"))
    async def nested(data: dict[str, Any]) -> str:
        if data.get("calls"):
            await sleep("50ms")
            await nested({})
        return "done"

    async with running(tmp_path, [nested]) as service:
        ids = [(await service.send({"calls": True})).runs[0] for _ in range(2)]
        runs = [await service.finished(run_id) for run_id in ids]
    assert sorted(run.state for run in runs) == [RunState.FAILED, RunState.SUCCEEDED]


async def test_runs_queued_before_a_rule_was_added_get_their_key_before_they_start(
    tmp_path: Path,
) -> None:
    seen = Inside()

    def customer(event: Event) -> str:
        if event.data is None:
            raise ValueError("who?")
        return str(event.data)

    def bill(**policy: Any) -> Any:
        @flow(name="bill", **policy)
        async def work(event: Event) -> None:
            await seen.run(f"customer {event.data}")

        return work

    async with running(tmp_path, [bill()]) as service:
        service.process.dispatcher.pause("bill")
        ids = [(await service.send(data)).runs[0] for data in ("a", "a", None, "b", "a")]
    keyed = bill(concurrency=limit(1, per=customer))
    async with running(tmp_path, [keyed]) as service:
        runs = await service.all_finished()
    assert seen.most == {"customer a": 1, "customer b": 1}
    assert [run.keys and run.keys["limit"] for run in runs] == ["a", "a", None, "b", "a"]
    assert [run.id for run in runs if run.dead] == [ids[2]], "a key that raises is a dead letter"
    assert runs[2].error is not None and runs[2].error.type == "filter_error"
    assert "ValueError: who? (in per= or another key" in runs[2].error.message


any_limit: Any = limit
any_flow: Any = flow


async def test_tries_of_tasks_take_places_of_a_limit_that_flows_share(tmp_path: Path) -> None:
    seen = Inside()

    @task(limit=limit("crm", 2))
    async def call(number: int) -> int:
        await seen.run("crm")
        return number

    @task(limit=limit("crm", 2))
    def call_in_thread(number: int) -> int:
        return number

    @flow
    async def asks(event: Event) -> tuple[int, ...]:
        return await gather(*(call(number) for number in range(3)))

    @flow
    def asks_in_thread(event: Event) -> int:
        return call_in_thread(7)

    @flow(concurrency=limit("crm", 2))
    async def exports(event: Event) -> None:
        await seen.run("crm")

    async with running(tmp_path, [asks, exports, asks_in_thread]) as service:
        for to in (asks, exports, asks, exports, asks_in_thread):
            await send_to(service, to)
        runs = await service.all_finished()
        gate = limits_of(service, "exports")[0]
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    assert seen.most["crm"] == 2
    assert gate.used() == {}


async def test_a_task_that_wants_the_limit_its_own_run_has_a_place_of_fails_by_name(
    tmp_path: Path,
) -> None:
    @task(limit=limit("crm", 1))
    async def call() -> None: ...

    @flow(concurrency=limit("crm", 1))
    async def asks(event: Event) -> None:
        await call()

    async with running(tmp_path, [asks]) as service:
        run = await service.finished((await service.send()).runs[0])
    assert run.error is not None
    assert run.error.message == (
        "step 'call#1' of flow 'asks' would wait for ever: its task takes a slot of "
        'limit("crm", 1), and so does its flow (concurrency=); leave it out of one of them'
    )


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        (
            lambda: any_limit(0),
            "limit(0): to stop a flow use `turnout pause`",
        ),
        (
            lambda: any_limit(2.5),
            "limit(2.5): a limit is a whole number of runs",
        ),
        (lambda: any_limit(3, 4), 'limit(3, 4): the name comes first: limit("db", 3)'),
        (lambda: any_limit("db"), "limit('db'): say how many at once: limit('db', 3)"),
        (lambda: any_limit("db", 3, per=str), "a limit that flows share has no keys"),
        (lambda: any_limit("db", 3, hold="run"), "only a limit of one flow can be held"),
        (
            lambda: any_limit(3, hold="wait"),
            "hold='wait': write hold=",
        ),
        (lambda: flow(concurrency=[3, limit(5)])(print_it), "only the lowest holds"),
        (
            lambda: flow(concurrency=[limit("db", 3), limit("db", 3)])(print_it),
            "the limit 'db' is named twice",
        ),
        (
            lambda: any_flow(concurrency="3")(print_it),
            "concurrency='3': write a count",
        ),
        (
            lambda: task(limit=limit(3))(print_it),
            'limit=limit(3): a task takes a limit with a name: limit=limit("crm", 3)',
        ),
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused_by_name(declared: Any, problem: str) -> None:
    with pytest.raises(SetupError) as refused:
        declared()
    assert problem in refused.value.message


async def print_it(event: Event) -> None: ...


def test_a_name_with_two_counts_is_refused_with_both_places(tmp_path: Path) -> None:
    (tmp_path / "flows.py").write_text(
        "from turnout import flow, limit, task\n\n"
        '@task(limit=limit("db", 5))\nasync def call() -> None: ...\n\n'
        '@flow(concurrency=limit("db", 3))\nasync def bill(event: dict) -> None: ...\n\n'
        "@flow(concurrency=limit(1))\nasync def alone(event: dict) -> None: ...\n"
    )
    found = check([tmp_path / "flows.py"])
    (problem,) = found.problems
    assert (problem.line, problem.message) == (
        3,
        f'limit("db", 5) is limit("db", 3) in flow \'bill\' ({tmp_path / "flows.py"}:6); a name '
        "has one meaning: write the rule once and use it in both",
    )
    (warning,) = found.warnings
    assert warning.line == 9
    assert warning.message.startswith("flow 'alone': limit(1) does not preserve order")


@pytest.mark.timeout(15)
async def test_runs_refused_at_two_keys_do_not_wake_each_other_for_ever(tmp_path: Path) -> None:
    """Retries keep their account while they wait for the table; others wait for the accounts."""
    release, began, failed = asyncio.Event(), asyncio.Event(), asyncio.Semaphore(0)

    @flow(
        concurrency=[
            limit(1, per=lambda event: event.data["account"], hold="run"),
            limit(1, per=lambda event: event.data["table"]),
        ],
        retry=retry(3, delay="1h", factor=1, jitter=False),
    )
    async def sync(event: Event) -> None:
        if event.data["account"] == 9:
            began.set()
            await release.wait()
        elif event.data["fails"] and current().attempt < 3:
            failed.release()
            raise OSError("the table is locked")

    clock = Clock(START)
    async with running(tmp_path, [sync], now=clock.now) as service:
        for account in (1, 2, 3):
            await service.send({"account": account, "table": 1, "fails": True})
            await failed.acquire()
        for account in (1, 2, 3):
            await service.send({"account": account, "table": 1, "fails": False})
        await service.send({"account": 9, "table": 1, "fails": False})
        await began.wait()
        clock.set(START + timedelta(hours=1))
        service.process.clock_set()
        blocked = inside.scheduler(service.process).queue("sync").blocked

        async def retries_wait_for_the_table() -> bool:
            return sum(run.is_due for run in blocked.runs()) == 3

        async def all_retry() -> bool:
            return service.process.journal.counts()[0].get("retrying") == 3

        await eventually(retries_wait_for_the_table)
        release.set()
        for _ in range(3):
            await failed.acquire()
        await eventually(all_retry)
        clock.set(START + timedelta(hours=3))
        service.process.clock_set()
        runs = await service.all_finished()
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
