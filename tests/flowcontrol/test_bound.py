"""`max_queued=`: a delivery that finds a queue full leaves nothing, and its source keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.running import Running, eventually, running
from turnout import every, files, flow, move, webhook
from turnout.service.domain import problems
from turnout.service.domain.errors import Overloaded, QueueFull, SetupError
from turnout.service.domain.run import RunState
from turnout.service.domain.trigger import CalledTrigger, Inbound, Reply
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Filter, StoredPause
from turnout.service.operate.verbs import Pause
from turnout.triggers import replies
from turnout.triggers.files import recording

held = asyncio.Event()
orders = webhook("/orders", verify="none", id_header="x-id")


@pytest.fixture(autouse=True)
def nothing_held() -> None:
    global held
    held = asyncio.Event()


@flow(on=orders, concurrency=1, max_queued=2)
async def bill(order: dict[str, Any]) -> None:
    await held.wait()


@flow(on=orders)
async def count(order: dict[str, Any]) -> None:
    """Count it."""


async def post(service: Running, number: int) -> Reply:
    emitter = service.process.emitters[orders.name]
    assert isinstance(orders, CalledTrigger)
    inbound = Inbound(
        method="POST", path="/orders", params={}, query=b"", client=None, received_at=utc_now(),
        headers={"content-type": (b"application/json",), "x-id": (str(number).encode(),)},
        body=orjson.dumps({"number": number}),
    )  # fmt: skip
    return await orders.receive(inbound, emitter)


async def test_a_webhook_answers_429_until_there_is_a_place(tmp_path: Path) -> None:
    async with running(tmp_path, [bill, count]) as service:
        assert (await post(service, 0)).status == 202

        async def runs() -> bool:
            return len(await service.process.journal.runs(Filter(state=RunState.RUNNING))) == 1

        await eventually(runs)
        assert [(await post(service, number)).status for number in (1, 2)] == [202] * 2
        for _ in range(2):
            full = await post(service, 3)
            assert full.status == 429
            assert 1 <= int(dict(full.headers)["retry-after"]) <= 300
            detail = orjson.loads(full.body)["detail"]
            assert detail == "nothing was stored; send the same request again later"
        counted = await service.process.journal.runs(Filter(flow="count"))
        assert len(counted) == 3, "nothing of the delivery was stored, for no flow"
        held.set()
        await service.all_finished()
        again = await post(service, 3)
        assert again.status == 202 and not orjson.loads(again.body)["duplicate"]


async def test_a_paused_flow_takes_all(tmp_path: Path) -> None:
    async with running(tmp_path, [bill]) as service:
        await service.process.operator.do(Pause("flow:bill"))
        assert [(await post(service, number)).status for number in range(5)] == [202] * 5
        held.set()
        await service.process.journal.resume("flow:bill")
        assert (await post(service, 9)).status == 429
        await service.process.journal.pause(StoredPause(name="*", since=utc_now()))
        assert (await post(service, 9)).status == 202


async def test_files_stay_and_are_taken_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_RETRY_SECONDS", (0.05, 0.2))
    inbox, done = tmp_path / "in", tmp_path / "done"
    inbox.mkdir()

    @flow(
        on=files(str(inbox / "*.txt"), settle="0s", then=move(str(done))),
        concurrency=1, max_queued=1,
    )  # fmt: skip
    async def load(path: Path) -> None:
        await held.wait()

    async with running(tmp_path / "data", [load]) as service:
        await service.process.start_triggers()
        for number in range(2):
            (inbox / f"{number}.txt").write_text("x")

            async def accepted(number: int = number) -> bool:
                return len(await service.process.journal.runs(Filter())) == number + 1

            await eventually(accepted)
        (inbox / "2.txt").write_text("x")
        emitter = next(iter(service.process.emitters.values()))

        async def waits() -> bool:
            return "max_queued=1 are the most" in (emitter.status.problem or "")

        await eventually(waits)
        assert len(await service.process.journal.runs(Filter())) == 2
        assert (inbox / "2.txt").exists()
        held.set()

        async def moved() -> bool:
            return sorted(path.name for path in done.glob("*")) == ["0.txt", "1.txt", "2.txt"]

        await eventually(moved)


async def test_ticks_follow_the_policy_of_missed_ones(tmp_path: Path) -> None:
    tick = every("200ms", missed="run_once")

    @flow(on=tick, concurrency=1, max_queued=1)
    async def poll() -> None:
        await held.wait()

    async with running(tmp_path, [poll]) as service:
        await service.process.start_triggers()
        emitter = service.process.emitters[tick.name]

        async def waits() -> bool:
            return bool(emitter.status.lags.get("tick"))

        await eventually(waits)
        assert len(await service.process.journal.runs(Filter())) == 2
        held.set()

        async def goes_on() -> bool:
            return len(await service.process.journal.runs(Filter())) > 2

        await eventually(goes_on)


def test_a_full_queue_is_429_and_the_whole_service_503() -> None:
    for error, status in ((QueueFull("full", retry_after_seconds=7), 429), (Overloaded("o"), 503)):
        answered, body, headers = problems.of_error(error)
        assert answered == status == orjson.loads(body)["status"]
        assert headers["Retry-After"] == str(error.retry_after_seconds)
        assert replies.busy(error).status == status


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("9", "max_queued='9': write how many runs may wait, such as 10_000"),
        (True, "max_queued=True: write how many runs may wait, such as 10_000"),
        (0, "max_queued=0: a flow that takes nothing is a paused trigger, `turnout pause`"),
    ],
)
def test_what_cannot_be_a_bound_is_refused(given: Any, words: str) -> None:
    options: Mapping[str, Any] = {"max_queued": given}
    with pytest.raises(SetupError) as refused:
        flow(**options)(bill.function)
    assert words in str(refused.value)
