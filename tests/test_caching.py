"""`cache=by_input(…)`: computed once for equal input, by whoever asks, until its time is over."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from turnout import by_input, event, flow, gather, task
from turnout.service.errors import NotKept, SetupError
from turnout.service.steps.caching import key_of
from turnout.testing import serve, typed_event
from turnout.testing.events import hand_event

asked: list[str] = []
broken: set[str] = set()


@pytest.fixture(autouse=True)
def all_well() -> None:
    asked.clear()
    broken.clear()


@task(cache=by_input(ttl="1h"))
async def fetch(what: str, *, page: int = 1) -> dict[str, int]:
    asked.append(what)
    await asyncio.sleep(0.01)
    if what in broken:
        raise OSError("down")
    return {what: page}


@flow(on=event("ask"))
async def both() -> list[dict[str, int]]:
    return list(await gather(fetch("users"), fetch("orders")))


@task(cache=by_input(ttl="1h"), fallback=0)
def count(what: str) -> int:
    asked.append(what)
    if what in broken:
        raise OSError("down")
    return len(what)


@flow
def counts() -> list[int]:
    return [count("aa"), count(what="aa"), count("bbb")]


async def test_equal_input_is_asked_for_once_until_its_time_is_over() -> None:
    async with serve(both) as service:
        first = await service.run(both)
        await service.restart()
        again = await service.run(both)
        assert first.result == again.result == [{"users": 1}, {"orders": 1}]
        assert sorted(asked) == ["orders", "users"]
        assert [step.origin for step in first.steps.values()] == [None, None]
        assert [step.origin for step in again.steps.values()] == [first.id] * 2
        await service.advance("61m")
        assert (await service.run(both)).steps["fetch#1"].origin is None
        assert len(asked) == 4


async def test_runs_that_ask_together_compute_once() -> None:
    async with serve(both) as service, asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(service.emit(typed_event(both)))
    assert sorted(asked) == ["orders", "users"]


async def test_a_failure_is_not_kept() -> None:
    broken.add("users")
    async with serve(both) as service:
        assert (await service.run(both)).state == "failed"
        broken.clear()
        assert (await service.run(both)).state == "succeeded"
    assert asked.count("users") == 2


async def test_a_def_flow_shares_results_and_a_fallback_is_not_kept() -> None:
    broken.add("bbb")
    async with serve(counts) as service:
        first = await service.run(counts)
        assert first.result == [2, 2, 0]
        assert first.steps["count#2"].origin == first.id
        broken.clear()
        assert (await service.run(counts)).result == [2, 2, 3]
    assert asked == ["aa", "bbb", "bbb"]


async def test_no_tenant_is_given_another_ones_result() -> None:
    async with serve(both) as service:
        for tenant in ("a", "b", "a"):
            event = replace(hand_event(at=service.clock.now()), tenant=tenant)
            (result,) = await service.emit(event, both)
            assert result.state == "succeeded", result.error
    assert len(asked) == 4


async def test_cleared_results_are_asked_for_again() -> None:
    async with serve(both) as service:
        await service.run(both)
        assert await service.process.operator.clear_cache("fetch") == 2
        await service.run(both)
    assert len(asked) == 4


# ---------------------------------------------------------------- keys


@dataclass
class Box:
    value: Any


class Model(BaseModel):
    value: int


def sized(first: Any, second: Any = None) -> None: ...


def key(*args: Any, **kwargs: Any) -> bytes:
    return key_of(sized, "sized", args, kwargs)


def test_how_arguments_are_written_does_not_matter_and_their_types_do() -> None:
    assert key(1, 2) == key(second=2, first=1) == key(1, second=2)
    assert key({"a": 1, "b": [2]}) == key({"b": [2], "a": 1})
    assert key({1, 2, 3}) == key({3, 2, 1})
    assert key(Model(value=1)) == key(Model(value=1))
    different: list[Any] = [
        1, True, "1", 1.0, b"1", None, [1], (1,), {1}, {"1": 1}, {1: 1}, Box(1), Box("1"),
        Model(value=1), timedelta(1), [[1], 2], [1, [2]], ["ab"], ["a", "b"],
    ]  # fmt: skip
    assert len({key(each) for each in different}) == len(different)


def test_other_code_is_another_key() -> None:
    def versions(number: int) -> Any:
        source = f"def work(x):\n    return x + {number}\n"
        names: dict[str, Any] = {"__name__": __name__}
        exec(source, names)
        return names["work"]

    one, same, other = (key_of(versions(each), "work", (1,), {}) for each in (1, 1, 2))
    assert one == same != other


def test_what_cannot_be_compared_is_refused_by_name() -> None:
    with pytest.raises(NotKept, match="argument 'second' cannot be part of a key"):
        key(1, object())
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotKept, match="holds itself"):
        key(loop)
    with pytest.raises(SetupError, match="for a time"):
        by_input(ttl="0s")


def test_a_secret_is_in_the_key_only_as_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    from turnout import secret

    monkeypatch.setenv("CACHE_TOKEN", "value-number-one")
    first = key(secret("CACHE_TOKEN"))
    assert first == key(secret("CACHE_TOKEN"))
    monkeypatch.setenv("CACHE_TOKEN", "value-number-two")
    assert first != key(secret("CACHE_TOKEN"))
