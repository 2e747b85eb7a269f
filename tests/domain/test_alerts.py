"""What makes two failures the same: their type and place, never their data."""

from __future__ import annotations

import pytest

from turnout.service.domain.alerts import cause_of
from turnout.service.domain.run import RunError

TRACEBACK = """Traceback (most recent call last):
  File "/srv/flows.py", line 12, in bill
    total = add(order)
  File "/srv/sums.py", line 7, in add
    return order["amount"] + 1
  File "/usr/lib/python3.11/site-packages/orders/model.py", line 3, in __getitem__
    raise KeyError(name)
KeyError: 'amount of order 4711'
"""


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RunError("OSError", "no answer for order 1", "charge#1"), "OSError in charge"),
        (RunError("OSError", "no answer for order 2", "map[17]/charge#4"), "OSError in charge"),
        (RunError("KeyError", "order 4711", None, TRACEBACK), "KeyError in add"),
        (RunError("process_died", "the process died 5 times"), "process_died"),
        (RunError("failed", "it owes us", None, TRACEBACK), "Fail in add"),
    ],
)
def test_a_cause_is_a_type_and_a_place(error: RunError, cause: str) -> None:
    assert cause_of(error) == cause


def test_a_cause_is_short() -> None:
    assert len(cause_of(RunError("Error" * 100, "", "step#1"))) == 160
