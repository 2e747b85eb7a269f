"""Values that a run keeps: what comes back is what was given, in every part an author can tell."""

from __future__ import annotations

import itertools
import random
import re
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum
from fractions import Fraction
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from math import copysign, isnan
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FilePath,
    FutureDatetime,
    PrivateAttr,
    RootModel,
    SecretStr,
    TypeAdapter,
)
from pydantic.dataclasses import dataclass as checked_dataclass

from turnout.service.domain.binding import UNANNOTATED
from turnout.service.domain.errors import NotKept
from turnout.service.steps.codec import decode, encode
from turnout.service.steps.exact import is_plain
from turnout.service.steps.undo import Undo

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 3, 28, 12, tzinfo=BERLIN)
LOCAL = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN).replace(tzinfo=None)
T = TypeVar("T")


class Colour(StrEnum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


class Rights(Flag):
    READ = 1
    WRITE = 2


class Bits(IntFlag):
    ONE = 1
    TWO = 2


class Kind(Enum):
    PAIR = (1, 2)


class Text(str):
    note: str = ""


class Number(int): ...


class Row(dict[str, int]): ...


class Items(list[int]): ...


class Point(NamedTuple):
    x: int
    y: float


class Patch(BaseModel):
    name: str = "unnamed"
    email: str | None = None


class Extra(BaseModel, extra="allow"):
    table: str = "t"


class Private(BaseModel):
    name: str = "n"
    _token: str = PrivateAttr("none")


class Hidden(BaseModel):
    token: str = Field("none", exclude=True)


class Aliased(BaseModel):
    order_id: int = Field(alias="orderId")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    id: UUID
    at: datetime


class Login(BaseModel):
    password: SecretStr


class Timed(BaseModel):
    at: datetime


class Box(BaseModel, Generic[T]):
    held: T


class Numbers(RootModel[list[float]]): ...


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Computed(BaseModel):
    sides: list[int]

    @cached_property
    def total(self) -> int:
        return sum(self.sides)


@dataclass
class Plain:
    at: Any = None


@dataclass
class Instant:
    at: datetime


@dataclass(slots=True, frozen=True)
class Slotted:
    at: float
    tags: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Counted:
    size: int
    seen: int = field(init=False, default=0)


@checked_dataclass
class Checked:
    at: timedelta


class Custom:
    def __init__(self, value: int) -> None:
        self.value = value


class Zone(tzinfo):
    def __repr__(self) -> str:
        return "Zone()"

    def utcoffset(self, _at: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def dst(self, _at: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, _at: datetime | None) -> str:
        return "one hour ahead"


def made(kind: Callable[[], Any], **changes: Any) -> Any:
    """Return a value with attributes set after it was made."""
    value = kind()
    for name, held in changes.items():
        object.__setattr__(value, name, held)
    return value


def private() -> Private:
    value = Private()
    value._token = "t-1"
    return value


def computed() -> Computed:
    value = Computed(sides=[1, 2])
    assert value.total == 3
    return value


def of_json(annotation: Any, text: str) -> Any:
    return TypeAdapter(annotation).validate_json(text)


VALUES: list[tuple[Any, Any]] = [
    # zones and folds
    (LOCAL, datetime), (LOCAL.replace(fold=1), datetime),
    (NOON, datetime), ({"at": NOON}, dict[str, datetime]), ([NOON], list[datetime]),
    (Instant(NOON), Instant), (Timed(at=NOON), Timed), (NOON, datetime | None),
    (LOCAL.replace(fold=1, tzinfo=BERLIN), datetime), (datetime(2026, 1, 1, tzinfo=UTC), datetime),
    (Timed(at=datetime(2026, 1, 1, tzinfo=UTC)), Timed),
    (datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2))), datetime),
    (datetime(2026, 1, 1, tzinfo=Zone()), datetime),
    (of_json(datetime, '"2026-01-01T00:00:00Z"'), datetime),
    (of_json(Timed, '{"at": "2026-01-01T00:00:00+02:00"}'), Timed),
    (time(12, tzinfo=BERLIN), time), (time(2, 30, fold=1), time), (time(1, 2, 3, 4), time),
    (date(2026, 1, 1), date), (timedelta(days=-1, microseconds=1), timedelta),
    (timedelta.max, timedelta),
    # numbers
    (-0.0, float), ([-0.0], list[float]), (float("nan"), float), ([float("inf")], list[float]),
    (Decimal("NaN"), Decimal), (Decimal("-0"), Decimal), (Decimal("1.10"), Decimal),
    (Decimal("1E+2"), Decimal), (Fraction(1, 3), Fraction), (1 + 2j, complex), (True, int),
    (1, float), (2**70, int), ([2**70], list[int]), (Number(3), int),
    # text and bytes
    (Text("a"), str), (made(lambda: Text("a"), note="n"), Text), (b"\xff", bytes), (b"a", bytes),
    (bytearray(b"a"), bytearray), (bytearray(b"a"), bytes), ("\ud800", str), ("a", UUID | str),
    (str(UUID(int=5)), UUID | str), (UUID(int=5), UUID), (re.compile("a+", re.I), re.Pattern[str]),
    (Path("/a/b"), Path), (PureWindowsPath("a"), PureWindowsPath),
    (IPv4Address("10.0.0.1"), IPv4Address), (IPv6Address("fe80::1%eth0"), IPv6Address),
    (IPv4Interface("10.0.0.1/8"), IPv4Interface),
    # enums
    (Colour.RED, Colour), (Colour.RED, str), (Size.SMALL, int),
    (Rights.READ | Rights.WRITE, Rights),
    (Bits.ONE | Bits.TWO, int), (Kind.PAIR, Kind), ({"a": Size.SMALL}, dict[str, Any]),
    # containers
    ({1: "a"}, dict[int, str]), ({1: 2, "1": 3}, dict[Any, int]),
    ({"b": 1, "a": 2}, dict[str, int]), (OrderedDict(b=1, a=2), OrderedDict[str, int]),
    (defaultdict(list, a=[1]), dict[str, list[int]]), (Counter("aab"), Counter[str]),
    (deque([1, 2], maxlen=2), deque[int]),
    (Row(a=1), dict[str, int]), (Items([1]), list[int]),
    ((1, 2), tuple[int, int]), ([1, 2], tuple[int, int]),
    (Point(1, 2.0), Point), ((1, 2.0), Point), ({1, 2}, set[int]), (frozenset({1}), frozenset[int]),
    ({1, 2.0}, set[float]), ({True, 0}, set[int]), ((), tuple[int, ...]), (range(3), Any),
    # models and dataclasses
    (Patch(name="x"), Patch), ([Patch(name="x")], list[Patch]), (Patch(name="x"), Patch | None),
    (Extra.model_validate({"table": "t", "where": "a"}), Extra),
    (private(), Private), (Hidden(token="t-1"), Hidden),
    (Aliased(orderId=7), Aliased), (Strict(id=UUID(int=1), at=NOON), Strict),
    (Login(password=SecretStr("abc")), Login), (Box[int](held=1), Box[int]),
    (Box[datetime](held=NOON), Box[datetime]), (Numbers([1.0, float("nan")]), Numbers),
    (Numbers([1.0]), Numbers), (Cat(lives=3), Pet), ([Cat(), Dog()], list[Pet]),
    (computed(), Computed), (Patch.model_construct(name=5), Patch), (Plain(at=Colour.RED), Plain),
    (made(Plain, beside=1), Plain), (Slotted(-0.0, ["a"]), Slotted), (Counted(size=1), Counted),
    (made(lambda: Counted(size=1), seen=3), Counted), (Checked(timedelta(1)), Checked),
    (Custom(3), Custom), (Custom(3), Any), (random.Random(3), Any),
]  # fmt: skip


