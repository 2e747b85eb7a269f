"""Delays grow, stay under the cap, and are spread evenly."""

from __future__ import annotations

import pickle
import random
from datetime import UTC, datetime, timedelta
from email.message import Message
from typing import Any
from urllib.error import HTTPError

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.service.domain.errors import SetupError
from turnout.service.domain.retry import RetryPolicy, delay_after, next_delay, retry
from turnout.service.domain.run import Fail, Retry, Skip


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


NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
TEN_TIMES = retry(10, delay="2s", factor=1, jitter=False)


class Busy(Exception):
    def __init__(self, retry_after: object) -> None:
        super().__init__("busy")
        self.retry_after = retry_after


def refusal(value: str) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://service.test/")
    response = httpx.Response(429, headers={"Retry-After": value}, request=request)
    return httpx.HTTPStatusError("too many", request=request, response=response)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (OSError(), 2),
        (refusal("30"), 30),
        (refusal("1"), 2),
        (refusal("Sun, 01 Nov 2026 12:00:45 GMT"), 45),
        (refusal("Sun, 01 Nov 2020 12:00:45 GMT"), 2),
        (refusal("soon"), 2),
        (refusal("9" * 400), 86_400),
        (Busy(7), 7),
        (Busy(timedelta(minutes=1)), 60),
        (Busy(10**400), 86_400),
        (Busy(float("nan")), 2),
        (Busy(-5), 2),
        (Busy("what"), 2),
        (HTTPError("http://service.test/", 503, "busy", Message(), None), 2),
        (Retry(after="1ms"), 0.001),
        (Retry(), 2),
    ],
    ids=str,
)
def test_a_server_that_asks_for_time_gets_it(error: BaseException, seconds: float) -> None:
    assert delay_after(TEN_TIMES, 1, error, now=NOW) == timedelta(seconds=seconds)


def test_only_the_errors_named_are_retried() -> None:
    def retried(policy: RetryPolicy, error: BaseException) -> bool:
        return delay_after(policy, 1, error, now=NOW) is not None

    some = retry(3, on=(OSError, TimeoutError), not_on=FileNotFoundError)
    assert [retried(some, each) for each in (OSError(), FileNotFoundError(), ValueError())] == [
        True, False, False,
    ]  # fmt: skip
    assert retried(some, Retry())  # the author asked for it in so many words
    most = retry(3, not_on=(ValueError,))
    assert [retried(most, each) for each in (OSError(), UnicodeError())] == [True, False]
    assert delay_after(most, 4, OSError(), now=NOW) is None
    with pytest.raises(SetupError, match="write types of errors"):
        retry(3, on=("OSError",))  # type: ignore[arg-type]  # what is under test


def test_a_long_first_delay_is_not_cut_to_the_usual_longest_one() -> None:
    assert retry(2, delay="1h", jitter=False).max == timedelta(hours=1)
    assert retry(2, delay="1h", max="10m").max == timedelta(minutes=10)
    assert retry(2, delay="1s").max == timedelta(minutes=15)


def test_the_reason_comes_first_as_in_every_signal() -> None:
    for signal in (Retry, Fail, Skip):
        assert str(signal("not paid yet")) == "not paid yet"
    asked = Retry("not paid yet", after="10m")
    assert (str(asked), asked.after) == ("not paid yet", timedelta(minutes=10))
    back = pickle.loads(pickle.dumps(asked))  # as a worker process sends it
    assert (str(back), back.after) == ("not paid yet", timedelta(minutes=10))
    wrong: Any
    for wrong in ("10m", timedelta(minutes=10)):
        with pytest.raises(TypeError, match=r"write Retry\(after="):
            Retry(wrong)
