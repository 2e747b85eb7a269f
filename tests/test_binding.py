"""Binding: every kind of parameter is filled or refused, and bad data names its field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

import pytest
from pydantic import BaseModel

from tests.attempts import an_event
from turnout import Event, resource
from turnout.service.binding import UNANNOTATED, Binding
from turnout.service.errors import InvalidData, SetupError
from turnout.service.event import file_url

if TYPE_CHECKING:
    from fractions import Fraction


class Line(BaseModel):
    sku: str
    amount: float


class Order(BaseModel):
    id: str
    lines: list[Line]
    placed: date | None = None


@dataclass
class Point:
    x: int
    y: int = 0


class Inner(TypedDict):
    deep: int


class Typed(TypedDict):
    name: str
    inner: NotRequired[list[Inner]]


@resource
def database() -> str:
    return "the database"


def bind(function: Callable[..., Any], event: Event) -> dict[str, Any]:
    return Binding.of(function, file="flows.py", line=7, flow="bill").arguments(event)


def problem(function: Callable[..., Any]) -> str:
    with pytest.raises(SetupError) as caught:
        Binding.of(function, file="flows.py", line=7, flow="bill")
    assert str(caught.value).startswith("flows.py:7: flow 'bill': ")
    return caught.value.message


def test_each_annotation_takes_its_part_of_the_event() -> None:
    def everything(
        event: Event, order: Order, raw: bytes, text: str, path: Path, maybe: Path | None
    ) -> None: ...

    where = file_url("/tmp/a b.csv")
    event = an_event(
        {"id": "7", "lines": [], "placed": "2025-03-01"}, extensions={"fileurl": where}
    )
    filled = bind(everything, event)
    assert filled["event"] is event
    assert filled["order"] == Order(id="7", lines=[], placed=date(2025, 3, 1))
    assert filled["raw"] == event.body == filled["text"].encode()
    assert filled["path"] == filled["maybe"] == Path("/tmp/a b.csv")


def test_models_dataclasses_and_typed_dicts_are_validated() -> None:
    def dataclassed(point: Point) -> None: ...
    def typed(value: Typed) -> None: ...
    def several(points: list[Point]) -> None: ...
    def free(data: dict[str, Any]) -> None: ...
    def anything(data: Any) -> None: ...

    assert bind(dataclassed, an_event({"x": "3"})) == {"point": Point(3)}
    assert bind(typed, an_event({"name": "a", "inner": [{"deep": 1}]})) == {
        "value": {"name": "a", "inner": [{"deep": 1}]}
    }
    assert bind(several, an_event([{"x": 1}])) == {"points": [Point(1)]}
    assert bind(free, an_event({"a": 1})) == {"data": {"a": 1}}
    assert bind(anything, an_event([1])) == {"data": [1]}


def test_bad_data_names_the_path_of_the_field_and_not_its_value() -> None:
    def order(order: Order) -> None: ...
    def typed(value: Typed) -> None: ...
    def free(data: dict[str, int]) -> None: ...

    with pytest.raises(InvalidData) as caught:
        bind(order, an_event({"id": "1", "lines": [{"sku": "s", "amount": "private"}, {}]}))
    assert caught.value.field == "lines.0.amount"
    assert str(caught.value).startswith("lines.0.amount: Input should be a valid number")
    assert str(caught.value).endswith("(and 2 more)")
    assert "private" not in str(caught.value)
    with pytest.raises(InvalidData, match=r"^inner\.0\.deep: Field required$"):
        bind(typed, an_event({"name": "a", "inner": [{}]}))
    with pytest.raises(InvalidData, match="valid dictionary"):
        bind(free, an_event([1]))


def test_a_body_that_does_not_decode_and_a_missing_file_are_invalid_data() -> None:
    def order(order: Order) -> None: ...
    def text(text: str) -> None: ...
    def file(path: Path) -> None: ...

    with pytest.raises(InvalidData, match="not JSON"):
        bind(order, an_event(body=b"{"))
    with pytest.raises(InvalidData, match="not UTF-8 text"):
        bind(text, an_event(body=b"\xff"))
    with pytest.raises(InvalidData, match="wants a file"):
        bind(file, an_event())
    assert bind(lambda: None, an_event(body=b"{")) == {}


def test_defaults_stand_when_the_event_has_nothing_for_them() -> None:
    def order(order: Order | None = None, limit: Any = 5) -> None: ...
    def one(point: Point, zone: str = "UTC") -> None: ...
    def maybe(point: Point = Point(0)) -> None: ...  # noqa: B008  a frozen enough default
    def file(path: Path = Path("none")) -> None: ...
    def bare(event: Event, note="x") -> None: ...  # type: ignore[no-untyped-def]  # under test

    assert "order" in problem(order)
    assert bind(one, an_event({"x": 1})) == {"point": Point(1)}
    assert bind(maybe, an_event()) == {}
    assert bind(maybe, an_event({"x": 1})) == {"point": Point(1)}
    assert bind(file, an_event()) == {}
    assert list(bind(bare, an_event())) == ["event"]


def test_resources_are_listed_and_left_out_of_the_arguments() -> None:
    def uses(order: Order, db: Annotated[str, database]) -> int: ...  # type: ignore[empty-body]  # only read

    binding = Binding.of(uses, file="f", line=1, flow="uses")
    assert dict(binding.resources) == {"db": database}
    assert list(binding.arguments(an_event({"id": "1", "lines": []}))) == ["order"]
    assert binding.returns is int


def test_a_flow_without_parameters_looks_at_nothing() -> None:
    def nothing():  # type: ignore[no-untyped-def]  # under test
        pass

    binding = Binding.of(nothing, file="f", line=1, flow="nothing")
    assert binding.arguments(an_event(body=b"not json at all")) == {}
    assert binding.returns is UNANNOTATED


def test_what_cannot_be_filled_is_refused_with_the_fix() -> None:
    def two(first: Order, second: Point) -> None: ...
    def stars(*orders: Order) -> None: ...
    def double(**orders: Order) -> None: ...
    def bare(order) -> None: ...  # type: ignore[no-untyped-def]  # under test
    def only(order: Order, /) -> None: ...
    def unknown(value: Fraction) -> None: ...
    def odd(value: Callable[[], object] | object | Event) -> None: ...
    def not_a_type(db: database) -> None: ...  # type: ignore[valid-type]  # under test

    assert "'first' and 'second'" in problem(two) and "one model" in problem(two)
    assert "*orders" in problem(stars)
    assert "**orders" in problem(double)
    assert "`order: Event`" in problem(bare)
    assert "drop the `/`" in problem(only)
    assert "'Fraction'" in problem(unknown) and "TYPE_CHECKING" in problem(unknown)
    assert "Annotated[T, database]" in problem(not_a_type)


def test_a_class_pydantic_does_not_know_is_refused() -> None:
    assert "cannot be filled from an event" in problem(_takes_a_stranger)


class Stranger:
    pass


def _takes_a_stranger(value: Stranger) -> None: ...