def parts(value: Any) -> Any:
    """Return all that an author can tell of a value, as one text."""
    if isinstance(value, float) and not isnan(value):
        return (value, copysign(1, value))
    if isinstance(value, datetime | time):
        return (repr(value), type(value.tzinfo), value.utcoffset(), value.fold)
    if isinstance(value, dict):
        return (
            type(value),
            [(parts(key), parts(held)) for key, held in value.items()],
            vars_of(value),
        )
    if isinstance(value, list | tuple | deque):
        return (type(value), [parts(each) for each in value], vars_of(value))
    if isinstance(value, set | frozenset):
        return (type(value), sorted((repr(each), type(each).__name__) for each in value))
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return (type(value), vars_of(value) or repr(value), value_of_text(value))


def value_of_text(value: Any) -> Any:
    return str(value) if isinstance(value, str | int | Decimal | Enum) else None


def vars_of(value: Any) -> Any:
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    held = {name: getattr(value, name, None) for name in slots if name != "__dict__"}
    held |= getattr(value, "__dict__", {})
    if isinstance(value, Enum) or not held or type(value).__module__ != __name__:
        return None
    return {name: parts(each) for name, each in sorted(held.items())}


@pytest.mark.parametrize(("value", "annotation"), VALUES)
@pytest.mark.parametrize("annotated", [True, False])
def test_a_value_comes_back_as_it_was(value: Any, annotation: Any, annotated: bool) -> None:
    hint = annotation if annotated else UNANNOTATED
    encoding, data = encode(value, hint, max_bytes=100_000, name="step 'x#1'")
    back = decode(encoding, data, hint, name="step 'x#1'")
    assert type(back) is type(value)
    assert parts(back) == parts(value), encoding


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (Patch(name="x"), Patch), (Box[int](held=1), Box[int]), ([Patch(), Patch()], list[Patch]),
        (Instant(LOCAL), Instant), (Colour.RED, Colour), (Point(1, 2.0), Point),
        ({"b": 1, "a": 2}, dict[str, int]), (IPv4Address("10.0.0.1"), IPv4Address),
        (of_json(Timed, '{"at": "2026-01-01T00:00:00Z"}'), Timed), (Slotted(1.5), Slotted),
        (Extra.model_validate({"table": "t", "where": "a"}), Extra), ({Colour.RED}, set[Colour]),
    ],
)  # fmt: skip
def test_what_people_may_read_is_json(value: Any, annotation: Any) -> None:
    assert encode(value, annotation, max_bytes=1000, name="x")[0] == "json"


