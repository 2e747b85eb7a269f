"""Binding: every kind of parameter is filled or refused, and bad data names its field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Required,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field, FilePath

from tests.support.attempts import an_event
from turnout import Event, resource
from turnout.service.domain.binding import UNANNOTATED, Binding
from turnout.service.domain.errors import InvalidData, SetupError
from turnout.service.domain.event import file_url

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
        event: Event, order: Order, raw: bytes, path: Path, maybe: Path | None
    ) -> None: ...

    where = file_url("/tmp/a b.csv")
    event = an_event(
        {"id": "7", "lines": [], "placed": "2025-03-01"}, extensions={"fileurl": where}
    )
    filled = bind(everything, event)
    assert filled["event"] is event
    assert filled["order"] == Order(id="7", lines=[], placed=date(2025, 3, 1))
    assert filled["raw"] == event.body
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
    with pytest.raises(InvalidData, match=r"^parameter 'data': Input should be an object$"):
        bind(free, an_event([1]))


def test_bad_data_as_a_whole_names_the_parameter() -> None:
    def number(count: int) -> None: ...
    def text(words: str) -> None: ...
    def few(count: Annotated[bytes, Field(max_length=1)]) -> None: ...

    for function, data, words in (
        (number, "many", "parameter 'count': Input should be a valid integer, unable to parse"),
        (text, 7, "parameter 'words': Input should be a valid string"),
        (few, "many", "parameter 'count': Data should have at most 1 byte"),
    ):
        with pytest.raises(InvalidData) as caught:
            bind(function, an_event(data))
        assert str(caught.value).startswith(words)
        assert caught.value.field is None


def test_a_body_that_does_not_decode_and_a_missing_file_are_invalid_data() -> None:
    def order(order: Order) -> None: ...
    def text(text: str) -> None: ...
    def file(path: Path) -> None: ...

    with pytest.raises(InvalidData, match="not JSON"):
        bind(order, an_event(body=b"{"))
    with pytest.raises(InvalidData, match="not UTF-8 text"):
        bind(text, an_event(body=b"\xff", encoding="bytes"))
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


def test_text_is_the_data_and_bytes_are_the_body_with_none_and_empty_told_apart() -> None:
    def text(x: str) -> None: ...
    def named(x: NewType("Name", str)) -> None: ...  # type: ignore[valid-type]  # a name for str
    def text_or_none(x: str | None) -> None: ...
    def raw(x: bytes) -> None: ...
    def raw_or_none(x: Optional[bytes]) -> None: ...  # noqa: UP045  both ways are written

    none, empty = an_event(encoding="text"), an_event(body=b"", encoding="text")
    for function, of_json, of_none, of_empty in (
        (text, "ann", "", ""),
        (named, "ann", "", ""),
        (text_or_none, "ann", None, ""),
        (raw, b'"ann"', b"", b""),
        (raw_or_none, b'"ann"', None, b""),
    ):
        assert bind(function, an_event("ann")) == {"x": of_json}
        assert bind(function, none) == {"x": of_none}
        assert bind(function, empty) == {"x": of_empty}
    with pytest.raises(InvalidData, match="valid string"):
        bind(text, an_event({"a": 1}))


def test_an_empty_body_is_no_missing_one_so_that_the_default_does_not_stand() -> None:
    def text(x: str = "world") -> None: ...
    def raw(x: bytes = b"world") -> None: ...

    assert bind(text, an_event(body=b"", encoding="text")) == {"x": ""}
    assert bind(raw, an_event(body=b"", encoding="bytes")) == {"x": b""}
    assert bind(text, an_event()) == bind(raw, an_event()) == {}


@pytest.mark.parametrize("given", [b'"abcdefgh"', b'"abc"'])
def test_constraints_on_text_bytes_and_paths_are_kept(given: bytes) -> None:
    def text(x: Annotated[str, Field(max_length=5)]) -> None: ...
    def raw(x: Annotated[bytes, Field(max_length=5)]) -> None: ...
    def maybe(x: Annotated[bytes, Field(max_length=5)] | None) -> None: ...
    def file(x: FilePath) -> None: ...

    for function in (text, raw, maybe):
        if len(given) > 5:
            with pytest.raises(InvalidData, match="at most 5"):
                bind(function, an_event(body=given))
        else:
            assert len(bind(function, an_event(body=given))["x"]) in (3, 5)
    with pytest.raises(InvalidData, match="does not point to a file"):
        bind(file, an_event(extensions={"fileurl": "file:///nowhere/at/all"}))


def test_an_event_is_never_made_of_the_sender_s_data() -> None:
    def maybe(event: Event | None = None) -> None: ...
    def either(value: Event | Order) -> None: ...
    def several(value: list[Event]) -> None: ...
    def inside(value: Letter) -> None: ...

    forged = an_event({"id": "forged", "source": "/x", "type": "t", "time": "2026-01-01T00:00:00Z"})
    assert bind(maybe, forged) == {"event": forged}
    for function in (either, several, inside):
        assert "the sender's word" in problem(function)


def test_a_strict_model_takes_what_json_has_no_type_for() -> None:
    def strict(order: Strict) -> None: ...
    def lax(value: UUID | str) -> None: ...

    given = {"id": str(UUID(int=1)), "at": "2026-01-31T09:00:00Z", "kind": "a", "tags": ["x"]}
    made = bind(strict, an_event(given))["order"]
    assert made == Strict.model_validate_json(an_event(given).body)
    assert (made.id, made.kind, made.tags) == (UUID(int=1), Kind.A, {"x"})
    form = b"id=00000000-0000-0000-0000-000000000001&at=2026-01-31T09:00:00Z&kind=a"
    assert bind(strict, an_event(body=form, encoding="form"))["order"].id == UUID(int=1)
    with pytest.raises(InvalidData, match=r"^id: Input should be a valid UUID"):
        bind(strict, an_event(given | {"id": "7"}))
    assert bind(lax, an_event(str(UUID(int=1)))) == {"value": str(UUID(int=1))}


@pytest.mark.parametrize("kind", ["Filters", "FiltersDict", "FiltersClass", "Filters | None"])
def test_a_form_fills_lists_of_one_and_leaves_out_what_nobody_filled_in(kind: str) -> None:
    def search(filters: object) -> None: ...

    search.__annotations__["filters"] = kind

    def of(body: bytes) -> Any:
        filled = bind(search, an_event(body=body, encoding="form"))["filters"]
        return filled if isinstance(filled, dict) else vars(filled)

    assert of(b"tags=a")["tags"] == ["a"]
    assert of(b"tags=a&tags=b")["tags"] == ["a", "b"]
    read = of(b"tags=a&page=&note=&sort=")
    assert (read.get("page", 1), read["note"], read.get("sort", "up")) == (1, "", "up")
    with pytest.raises(InvalidData, match=r"^page: Input should be a valid integer"):
        of(b"tags=a&page=x")
    with pytest.raises(InvalidData, match=r"^tags: Field required"):
        of(b"page=3")


@pytest.mark.parametrize(
    "kind", ["Unfinished", "list[Unfinished]", "UnfinishedClass", "UnfinishedTuple", "Json"]
)
def test_a_type_that_cannot_be_built_is_refused_at_load(kind: str) -> None:
    def take(value: object) -> None: ...

    take.__annotations__["value"] = kind
    assert "cannot be filled from an event" in problem(take)


def test_a_typed_dict_may_lead_back_to_itself_and_says_what_is_required() -> None:
    def tree(value: Tree) -> None: ...
    def mutual(value: Person) -> None: ...
    def generic(value: Page[int]) -> None: ...
    def settings(value: Closed) -> None: ...

    assert bind(tree, an_event({"name": "a", "kids": [{"name": "b", "kids": []}]}))
    with pytest.raises(InvalidData, match=r"^kids\.0\.kids: Field required"):
        bind(tree, an_event({"name": "a", "kids": [{"name": "b"}]}))
    assert bind(mutual, an_event({"lives": {"owner": {}}}))
    with pytest.raises(InvalidData, match=r"^lives\.owner: Field required"):
        bind(mutual, an_event({"lives": {}}))
    assert bind(generic, an_event({"items": ["1"]})) == {"value": {"items": [1]}}
    with pytest.raises(InvalidData, match=r"^next\.items\.0: "):
        bind(generic, an_event({"items": [], "next": {"items": ["x"]}}))
    with pytest.raises(InvalidData, match=r"^y: Extra"):
        bind(settings, an_event({"x": 1, "y": 2}))


class Letter(BaseModel):
    event: Event


class Kind(Enum):
    A = "a"


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    id: UUID
    at: datetime
    kind: Kind
    tags: set[str] = set()


class Filters(BaseModel):
    tags: list[str]
    page: int = 1
    note: str = "none"
    sort: Literal["up", "down"] = "up"


class FiltersDict(TypedDict):
    tags: list[str]
    page: NotRequired[int]
    note: NotRequired[str]
    sort: NotRequired[Literal["up", "down"]]


@dataclass
class FiltersClass:
    tags: list[str]
    page: int = 1
    note: str = "none"
    sort: Literal["up", "down"] = "up"


class Unfinished(BaseModel):
    part: Fraction


@dataclass
class UnfinishedClass:
    part: Fraction


class UnfinishedTuple(NamedTuple):
    part: Fraction


Json = Union[dict[str, "Json"], list["Json"], str, None]  # noqa: UP007  an alias leads back to itself by name


class Tree(TypedDict):
    name: str
    kids: list[Tree]


class Person(TypedDict):
    lives: NotRequired[House]


class House(TypedDict, total=False):
    owner: Required[Person]


T = TypeVar("T")


class Page(TypedDict, Generic[T]):
    items: list[T]
    next: NotRequired[Page[T]]


class Closed(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]  # pydantic's own way
    x: int


class Stranger:
    pass


def _takes_a_stranger(value: Stranger) -> None: ...
