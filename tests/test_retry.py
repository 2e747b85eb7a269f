"""Delays grow, stay under the cap, and are spread evenly."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.service.errors import SetupError
from turnout.service.retry import next_delay, retry


def test_without_jitter_delays_double_up_to_the_cap_and_then_end() -> None:
    policy = retry(4, delay="1s", factor=2, max="5s", jitter=False)
    delays = [next_delay(policy, number) for number in range(1, 6)]
    assert delays == [timedelta(seconds=seconds) for seconds in (1, 2, 4, 5)] + [None]


@given(st.integers(1, 10_000), st.floats(1, 100), st.integers())
def test_full_jitter_stays_within_the_delay(number: int, factor: float, seed: int) -> None:
    policy = retry(10_000, delay="1s", factor=factor, max="1h")
    delay = next_delay(policy, number, rng=random.Random(seed))
    assert delay is not None
    assert timedelta(0) <= delay <= timedelta(hours=1)


def test_full_jitter_spreads() -> None:
    policy = retry(1, delay="10s")
    drawn = {next_delay(policy, 1, rng=random.Random(seed)) for seed in range(100)}
    assert len(drawn) > 90


def test_a_policy_that_cannot_be_is_refused() -> None:
    for arguments in ((-1, 2.0), (3, 0.5)):
        with pytest.raises(SetupError):
            retry(arguments[0], factor=arguments[1])