def test_a_part_in_two_places_is_one_part_afterwards() -> None:
    row = [1]
    shared: list[tuple[Any, Any]] = [
        ({"a": row, "b": row}, UNANNOTATED), ([row, row], list[list[int]]),
        ((row, row), tuple[list[int], list[int]]),
    ]  # fmt: skip
    for value, annotation in shared:
        encoding, data = encode(value, annotation, max_bytes=1000, name="x")
        one, other = (
            decode(encoding, data, annotation, name="x")
            if isinstance(value, list | tuple)
            else decode(encoding, data, annotation, name="x").values()
        )
        assert one is other
    loop: list[Any] = []
    loop.append(loop)
    encoding, data = encode(loop, UNANNOTATED, max_bytes=1000, name="x")
    back = decode(encoding, data, UNANNOTATED, name="x")
    assert back[0] is back


def test_a_pickle_that_gives_another_type_is_refused() -> None:
    class_of_int = type("Lazy", (), {"__reduce__": lambda _self: (int, ("3",))})
    with pytest.raises(NotKept, match="Lazy would come back as int"):
        encode(class_of_int(), UNANNOTATED, max_bytes=1000, name="step 'x#1'")


def test_an_error_in_a_value_keeps_its_cause_and_notes_or_is_refused() -> None:
    error = ValueError("no")
    error.__cause__ = KeyError("k")
    error.add_note("seen twice")
    for value in ({"first": error, "rows": [error]}, [error], error, (1, error)):
        encoding, data = encode(value, UNANNOTATED, max_bytes=10_000, name="x")
        back = decode(encoding, data, UNANNOTATED, name="x")
        found = back["rows"][0] if isinstance(back, dict) else back
        found = found[-1] if isinstance(found, list | tuple) else found
        assert repr(found) == repr(error) and repr(found.__cause__) == "KeyError('k')"
        assert found.__notes__ == ["seen twice"]
        assert not isinstance(back, dict) or back["first"] is found
    error.connection = threading.Lock()  # type: ignore[attr-defined]  # as clients leave them
    with pytest.raises(NotKept, match="an error in it holds what cannot be kept"):
        encode([error], UNANNOTATED, max_bytes=10_000, name="x")


ticks = itertools.count()


class Meeting(BaseModel):
    at: FutureDatetime


class Report(BaseModel):
    made_of: FilePath | None = None
    number: int = Field(default_factory=ticks.__next__)


class Ticket(BaseModel):
    title: str
    _number: int = PrivateAttr(default_factory=ticks.__next__)


@dataclass
class Visit:
    place: str
    number: int = field(init=False, default_factory=ticks.__next__)


def test_a_value_is_read_back_though_the_clock_and_the_disk_have_moved_on(tmp_path: Path) -> None:
    file = tmp_path / "report"
    file.touch()
    soon = datetime.now(UTC) + timedelta(milliseconds=50)
    values: list[Any] = [
        Meeting(at=soon), [Meeting(at=soon)], Report(made_of=file, number=7), Report(),
        Ticket(title="x"), Visit("home"),
    ]  # fmt: skip
    annotations: list[Any] = [Meeting, list[Meeting], Report, Report, Ticket, Visit]
    kept = [
        encode(value, annotation, max_bytes=1000, name="x")
        for value, annotation in zip(values, annotations, strict=True)
    ]
    file.unlink()
    while datetime.now(UTC) <= soon:
        pass
    for value, annotation, (encoding, data) in zip(values, annotations, kept, strict=True):
        back = decode(encoding, data, annotation, name="x")
        assert parts(back) == parts(value)


def test_plain_data_is_told_without_walking_it_twice() -> None:
    row: list[Any] = [1, "a", None, True, 1.5]
    assert is_plain({"a": row, "b": [list(row), {}]})
    assert is_plain([row, row], shared=True) and not is_plain([row, row])
    for odd in ((1,), {1: 2}, float("nan"), [Colour.RED], [{"a": {1}}], Number(3), b"a"):
        assert not is_plain(odd)
    assert not is_plain(list(range(11)), most=10)


class Lazy:
    """Comes out of a pickle as something else."""

    def __reduce__(self) -> Any:
        return int, ("3",)


def forget(value: Any) -> None: ...


def test_what_an_undo_is_called_with_is_kept_as_it_was_or_refused() -> None:
    for value in (NOON, Login(password=SecretStr("abc")), [float("nan")], private()):
        function, args, kwargs = Undo.of(forget, (value,), {}).call()
        assert function is forget and parts(args) == parts((value,)) and not kwargs
    with pytest.raises(NotKept, match=r"on_undo\(forget\).* Lazy would come back as int"):
        Undo.of(forget, (), {"value": Lazy()})
