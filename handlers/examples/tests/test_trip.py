"""How a flow is tested: run as it would run, killed at every step, in no time.

Run it beside the flows: `python -m pytest tests`.
"""

from collections.abc import Callable
from typing import Any

import pytest
from trip import trip

from turnout.testing import run, webhook_event

pytest_plugins = ["turnout.testing.fixture"]

WANTED = {"traveller": "t-1", "flight": "TX 1", "hotel": "Sea View"}


@pytest.mark.parametrize("crash_at", [None, 1, 2])
def test_a_crash_changes_nothing(crash_at: int | None) -> None:
    result = run(trip, WANTED, crash_at=crash_at)
    assert result.state == "succeeded"
    assert list(result.steps) == ["book#1", "book#2"]
    assert [each.rsplit("-", 1)[0] for each in result.result] == ["flight-TX 1", "hotel-Sea View"]


def test_the_flight_is_given_back_when_the_hotel_is_full(flows: Callable[..., Any]) -> None:
    service = flows(trip)
    (result,) = service.emit(webhook_event(trip, WANTED | {"hotel": "Full House"}))
    assert (result.state, result.undo) == ("failed", "done")
    assert result.steps["~undo[0]/give_back#1"].state == "succeeded"
