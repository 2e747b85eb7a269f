"""A test asserts why an event started nothing, and is told what was decided instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from turnout import event, flow
from turnout.testing import serve, typed_event
from turnout.testing.fixture import Bench

pytest_plugins = ["turnout.testing.fixture"]


@flow(on=event("order.placed"), when=lambda event: event.data["amount"] > 0)
async def bill(order: dict[str, int]) -> None: ...


async def test_a_test_asserts_a_decision_and_its_facts() -> None:
    placed = typed_event(bill, {"amount": 0})
    async with serve(bill) as service:
        assert await service.emit(placed) == []
        made = await service.assert_decided(placed, "filtered", flow=bill, line=bill.line)
        assert made["facts"]["condition"] == 'when=lambda event: event.data["amount"] > 0'
        with pytest.raises(AssertionError) as failed:
            await service.assert_decided(placed.id, "duplicate")
        with pytest.raises(ValueError, match="'none' is no reason of a decision; they are filter"):
            await service.assert_decided(placed, "none")
    assert str(failed.value).startswith(
        "no decision duplicate; the event started 0 runs, and decided was:\n"
        '  bill: filtered (when=lambda event: event.data["amount"] > 0 at '
    )


def test_the_fixture_asserts_decisions_too(flows: Callable[..., Bench]) -> None:
    service = flows(bill)
    placed = typed_event(bill, {"amount": 0})
    service.emit(placed)
    service.assert_decided(placed, "filtered", flow="bill")
