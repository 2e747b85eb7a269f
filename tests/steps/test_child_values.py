"""Values between a flow and the flows it calls or tells: they arrive as they were given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Protocol, TypedDict
from zoneinfo import ZoneInfo

import orjson
import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    computed_field,
)

from tests.steps.test_exact import VALUES, Colour, Login, Patch, Row, parts
from tests.support.running import Running, running
from turnout import Event, Retry, Skip, current, emit, event, flow, retry, secret, sleep, task
from turnout.service.domain.errors import SetupError
from turnout.service.domain.run import Run, RunState
from turnout.service.journal.records import Filter
from turnout.testing import run as run_flow
from turnout.testing import serve

NOON = datetime(2026, 3, 28, 12, tzinfo=ZoneInfo("Europe/Berlin"))

heard: list[Any] = []
arrived: dict[int, Any] = {}


@pytest.fixture(autouse=True)
def nothing_heard() -> None:
    heard.clear()


async def run_of(service: Running, parent: Any, data: Any = None) -> Run:
    service.emitter.flows = lambda _event: (parent,)
    return await service.finished((await service.send(data)).runs[0])


def echo(number: int, annotation: Any, refused: Any = None) -> Any:
    """Return a flow that gives back what it gets."""

    async def child(value: Any) -> Any:
        arrived[number] = value
        return value

    child.__annotations__.update({"value": annotation, "return": annotation})
    made = flow(name=f"echo-{number}")(child)
    try:
        _ = made.binding
    except SetupError:
        return echo(number, Any)
    return made


NO_DATA = ("complex", "bytearray", "Pattern", "Custom", "Random", "range", "Fraction")
"""Types that JSON has no form of, so that nobody could read what was passed."""


@pytest.mark.slow
async def test_every_kind_of_value_arrives_and_comes_back_as_it_was(tmp_path: Path) -> None:
    values = [(value, hint) for value, hint in VALUES if type(value).__name__ not in NO_DATA]
    children = [echo(number, annotation) for number, (_, annotation) in enumerate(values)]
    wrong: dict[int, Any] = {}

    @flow
    async def asks_all() -> None:
        for number, ((value, _), child) in enumerate(zip(values, children, strict=True)):
            try:
                back = await child(value)
            except Exception as error:  # noqa: BLE001  what the test is about
                wrong[number] = (value, error)
                continue
            if parts(back) != parts(value) or parts(arrived[number]) != parts(value):
                wrong[number] = (value, arrived[number], back)

    async with running(tmp_path, [asks_all, *children]) as service:
        run = await run_of(service, asks_all)
    assert run.state is RunState.SUCCEEDED, run.error
    assert {repr(value): type(what).__name__ for value, what, *_ in wrong.values()} == {
        # What the annotation refuses, or makes of it, as it does of every event's data.
        "Decimal('NaN')": "InvalidData", "1": "float", "{1, 2.0}": "set", "{0, True}": "set",
        "(1, 2.0)": "Point", "[1, 2]": "tuple",
        # What has no form that people could read.
        r"b'\xff'": "StepFailed", r"'\ud800'": "StepFailed", "PureWindowsPath('a')": "NotKept",
    }  # fmt: skip


# ---------------------------------------------------------------- results


class Order(BaseModel):
    order_id: int = Field(alias="orderId")


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    net: int

    @computed_field
    def gross(self) -> int:
        return self.net * 2


class Named(Protocol):
    name: str


class Tree(TypedDict):
    kids: list[Tree]


class Client:
    pass


RESULTS: list[tuple[Any, Any]] = [
    (Order(orderId=7), Order), (Closed(net=1), Closed), ([float("nan")], list[float]),
    ({"mean": float("nan")}, dict[str, float]), ({}, dict[str, Client]), (None, Named),
    ({"kids": []}, Tree), ("7e9a4bbf-3a0f-4a28-9d1e-0c2f8f2d9b11", Colour | str),
    (Row(a=1), dict[str, int]), (NOON, None), (NOON, str), ([1], tuple[int]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "annotation"), RESULTS)
async def test_a_result_comes_back_whatever_the_annotation_makes_of_it(
    tmp_path: Path, value: Any, annotation: Any
) -> None:
    async def child() -> Any:
        return value

    child.__annotations__["return"] = annotation
    called = flow(name="child")(child)

    @flow(retry=1)
    async def asks() -> bool:
        heard.append(await called())
        if current().attempt == 1:
            raise Retry("once more", after="1ms")
        return True

    async with running(tmp_path, [asks, called]) as service:
        run = await run_of(service, asks)
    assert run.state is RunState.SUCCEEDED, run.error
    assert [parts(each) for each in heard] == [parts(value)] * 2


async def test_a_large_result_and_one_read_after_a_restart_come_back(tmp_path: Path) -> None:
    @flow
    async def makes() -> Any:
        await sleep("100ms")
        return [(number, NOON) for number in range(1000)]

    @flow
    async def asks() -> bool:
        return bool(await makes() == [(number, NOON) for number in range(1000)])

    async with running(tmp_path, [asks, makes]) as service:
        service.emitter.flows = lambda _event: (asks,)
        run_id = (await service.send()).runs[0]
    async with running(tmp_path, [asks, makes]) as service:
        assert (await service.finished(run_id)).result == b"true"


async def test_what_cannot_be_kept_fails_the_child_that_made_it(tmp_path: Path) -> None:
    @dataclass
    class Local:  # which no restart finds
        at: Any

    @flow
    async def makes() -> Any:
        return Local((1, 2))

    @flow
    async def asks() -> None:
        await makes()

    async with running(tmp_path, [asks, makes]) as service:
        run = await run_of(service, asks)
        (child,) = await service.process.journal.runs(Filter(flow="makes"))
        alone = await run_of(service, makes)
    assert run.error is not None and child.error is not None
    assert (run.error.type, child.error.type) == ("not_kept", "not_kept")
    assert "flow 'makes': the result, Local" in child.error.message
    assert alone.result == b'{"at":[1,2]}', "for whoever reads it, it is data"


async def test_a_child_with_nothing_to_do_gives_none(tmp_path: Path) -> None:
    @flow
    async def skips() -> Patch:
        raise Skip("nothing to do")

    @flow
    async def asks() -> bool:
        return await skips() is None

    async with running(tmp_path, [asks, skips]) as service:
        assert (await run_of(service, asks)).result == b"true"


async def test_map_gives_back_what_each_child_returned(tmp_path: Path) -> None:
    @flow
    async def later(at: datetime) -> datetime:
        return at

    @flow
    async def asks() -> list[str]:
        found = await later.map([NOON, NOON.replace(fold=1)], limit=1)
        return [f"{each.tzinfo} {each.fold}" for each in found]

    async with running(tmp_path, [asks, later]) as service:
        run = await run_of(service, asks)
    assert orjson.loads(run.result or b"") == ["Europe/Berlin 0", "Europe/Berlin 1"]


# ---------------------------------------------------------------- arguments


class Account(BaseModel):
    token: str = Field(default="none", exclude=True)
    password: SecretStr = SecretStr("")


async def test_arguments_arrive_in_every_attempt_and_over_a_restart(tmp_path: Path) -> None:
    given = Account(token="t-1", password=SecretStr("abc"))

    @flow(retry=retry(1, delay="1ms"))
    async def takes(account: Account, where: Path = Path("x"), raw: bytes = b"") -> str:
        heard.append((account.token, account.password.get_secret_value(), where, raw))
        if len(heard) == 1:
            raise ConnectionError("once more")
        await sleep("100ms")
        return "done"

    @flow
    async def asks() -> str:
        return await takes(given, where=Path("/a/../b"), raw=b"\xff")

    async with running(tmp_path, [asks, takes]) as service:
        service.emitter.flows = lambda _event: (asks,)
        run_id = (await service.send()).runs[0]
        while len(heard) < 2:
            await sleep("1ms")
    async with running(tmp_path, [asks, takes]) as service:
        assert (await service.finished(run_id)).result == b'"done"'
        (child,) = await service.process.journal.runs(Filter(flow="takes"))
        (stored,) = await service.process.journal.event(child.event_id)
    assert heard == [("t-1", "abc", Path("/a/../b"), b"\xff")] * 3
    assert "abc" not in str(stored.event.data), "what people read is masked"


async def test_an_annotation_still_makes_what_it_says_of_data(tmp_path: Path) -> None:
    @flow
    async def takes(colours: list[Colour], patch: Patch | None = None) -> str:
        return f"{colours!r} {patch!r}"

    @flow
    async def ships(code: Annotated[str, StringConstraints(to_upper=True)]) -> str:
        return code

    @flow
    async def asks() -> list[str]:
        return [
            await takes(["red"]),  # type: ignore[list-item]  # as data has it
            await ships("de"),
        ]

    async with running(tmp_path, [asks, takes, ships]) as service:
        run = await run_of(service, asks)
    assert orjson.loads(run.result or b"") == ["[<Colour.RED: 'red'>] None", "DE"]


async def test_a_child_gets_its_own_event_and_not_what_its_parent_was_given(tmp_path: Path) -> None:
    @flow
    async def inner(event: Event) -> str:
        return event.type

    @flow
    async def outer(pair: tuple[int, Any]) -> str:
        assert pair == (1, (2,))
        return await inner(current().event)

    @flow
    async def asks() -> str:
        return await outer((1, (2,)))

    async with running(tmp_path, [asks, outer, inner]) as service:
        run = await run_of(service, asks)
    assert orjson.loads(run.result or b"") == "turnout.flow.called"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (threading.Lock(), "is not data"), ({"lock": threading.Lock()}, "is not data"),
        ("\ud800", "is not data"), ((number for number in "ab"), "can be kept neither"),
    ],
)  # fmt: skip
async def test_an_argument_that_cannot_be_kept_is_the_callers_error(
    tmp_path: Path, value: Any, message: str
) -> None:
    @flow
    async def takes(value: Any) -> None: ...

    @flow
    async def asks() -> None:
        await takes(value)

    async with running(tmp_path, [asks, takes]) as service:
        run = await run_of(service, asks)
        assert await service.process.journal.runs(Filter(flow="takes")) == []
    assert run.error is not None and run.error.type == "not_kept"
    assert "step 'takes#1'" in run.error.message and message in run.error.message


async def test_a_secret_in_an_argument_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHILD_TOKEN", "value-for-a-child")

    @flow
    async def takes(login: Login) -> None: ...

    @flow
    async def asks() -> None:
        await takes(Login(password=SecretStr(secret("CHILD_TOKEN").reveal())))

    async with running(tmp_path, [asks, takes]) as service:
        run = await run_of(service, asks)
    assert run.error is not None and "secret 'CHILD_TOKEN'" in run.error.message


class Bill(BaseModel):
    amount: int


@flow
async def charges(bill: Bill, days: int = 30, notes: dict[str, Any] | None = None) -> str:
    return f"{bill} {days} {notes}"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((Bill(amount=1), "soon"), "argument 'days': Input should be a valid integer"),
        ((Bill(amount=1), None), "argument 'days': Input should be a valid integer"),
        ((Bill(amount=1), 2.5), "argument 'days': Input should be a valid integer"),
        ((Bill(amount=1), 3, "x"), "argument 'notes': Input should be an object"),
        (({"total": 1}, 3, {"amount": 5}), "argument 'bill': amount: Field required"),
    ],
)
async def test_an_argument_that_does_not_fit_is_refused_and_not_the_default(
    args: tuple[Any, ...], message: str
) -> None:
    @flow
    async def calls() -> str:
        return await charges(*args)

    async with serve(calls, charges) as service:
        error = (await service.run(calls)).error
    assert error is not None and error.type == "invalid_data"
    assert message in error.message


@flow(ordered_by=lambda event: event.data)
async def of_many(order: str, tags: Iterable[int] = (), note: str = "") -> str:
    return f"{order} {[*tags]} {note}"


@flow
async def calls_of_many() -> list[str]:
    return [await of_many("a", [1, 2], note="n"), await of_many("b", tags=(3,))]


async def test_a_child_is_ordered_by_what_it_reads_and_not_by_its_last_argument(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, [calls_of_many, of_many]) as service:
        run = await run_of(service, calls_of_many)
        runs = await service.process.journal.runs(Filter(flow="of_many"))
    assert run.result == b'["a [1, 2] n","b [3] "]'
    assert [each.order_key for each in runs] == ["b", "a"]


# ---------------------------------------------------------------- emitted events


class Sale(BaseModel):
    at: datetime
    colour: Colour


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Login(password=SecretStr("abc")), "a SecretStr is only asterisks"),
        (b"\xff", "the data, bytes, is not JSON"),
        (Account(token="t-1"), "field 'token' of Account is left out"),
        ([Account(token="t-1")], "field 'token'"), ({"mean": float("nan")}, "JSON has no nan"),
        ((1.5, float("inf")), "JSON has no inf"),
        ({1: 2, "1": 3}, "two keys of a dict are both '1'"),
        ({"a": [{True: 1, "true": 2}]}, "both 'true'"), (threading.Lock(), "is not JSON"),
    ],
)  # fmt: skip
def test_an_event_never_says_less_than_it_was_given(value: Any, message: str) -> None:
    @flow
    async def tells() -> None:
        await emit("told", value)

    error = run_flow(tells).error
    assert error is not None and error.type == "not_kept"
    assert message in error.message


async def test_an_event_says_in_json_what_it_was_given() -> None:
    sent = {"sale": Sale(at=NOON, colour=Colour.RED), "set": {1}, "pair": (1, 2), 3: Path("/a")}

    @flow(on=event("told"))
    async def listens(data: dict[str, Any]) -> None:
        heard.append(data)

    @flow(on=event("go"))
    async def tells() -> None:
        await emit("told", sent)

    async with serve(tells, listens) as service:
        assert (await service.run(tells)).state == "succeeded"
        await service.advance("1s")
    assert heard == [
        {"sale": {"at": "2026-03-28T12:00:00+01:00", "colour": "red"}, "set": [1], "pair": [1, 2],
         "3": "/a"},
    ]  # fmt: skip


# ---------------------------------------------------------------- other ways


@task
async def works(make: Callable[[], Any]) -> Any:
    return make()


@task(fallback=lambda _error: NOON)
async def falls() -> datetime:
    raise ConnectionError("down")


def test_a_fallback_and_a_mapped_step_are_kept_as_they_were() -> None:
    @flow
    async def asks() -> None:
        heard.append([str((await falls()).tzinfo), await works.map([dict, set])])
        await sleep("1h")

    assert run_flow(asks).state == "succeeded"
    assert heard == [["Europe/Berlin", [{}, set()]]] * 2
