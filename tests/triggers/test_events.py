"""The event trigger: a type, nothing to watch."""

from __future__ import annotations

from typing import Any

import pytest

from turnout.service.domain.errors import SetupError
from turnout.service.domain.trigger import ReadTrigger, StartsOnType
from turnout.triggers.events import event


def test_an_event_trigger_is_its_type() -> None:
    trigger = event("com.example.order.paid")
    trigger.check()
    assert trigger.name == "event:com.example.order.paid"
    assert trigger.kind == "event"
    assert isinstance(trigger, StartsOnType)
    assert not isinstance(trigger, ReadTrigger)
    assert {trigger, event("com.example.order.paid")} == {trigger}


@pytest.mark.parametrize("type", ["", "order paid", "order\npaid", "x" * 257, 5])
def test_a_type_no_event_can_carry_is_refused(type: Any) -> None:
    with pytest.raises(SetupError, match="a type"):
        event(type).check()


def test_two_stars_are_a_part_of_their_own() -> None:
    event("order.**").check()
    with pytest.raises(SetupError) as refused:
        event("order.**paid").check()
    assert str(refused.value) == (
        "event('order.**paid'): ** stands for whole parts, so write it between dots, not as "
        "'**paid'"
    )
