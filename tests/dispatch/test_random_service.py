"""A random service fuzzer: every run starts once, in its order, whatever is done to the service."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.random_service import play, shrink_bounds
from turnout.service.flowcontrol import order


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_every_run_starts_once_and_in_order_under_random_actions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, full: bool, say: Say
) -> None:
    first, count = (seed, 300) if full else (0, 6)
    for number in range(first, first + count):
        with monkeypatch.context() as patch:
            shrink_bounds(patch, random.Random(number))
            say(f"TURNOUT_TEST_SEED={number}")
            await play(number, tmp_path / str(number))


async def test_the_fuzzer_finds_a_key_that_is_released_too_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: keys are released while their runs are unfinished."""
    shrink_bounds(monkeypatch, random.Random(1))
    monkeypatch.setattr(order.Order, "suspend", order.Order.leave)
    with pytest.raises(BaseException) as caught:
        for number in range(5):
            await play(number, tmp_path / str(number))
    assert "overtook" in repr(caught.value)
