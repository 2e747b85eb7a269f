"""Recorded errors: what a flow hears the first time is what it hears in every later attempt."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, field_validator
from pydantic_core import PydanticCustomError

from turnout import Fail, flow, gather, secret, sleep, task
from turnout.service.domain.errors import StepFailed
from turnout.service.domain.portable import portable
from turnout.service.domain.unpickle import unpickle
from turnout.service.steps import failures
from turnout.testing import run

heard: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_heard() -> None:
    heard.clear()


class Reply:
    def __init__(self) -> None:
        self.status = 402
        self.stream = (part for part in b"")  # as an open connection


class Refused(Exception):
    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply

    def __str__(self) -> str:
        return f"status {self.reply.status}"


class Coded(Exception):
    def __new__(cls, *_args: object, code: int) -> Coded:
        return super().__new__(cls)

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Slotted(Exception):
    __slots__ = ("place",)

    def __init__(self, place: str) -> None:
        super().__init__("slotted")
        self.place = place


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Quiet(OSError):
    def __init__(self, *, path: str) -> None:
        super().__init__(2, "gone", path)


class Held(Exception):
    def __init__(self, other: Exception) -> None:
        super().__init__("holds another")
        self.other = other


class Sensitive(Exception):
    def __init_subclass__(cls) -> None:
        raise TypeError("no subclasses")

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __str__(self) -> str:
        return f"lock {self.lock.locked()}"


class Many(ExceptionGroup[Exception]):
    def __new__(cls, *, members: list[Exception]) -> Many:
        made = super().__new__(cls, "many", members)
        made.count = len(members)
        return made

    count: int

    def __init__(self, *, members: list[Exception]) -> None: ...


class Row(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def small(cls, number: int) -> int:
        if number == 7:
            raise PydanticCustomError("seven", "{no} {{sevens}}", {"no": "no"})
        if number > 9:
            raise ValueError("it is large")
        return number


def with_cause(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def noted(error: Exception) -> Exception:
    error.add_note("look here")
    return error


def invalid(number: Any) -> Exception:
    try:
        Row.model_validate({"number": number})
    except ValueError as error:
        return error
    raise AssertionError


def undecodable() -> Exception:
    try:
        b"\xff".decode()
    except UnicodeDecodeError as error:
        return error
    raise AssertionError


def loop() -> Exception:
    first, second = Held(ValueError("x")), ValueError("y")
    first.other, second.__cause__ = second, first
    return first


ERRORS: dict[str, Callable[[], Exception]] = {
    "builtin": lambda: ValueError("a", 1),
    "key": lambda: KeyError("a"),
    "os": lambda: FileNotFoundError(2, "no such", "/a"),
    "os of its own": lambda: Quiet(path="/a"),
    "unicode": undecodable,
    "import": lambda: ImportError("no", name="x", path="/x"),
    "text of what is lost": lambda: Refused(Reply()),
    "argument that is lost": lambda: ValueError(threading.Lock()),
    "keyword-only": lambda: Coded(code=3),
    "slots": lambda: Slotted("here"),
    "frozen": lambda: Frozen(3),
    "noted": lambda: noted(ValueError("a")),
    "invalid data": lambda: invalid("x"),
    "invalid for the author": lambda: invalid(10),
    "invalid of its own": lambda: invalid(7),
    "invalid and lost": lambda: invalid(threading.Lock()),
    "no subclass": Sensitive,
    "cause": lambda: with_cause(ValueError("a"), KeyError("b")),
    "cause that loses": lambda: with_cause(ValueError("a"), Refused(Reply())),
    "holds another": lambda: Held(Refused(Reply())),
    "loop": loop,
    "group": lambda: ExceptionGroup("two", [ValueError("a"), Refused(Reply())]),
    "group of groups": lambda: ExceptionGroup("g", [ExceptionGroup("h", [Coded(code=1)])]),
    "group of its own": lambda: Many(members=[ValueError("a"), Refused(Reply())]),
    "fail": lambda: Fail("for good"),
}


@task
async def breaks(name: str) -> None:
    raise ERRORS[name]()


@task(pool="process")
def breaks_elsewhere(name: str) -> None:
    raise ERRORS[name]()


def told(error: BaseException | None, depth: int = 0) -> Any:
    """Return all that a flow may tell of an error."""
    if error is None or depth > 3:
        return None
    try:
        text = str(error)
    except AttributeError as lost:
        text = f"lost: {lost}"
    held = {
        name: told(value, depth + 1) if isinstance(value, BaseException) else shown(value)
        for name, value in sorted(getattr(error, "__dict__", {}).items())
        if not name.startswith("__")
    }
    extra = [getattr(error, name, None) for name in ("errno", "filename", "name", "place", "start")]
    members = getattr(error, "exceptions", ())
    return [
        type(error).__name__, text, held, extra, [told(each, depth + 1) for each in members],
        told(error.__cause__, depth + 1), [*map(repr, error.args)] if not members else None,
    ]  # fmt: skip


def shown(value: Any) -> Any:
    try:
        return [type(value).__name__, getattr(value, "status", "none")]
    except AttributeError as lost:
        return str(lost)


@pytest.mark.parametrize("name", ERRORS)
def test_every_attempt_hears_the_same_error(name: str) -> None:
    kind = type(ERRORS[name]())

    @flow
    async def listens() -> str:
        try:
            await breaks(name)
        except kind as error:
            heard.append(told(error))
        await sleep("1h")
        return "went on"

    outcome = run(listens)
    assert outcome.result == "went on", outcome.error
    first, second = heard
    assert first == second


@pytest.mark.slow
def test_every_attempt_hears_the_same_error_of_another_process() -> None:
    kinds = {name: type(make()) for name, make in ERRORS.items()}

    @flow
    async def listens() -> str:
        for name, kind in kinds.items():
            try:
                await breaks_elsewhere.run(name)
            except kind as error:
                heard.append((name, told(error)))
        await sleep("1h")
        return "went on"

    outcome = run(listens)
    assert outcome.result == "went on", outcome.error
    first, second = heard[: len(ERRORS)], heard[len(ERRORS) :]
    assert [name for name, _ in first] == [*ERRORS]
    assert first == second


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_a_branch_is_heard_the_same_again(name: str) -> None:
    kind = type(ERRORS[name]())

    async def branch() -> None:
        raise ERRORS[name]()

    @flow
    async def listens() -> str:
        try:
            await gather(branch())
        except kind as error:
            heard.append(told(error))
        await sleep("1h")
        return "went on"

    assert run(listens).result == "went on"
    assert heard[0] == heard[1]


def test_members_of_a_group_are_caught_one_by_one() -> None:
    @flow
    async def splits() -> list[str]:
        caught = []
        try:
            await breaks("group")
        except* ValueError as errors:
            caught.append(type(errors.exceptions[0]).__name__)
        except* Refused as errors:
            caught.append(str(errors.exceptions[0]))
        await sleep("1h")
        return caught

    assert run(splits).result == ["ValueError", "status 402"]


def test_what_is_lost_of_an_error_says_so_when_it_is_used() -> None:
    @flow
    async def uses() -> int:
        try:
            await breaks("text of what is lost")
        except Refused as error:
            return error.reply.status
        return 0

    failed = run(uses).error
    assert failed is not None
    assert failed.message.startswith("reply of this error could not be kept with the step")


def test_an_error_no_restart_could_find_is_no_other_in_the_first_attempt() -> None:
    class Local(Exception): ...

    @task
    async def odd() -> None:
        raise Local("only here")

    @flow
    async def listens() -> str:
        try:
            await odd()
        except StepFailed as error:
            heard.append((error.type, str(error)))
        await sleep("1h")
        return "went on"

    assert run(listens).result == "went on"
    assert heard == [("Local", "only here")] * 2


def test_an_error_that_holds_a_secret_keeps_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERROR_TOKEN", "value-in-an-error")

    @task
    async def calls() -> None:
        raise ConnectionError(f"no answer from /x?token={secret('ERROR_TOKEN').reveal()}")

    @flow
    async def listens() -> str:
        try:
            await calls()
        except ConnectionError as error:
            heard.append(str(error))
        await sleep("1h")
        return "went on"

    assert run(listens).result == "went on"
    assert heard == ["no answer from /x?token=********"] * 2


def test_an_error_that_is_too_large_keeps_its_type() -> None:
    data, error = failures.pack(ValueError("x" * 50_000), 10_000)
    assert data is not None and type(error) is ValueError
    assert str(error) == str(pickle.loads(data)) == "x" * 4096


def test_a_long_chain_of_causes_is_kept_in_no_time() -> None:
    error: Exception = Refused(Reply())
    for number in range(60):
        error = with_cause(Held(ValueError(number)), error)
    kept = portable(error)
    assert kept is not None
    back: BaseException | None = pickle.loads(kept.data)
    for _ in range(60):
        assert isinstance(back, Held)
        back = back.__cause__
    assert isinstance(back, Refused) and str(back) == "status 402"


def test_an_error_an_earlier_version_kept_is_read() -> None:
    kept = b"cturnout.service.errors\n_remake\n(cbuiltins\nKeyError\n(S'a'\nt(S'code'\nI3\ndtR."
    back = unpickle(kept)
    assert type(back) is KeyError and (back.args, back.__dict__) == (("a",), {"code": 3})
