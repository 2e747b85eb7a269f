"""What rules cost: five on a flow, and keys, compared with the same load in the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.rules_load import AT_ONCE, found

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(900)]


def test_five_rules_cost_little_more_than_one(tmp_path: Path, full: bool, say: Say) -> None:
    events, rounds = (5_000, 8) if full else (750, 6)
    ratio, _ = found(tmp_path, "rules", keys=100, events=events, rounds=rounds)
    say(f"five rules: {ratio:.2f} x of one")
    assert ratio <= (1.3 if full else 1.6)


def test_keys_with_order_and_a_limit_keep_most_of_the_throughput_and_the_order(
    tmp_path: Path, full: bool, say: Say
) -> None:
    keys = 10_000 if full else 300
    events, rounds = (5_000, 10) if full else (750, 6)  # 50,000 of each flow
    ratio, ordered = found(tmp_path, "keys", keys=keys, events=events, rounds=rounds)
    say(f"keys: {1 / ratio:.2f} x of the throughput without")
    assert sum(map(len, ordered)) == events * rounds + AT_ONCE
    assert all(numbers == sorted(numbers) for numbers in ordered), "the order is exact"
    assert 1 / ratio >= (0.7 if full else 0.5)
