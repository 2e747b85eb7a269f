"""`@flow(shadow=True)`: each event that would start a run says so, and nothing starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from turnout import Event, Refused, debounce, event, files, flow, kafka, move, webhook
from turnout.service.domain.errors import Refused as NotAllowed
from turnout.service.domain.errors import SetupError
from turnout.service.journal.records import Filter
from turnout.service.operate.documents import flow_of
from turnout.service.operate.verbs import Replay
from turnout.service.operate.why import why
from turnout.testing import (
    file_event,
    kafka_event,
    run,
    serve,
    typed_event,
    webhook_event,
)

done: list[str] = []
orders = webhook("/orders", verify="none")


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


class Order(BaseModel):
    id: int
    amount: float


@flow(
    on=orders, shadow=True, when=lambda event: event.data["amount"] > 0,
    ordered_by=lambda event: event.data["id"],
)  # fmt: skip
async def tried(order: Order) -> str:
    done.append("tried")
    return "ran"


@flow(on=orders)
async def real(event: Event) -> None:
    done.append("real")


async def test_an_event_that_would_start_a_run_says_so_and_starts_none() -> None:
    async with serve(tried, real) as service:
        made = webhook_event(tried, {"id": 7, "amount": 3})
        assert [each.flow for each in await service.emit(made)] == ["real"]
        decision = await service.assert_decided(made, "shadow", flow=tried)
        assert decision["detail"] == "a run would have started"
        assert decision["facts"] == {"rule": "shadow=True", "would": "start", "key": "7"}
        (document,) = await why(service.journal, made.id, project=service.process.project)
        answers = {answer["flow"]: answer for answer in document["flows"]}
        assert (answers["tried"]["answer"], answers["tried"]["runs"]) == ("shadow", [])
        assert answers["tried"]["now"]["would"] == "shadow"
        counted = service.process.metrics.decisions.labels("tried", "shadow")
        assert counted.value == 1
        assert [each.flow for each in await service.journal.runs(Filter())] == ["real"]
    assert done == ["real"]


async def test_its_filter_and_its_parameters_are_asked() -> None:
    async with serve(tried) as service:
        none = webhook_event(tried, {"id": 7, "amount": 0})
        wrong = webhook_event(tried, {"id": "x", "amount": 1})
        for made in (none, wrong):
            assert await service.emit(made) == []
        await service.assert_decided(none, "filtered", flow=tried)
        decision = await service.assert_decided(wrong, "shadow", flow=tried)
        assert decision["facts"]["would"] == "fail"
        assert "would have failed at once: invalid_data" in decision["detail"]
        assert await service.journal.runs(Filter(dead=True)) == []


@flow(on=kafka("orders", group="g"), shadow=True)
async def streamed(event: Event) -> None:
    done.append("streamed")


async def test_of_kafka_each_record_is_kept_that_would_start_a_run() -> None:
    async with serve(streamed) as service:
        made = [kafka_event(streamed, {"number": number}) for number in range(5)]
        for each in made:
            await service.emit(each)
        for each in made:
            await service.assert_decided(each, "shadow", flow=streamed)


@flow(on=files("*.csv", then=move("done")), shadow=True)
async def loaded(event: Event) -> None:
    done.append("loaded")


@pytest.fixture
def dropped(tmp_path: Path) -> Event:
    (tmp_path / "a.csv").write_text("1")
    return file_event(loaded, tmp_path / "a.csv")


async def test_the_file_of_an_event_stays(dropped: Event) -> None:
    async with serve(loaded) as service:
        made = dropped
        await service.emit(made)
        await service.assert_decided(made, "shadow", flow=loaded)
        assert await service.journal.due_actions(0, 9) == []


@flow
async def parent() -> str:
    try:
        return await tried(Order(id=1, amount=2))
    except Refused as refused:
        return f"refused: {refused.reason}"


async def test_a_flow_that_calls_it_is_refused() -> None:
    async with serve(parent, tried) as service:
        run = await service.run(parent)
        assert run.result == "refused: shadow"
        assert {key: step.state for key, step in run.steps.items()} == {"tried#1": "failed"}


@flow(on=event("order.placed"), shadow=True)
async def alone(event: Event) -> None:
    done.append("alone")


async def test_a_replay_starts_nothing_either() -> None:
    async with serve(alone) as service:
        made = typed_event(alone, {"id": 7})
        await service.emit(made)
        with pytest.raises(NotAllowed, match="starts no flow"):
            await service.process.operator.do(Replay(made.id))


def test_whoever_asks_for_one_run_gets_it() -> None:
    assert run(tried, {"id": 7, "amount": 3}).result == "ran"


def test_it_is_listed_as_what_it_is() -> None:
    assert (flow_of(tried)["shadow"], flow_of(real)["shadow"]) == (True, False)


def test_what_is_neither_true_nor_false_is_refused() -> None:
    wrong: Any = "yes"
    with pytest.raises(SetupError, match="shadow='yes': write shadow=True, or leave it out"):
        flow(name="wrong", shadow=wrong)(lambda: None)


def test_a_window_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(SetupError, match=r"shadow=True with on=debounce\(…\).*turnout backtest"):
        flow(on=debounce(event("order.placed"), "5s"), shadow=True, name="tried")(lambda: None)
