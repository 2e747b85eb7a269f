"""Results: what is read back equals what was returned, or it is refused by name."""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, TypedDict
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from turnout.service.domain.binding import UNANNOTATED
from turnout.service.domain.errors import CodeChanged, NotKept
from turnout.service.steps.codec import decode, encode, encode_result

LIMIT = 100_000


class Colour(StrEnum):
    RED = "red"


class Animal(BaseModel):
    name: str


class Dog(Animal):
    tricks: list[str] = []


@dataclass
class Pair:
    left: int
    right: set[str] = field(default_factory=set)


class Holder(BaseModel, extra="allow"):
    what: Any


@dataclass(slots=True)
class Anything:
    what: Any


class Named(TypedDict):
    name: str


class Opaque:
    def __init__(self, value: int) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Opaque({self.value})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other.value == self.value

    __hash__ = None  # type: ignore[assignment]  # mutable


def round_trip(value: Any, annotation: Any) -> tuple[str, Any]:
    encoding, data = encode(value, annotation, max_bytes=LIMIT, name="step 'x#1'")
    return encoding, decode(encoding, data, annotation, name="step 'x#1'")


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("text", str), (7, int), (None, None), (True, bool), ({"a": [1, 2.5, None]}, UNANNOTATED),
        (Animal(name="cat"), Animal), (Pair(1, {"a"}), Pair), ({"name": "x"}, Named),
        (datetime(2025, 3, 1, tzinfo=UTC).replace(tzinfo=None), datetime),
        (timedelta(seconds=3), timedelta),
        (Path("/a/b"), Path), ({1, 2}, set[int]), ((1, "a"), tuple[int, str]), (Colour.RED, Colour),
        ("not an int", int), (Decimal("1.10"), Decimal), (UUID(int=5), UUID),
        ([Animal(name="a")], list[Animal]),
        ({"a": Pair(1)}, dict[str, Pair]), (None, Animal | None),
    ],
)  # fmt: skip
def test_annotated_values_are_kept_as_json(value: Any, annotation: Any) -> None:
    encoding, back = round_trip(value, annotation)
    assert (encoding, back, type(back)) == ("json", value, type(value))


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (Opaque(3), UNANNOTATED), (Opaque(3), Opaque), ((1, 2), UNANNOTATED), ({1: 2}, UNANNOTATED),
        (Dog(name="rex", tricks=["sit"]), Animal), ({"a": (1, 2)}, dict[str, Any]), (2**80, int),
        (Colour.RED, UNANNOTATED), (OrderedDict(a=1), Any), ({1}, list[int]),
        (datetime(2025, 3, 1, tzinfo=UTC), datetime), ("\ud800", str), (float("inf"), float),
        ({"a": Colour.RED}, dict[str, Any]), ({Colour.RED}, set), ([True], list[int]),
        (Holder(what=Colour.RED), Holder),
        (Holder.model_validate({"what": 1, "more": Colour.RED}), Holder),
        (Anything(Colour.RED), Anything), ((Colour.RED,), tuple[Any, ...]),
    ],
)  # fmt: skip
def test_what_json_would_change_is_pickled(value: Any, annotation: Any) -> None:
    encoding, back = round_trip(value, annotation)
    assert (encoding, back, type(back)) == ("pickle", value, type(value))
    assert repr(back) == repr(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_any_plain_value_comes_back_the_same(value: Any) -> None:
    assert round_trip(value, UNANNOTATED)[1] == value


class Trap:
    """Goes into a pickle and never comes out."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


@pytest.mark.parametrize("value", [threading.Lock(), lambda: 1, Trap()])
def test_what_cannot_be_kept_names_the_step_and_the_fix(value: Any) -> None:
    with pytest.raises(NotKept, match=r"^step 'x#1': the result, \w+, can be kept neither"):
        encode(value, UNANNOTATED, max_bytes=LIMIT, name="step 'x#1'")


def test_a_result_too_large_names_its_size_and_the_setting() -> None:
    with pytest.raises(NotKept, match=r"12 bytes and the limit is 10 \(max_blob_bytes\)"):
        encode("0123456789", str, max_bytes=10, name="step 'x#1'")
    with pytest.raises(NotKept, match="flow 'f'"):
        encode_result("0123456789", str, max_bytes=10, name="flow 'f'")


def test_a_recorded_result_today_s_code_cannot_read_is_named() -> None:
    with pytest.raises(CodeChanged, match="step 'x#1' no longer fits"):
        decode("json", b'{"nom": "a"}', Animal, name="step 'x#1'")
    gone = pickle.dumps(Opaque(1)).replace(b"Opaque", b"Vanish")
    with pytest.raises(CodeChanged):
        decode("pickle", gone, UNANNOTATED, name="step 'x#1'")


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (None, None, None), ({"a": 1}, UNANNOTATED, {"a": 1}), (Dog(name="r"), Dog,
        {"name": "r", "tricks": []}), (Pair(1, {"a"}), UNANNOTATED, {"left": 1, "right": ["a"]}),
        ((1, 2), tuple[int, int], [1, 2]), (Path("/x"), str, "/x"), (float("nan"), float, None),
        ([Dog(name="r")], dict[str, int], [{"name": "r", "tricks": []}]),
    ],
)  # fmt: skip
def test_a_run_s_result_is_json_for_people_and_programs(
    value: Any, annotation: Any, expected: Any
) -> None:
    data = encode_result(value, annotation, max_bytes=LIMIT, name="flow 'f'")
    assert (None if data is None else orjson.loads(data)) == expected


def test_a_run_s_result_is_read_back_exactly() -> None:
    for value in (2**70, [-(2**64)], {"a": 10**400}):
        result = encode_result(value, UNANNOTATED, max_bytes=LIMIT, name="flow 'x'") or b""
        assert decode("json", result, UNANNOTATED, name="x") == value
    with pytest.raises(NotKept, match="is not JSON"):
        encode_result(10**5000, UNANNOTATED, max_bytes=LIMIT, name="flow 'x'")


async def test_a_forgotten_await_is_guessed() -> None:
    async def forgotten() -> None: ...

    coroutine = forgotten()
    with pytest.raises(NotKept, match="forget `await`"):
        encode_result(coroutine, None, max_bytes=LIMIT, name="flow 'f'")
    coroutine.close()
    with pytest.raises(NotKept):
        encode_result(threading.Lock(), None, max_bytes=LIMIT, name="flow 'f'")
