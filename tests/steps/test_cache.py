"""`cache=by_input(…)`: computed once for equal input, by whoever asks, until its time is over."""

from __future__ import annotations

import asyncio
import pickle
import re
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, PrivateAttr

from turnout import by_input, event, flow, gather, task
from turnout.service.domain.errors import NotKept, SetupError
from turnout.service.operate.verbs import ClearCache
from turnout.service.steps.cache import key_of
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
        assert await service.process.operator.do(ClearCache("fetch")) == 2
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


class Query(BaseModel, extra="allow"):
    table: str = "t"
    _note: str = PrivateAttr("")


class Fixed(tzinfo):
    def utcoffset(self, _at: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def dst(self, _at: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, _at: datetime | None) -> str:
        return "one hour ahead"


class Pair(NamedTuple):
    one: int
    two: int


def beside(value: Any, **attributes: Any) -> Any:
    for name, held in attributes.items():
        object.__setattr__(value, name, held)
    return value


NOON = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))


@pytest.mark.parametrize(
    "values",
    [
        [Query.model_validate({"where": "a"}), Query.model_validate({"where": "b"}), Query()],
        [Query(), Query(table="t")],  # what is set is part of what `exclude_unset` gives
        [beside(Query(), _note="a"), beside(Query(), _note="b")],
        [Box(1), beside(Box(1), more=1), beside(Box(1), more=2)],
        [OrderedDict(a=1, b=2), OrderedDict(b=2, a=1), {"a": 1, "b": 2}],
        [defaultdict(int, a=1), defaultdict(bool, a=1), {"a": 1}],
        [NOON, NOON.replace(fold=1), NOON.replace(tzinfo=timezone(timedelta(hours=2)))],
        [0.0, -0.0, 0, False, Decimal(0), Decimal("0.0"), "0"],
        [(1, 2), Pair(1, 2), Pair(2, 1), [1, 2]],
        [[[1], [2]], [[1, 2]], [[1], 2], [[], [1, 2]], [["1"], [2]]],
        [{"a": (1,)}, {"a": [1]}, {"a": {1}}],
        [Path("a"), PurePosixPath("a"), "a"],
        [{1: (2,)}, {"1": (2,)}, {True: (2,)}],
    ],
)
def test_inputs_a_task_could_tell_apart_have_keys_of_their_own(values: list[Any]) -> None:
    assert len({key(each) for each in values}) == len(values)
    assert [key(each) for each in values] == [
        key(pickle.loads(pickle.dumps(each))) for each in values
    ]


class Counting(dict[str, int]):
    more = 0


@pytest.mark.parametrize(
    "value",
    [
        Counting(a=1), defaultdict(lambda: 1), deque([1]), re.compile("a"), bytearray(b"a"),
        datetime(2026, 1, 1, tzinfo=Fixed()), type("Text", (str,), {})("a"), range(3), len,
    ],
)  # fmt: skip
def test_inputs_there_is_no_telling_of_are_refused(value: Any) -> None:
    with pytest.raises(NotKept, match="there is no telling"):
        key(value)


@task(cache=by_input(ttl="1h"))
async def rows(query: Query) -> str:
    return f"{query.model_extra}"


@flow(on=event("rows"))
async def asks_twice() -> list[str]:
    return [
        await rows(Query.model_validate({"where": "a=1"})),
        await rows(Query.model_validate({"where": "b=2"})),
    ]


@task(cache=by_input(ttl="1h"))
async def due(day: int) -> datetime:
    return datetime(2026, 3, day, 12, tzinfo=ZoneInfo("Europe/Berlin"))


@flow(on=event("due"))
async def asks_when() -> list[str]:
    return [str(await due(28) + timedelta(days=1)), str(await due(28) + timedelta(days=1))]


async def test_a_kept_result_is_that_of_this_input_and_as_it_was() -> None:
    async with serve(asks_twice, asks_when) as service:
        assert (await service.run(asks_twice)).result == ["{'where': 'a=1'}", "{'where': 'b=2'}"]
        assert (await service.run(asks_when)).result == ["2026-03-29 12:00:00+02:00"] * 2
