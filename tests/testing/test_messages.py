"""The kit's errors: what is wrong with a test, and what its author does about it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from turnout import debounce, event, every, files, flow, task
from turnout.testing import (
    file_event,
    hand_event,
    kafka_event,
    run,
    serve,
    service,
    timer_event,
    typed_event,
    webhook_event,
)


@task
async def step() -> int:
    return 1


@flow(on=[every("1h"), event("order.placed")], when=lambda event: event.data != 1)
async def bill(order: dict[str, Any] | int | None = None) -> int:
    return await step()


@flow(on=event("order.typed"))
async def typed(order: dict[str, int]) -> None: ...


@flow
async def by_hand() -> None: ...


def test_a_step_to_crash_at_that_is_not_there() -> None:
    with pytest.raises(AssertionError) as failed:
        run(bill, 2, crash_at=9)
    assert str(failed.value) == (
        "there was no step 9 to crash at; recorded were step#1: crash_at counts steps from 1, in "
        "the order they end"
    )


async def test_an_event_that_starts_nothing() -> None:
    async with serve(bill, typed) as served:
        with pytest.raises(
            AssertionError, match=r"flow 'bill' did not start: bill: filtered \(when="
        ) as failed:
            await served.run(bill, 1)
        assert str(failed.value).endswith("use service.assert_decided(event, reason, flow=…)")
        refused = await served.run(typed, {"id": "x"})
        assert refused.error is not None and "id" in refused.error.message


async def test_a_flow_a_trigger_or_a_run_that_is_not_served() -> None:
    async with serve(bill) as served:
        with pytest.raises(AssertionError, match=r"'by_hand' is not served here; name it in serve"):
            await served.run(by_hand)
        stranger = webhook_event(webhooks(), {})
        with pytest.raises(
            AssertionError, match=r"has the trigger 'webhook:/x'; there are: .*every:1h"
        ):
            await served.emit(stranger)
        with pytest.raises(
            AssertionError, match=r"no run 'nothing' in this service: take the id of"
        ):
            await served.look("nothing")


def webhooks() -> Any:
    from turnout import webhook

    return webhook("/x", verify="none")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (webhook_event, r"'bill' has no webhook trigger; its triggers: every:1h, "
         r"event:order\.placed; use timer_event\(…\) or typed_event\(…\)"),
        (kafka_event, r"'bill' has no kafka trigger"),
    ],
)  # fmt: skip
def test_an_event_of_a_trigger_that_the_flow_has_not(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(bill)
    with pytest.raises(
        ValueError, match=r"its triggers: none; use hand_event\(…\), and service\.em"
    ):
        timer_event(by_hand)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    @flow(on=files("inbox/*.csv"))
    def load(path: Path) -> None: ...

    with pytest.raises(
        FileNotFoundError, match=r"no file .*x\.csv: write it before file_event\(…\)"
    ):
        file_event(load, tmp_path / "x.csv")


def test_data_that_is_no_json() -> None:
    with pytest.raises(
        TypeError, match=r"is no JSON \(.*\); give what a sender would send: .*dump"
    ):
        typed_event(typed, {1, 2})
    with pytest.raises(TypeError, match=r"json=<object .*> is no JSON"):
        hand_event(object())


async def test_what_is_no_flow() -> None:
    with pytest.raises(TypeError, match=r"serve\(.*step.*\): give it flows, functions below @flow"):
        async with serve(step):  # type: ignore[arg-type]
            pass


async def test_a_window_that_is_still_open() -> None:
    @flow(on=debounce(event("saved"), "5s"))
    async def index(page: dict[str, int]) -> None: ...

    async with serve(index) as served:
        with pytest.raises(
            AssertionError, match=r"waits for the end of its window: use service\.emit"
        ):
            await served.run(index, {"version": 1})


async def test_a_run_that_does_not_come_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_PATIENCE_SECONDS", 0.3)

    @flow
    async def slow() -> None:
        await asyncio.sleep(2)

    async with serve(slow) as served:
        with pytest.raises(
            AssertionError, match=r"after 0\.3 s these runs still work: slow \("
        ) as failed:
            await served.run(slow)
        assert "wait with turnout's sleep(…), not with asyncio.sleep" in str(failed.value)
