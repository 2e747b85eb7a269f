"""A recorded result is given only to the call it was recorded for."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from pydantic import BaseModel, PrivateAttr, create_model

from tests.support.attempts import attempts
from tests.support.running import eventually, running
from turnout import (
    approval,
    emit,
    event,
    flow,
    gather,
    patched,
    secret,
    sleep,
    task,
    wait_for,
)
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Filter, RecordedArguments
from turnout.service.operate.verbs import Cancel, Retry
from turnout.service.steps.recorded_arguments import arguments_of

from .editions import broken, do, done, edition, nothing_done, over_an_edit, refused

__all__ = ["nothing_done"]  # the fixture


NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Item:
    name: str
    tags: list[str] = field(default_factory=list)


class Address(BaseModel):
    street: str
    floor: int = 0
    _note: str = PrivateAttr("")


@task
async def price(what: Any, currency: str = "EUR", *, at: Any = None) -> str:
    done.append(f"price {what}")
    return f"price of {what}"


@task
def weigh(what: str) -> str:
    return f"weight of {what}"


async def asks_for_a_book() -> str:
    await price("book")
    await sleep("1h")
    return "well"


async def test_a_result_is_not_given_to_another_call_of_its_task(tmp_path: Path) -> None:
    async def new() -> str:
        await price("shipping")
        await price("book")
        await sleep("1h")
        return "well"

    async with attempts(tmp_path) as run:
        refused(
            await over_an_edit(run, asks_for_a_book, new),
            "step 'price#1' is recorded for price('book') and is now called with other arguments,"
            " price('shipping')",
        )
    assert done == ["price book"]


def other_calls(ask: Any) -> tuple[Any, Any]:
    """Return a flow and its edit, which puts a call before the one that was."""

    async def once() -> None:
        await ask("second")

    async def twice() -> None:
        await ask("first")
        await ask("second")

    async def nap() -> None:
        await sleep("1h")

    async def old() -> None:
        await gather(once(), nap())

    async def new() -> None:
        await gather(twice(), nap())

    return edition("old", old, awaits=told), edition("new", new, awaits=told)


told = event("told")


@flow
async def tells(word: str) -> str:
    return word


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda word: weigh.run(word), "weigh('second')"),
        (lambda word: price(Item(word)), "price(Item(…))"),
        (lambda word: price(1, at=Address(street=word)), "price(1, at=Address(…))"),
        (lambda word: price.map([word]), "price('second')"),
        (lambda word: gather(price(word)), "price('second')"),
        (lambda word: emit("told", word), "emit('told', None, None, 'second')"),
        (lambda word: approval(word), "approval('second')"),
        (lambda word: wait_for(told, match={"word": word}), "wait_for('event:told', dict(…))"),
        (lambda word: tells(word), "tells('second')"),
        (lambda word: tells.map([word]), "tells('second')"),
    ],
)  # fmt: skip
async def test_whatever_is_recorded_is_for_one_call(tmp_path: Path, ask: Any, what: str) -> None:
    old, new = other_calls(ask)
    async with running(tmp_path, [old, tells]) as service:
        service.emitter.flows = lambda _event: (old,)
        run_id = (await service.send()).runs[0]

        async def waits() -> bool:
            return (await service.run(run_id)).state is RunState.WAITING

        await eventually(waits)
    an_hour = timedelta(hours=1)
    async with running(tmp_path, [new, tells], now=lambda: utc_now() + an_hour) as service:
        run = await service.finished(run_id)
    assert run.error is not None and run.error.type == "code_changed"
    assert f"is recorded for {what}" in run.error.message


async def test_a_child_of_a_map_is_not_given_to_another_item(tmp_path: Path) -> None:
    async def old() -> None:
        await tells.map(["second"])
        await sleep("10ms")
        await sleep("1h")

    async def new() -> None:
        await tells.map(["first", "second"])

    before, after = edition("old", old), edition("new", new)
    async with running(tmp_path, [before, tells]) as service:
        service.emitter.flows = lambda _event: (before,)
        run_id = (await service.send()).runs[0]

        async def sleeps() -> bool:
            steps = await service.process.journal.steps((await service.run(run_id)).seq)
            return [step.key for step in steps][-1:] == ["sleep#2"]

        await eventually(sleeps)
    async with running(tmp_path, [after, tells]) as service:
        cancelled = await service.process.operator.do(Cancel(run_id))
        await service.process.operator.do(Retry(cancelled.id))
        run = await service.finished(run_id)
        assert run.error is not None and run.error.type == "code_changed"
        assert "is recorded for tells('second')" in run.error.message
        assert len(await service.process.journal.runs(Filter(flow="tells"))) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda: price("a"), lambda: price(what="a")),
        (lambda: price("a", "USD", at=1), lambda: price(at=1, currency="USD", what="a")),
        (lambda: price({"a": 1, "b": 2}), lambda: price({"b": 2, "a": 1})),
        (lambda: price(Item("a")), lambda: price(Item("a", tags=[]))),
        (
            lambda: price(Address(street="a")),
            lambda: price(Address.model_validate({"street": "a"})),
        ),
        (lambda: price({3, 2, 1}), lambda: price({1, 2, 3})),
        (lambda: price(secret("ANY_NAME")), lambda: price(secret("ANY_NAME"))),
        (lambda: price(object()), lambda: price(object())),  # there is no telling
        (lambda: price(list(range(2000))), lambda: price([])),  # nor of so many
        (lambda: price(datetime(2026, 1, 1, tzinfo=UTC)), lambda: price(NEW_YEAR)),
    ],
)
async def test_the_same_call_is_the_same_however_it_is_written(
    tmp_path: Path, before: Any, after: Any
) -> None:
    async def old() -> None:
        await before()
        await sleep("1h")

    async def new() -> None:
        await after()
        await sleep("1h")

    async with attempts(tmp_path) as run:
        outcome = await over_an_edit(run, old, new)
        assert outcome.state is RunState.WAITING, outcome.error


async def test_a_model_may_get_a_field_with_a_default(tmp_path: Path) -> None:
    def version(**more: Any) -> Any:
        return create_model("Order", name=(str, ...), **more)

    first, second = version(), version(note=(str, ""))
    assert arguments_of("f", price.function, (first(name="a"),), {}) == arguments_of(
        "f", price.function, (second(name="a"),), {}
    )
    assert arguments_of("f", price.function, (first(name="a"),), {}) != arguments_of(
        "f", price.function, (second(name="a", note="b"),), {}
    )


async def test_under_one_version_other_arguments_are_the_authors_own(tmp_path: Path) -> None:
    async def new() -> str:
        await price("shipping")
        await sleep("1h")
        return "well"

    async with attempts(tmp_path) as run:
        outcome = await over_an_edit(run, asks_for_a_book, new, version=1)
        assert outcome.state is RunState.WAITING, outcome.error
    assert done == ["price book"]


async def test_patched_provides_for_a_call_put_before(tmp_path: Path) -> None:
    async def new() -> str:
        if patched("shipping"):
            await price("shipping")
        await price("book")
        await sleep("1h")
        return "well"

    async with attempts(tmp_path) as run:
        outcome = await over_an_edit(run, asks_for_a_book, new)
        assert outcome.state is RunState.WAITING, outcome.error
    assert done == ["price book"]


async def test_other_arguments_in_the_same_code_are_a_warning_that_names_the_line(
    tmp_path: Path,
) -> None:
    count = 0

    async def counting() -> None:
        nonlocal count
        count += 1
        await price(f"at {count}")
        await sleep("1h")

    made = edition("one", counting)
    async with attempts(tmp_path) as run:
        await run.first(made)
        outcome = await run.again(made)
        assert outcome.state is RunState.WAITING, outcome.error
        line = counting.__code__.co_firstlineno + 3
        (warning,) = map(orjson.loads, (outcome.log or b"").splitlines())
    assert (warning["level"], warning["message"]) == ("warning", "step.arguments_differ")
    assert (warning["step"], warning["line"]) == ("price#1", f"{__file__}:{line}")
    assert (warning["recorded"], warning["now"]) == ("price('at 1')", "price('at 2')")
    assert done == ["price at 1"]


async def test_a_step_that_runs_again_may_have_other_arguments(tmp_path: Path) -> None:
    async def old() -> None:
        await do("a")

    async def new() -> None:
        await do("b")

    broken.add("a")
    async with attempts(tmp_path) as run:
        outcome = await over_an_edit(run, old, new)
        assert outcome.state is RunState.SUCCEEDED, outcome.error
        assert (await run.steps())["do#1"].arguments == arguments_of("do", do.function, ("b",), {})


async def test_steps_of_an_earlier_version_of_turnout_are_not_compared(tmp_path: Path) -> None:
    async def new() -> str:
        await price("shipping")
        await sleep("1h")
        return "well"

    async with attempts(tmp_path) as run:
        await run.first(edition("old", asks_for_a_book))
        await run.reclaim()
        assert run.claimed is not None
        for step in run.claimed.recorded.values():
            step.arguments = None
        outcome = await run.execute(edition("new", new))
        assert outcome.state is RunState.WAITING, outcome.error


def test_no_secret_is_among_what_is_recorded_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVEN_TOKEN", "value-for-a-given-call")
    value = secret("GIVEN_TOKEN").reveal()
    given = arguments_of("price", price.function, (f"Bearer {value}",), {"currency": value})
    assert given == RecordedArguments("?", "price('Bearer ********', '********')")
    monkeypatch.setenv("LONG_TOKEN", "long-token-" * 10)
    value = secret("LONG_TOKEN").reveal()
    given = arguments_of("price", price.function, (f"Bearer {value}", object()), {})
    assert given == RecordedArguments("?", "price('Bearer ********', object(…))")


def test_arguments_that_are_large_are_not_compared() -> None:
    for large in ("x" * 2_000_000, b"x" * 2_000_000, ["x" * 20_000] * 100, {"a": b"x" * 1_100_000}):
        assert arguments_of("price", price.function, (large,), {}).digest == "?"
    assert arguments_of("price", price.function, ("x" * 200_000,), {}).digest != "?"


@pytest.mark.parametrize(
    ("args", "kwargs", "digest"),
    [
        ((1,), {}, "76e6c61180a747a9"), (("a",), {}, "178dd1e485a04922"),
        ((1.5,), {}, "660d3114c24848ab"), ((None, True), {}, "bf780c9663bdc38e"),
        ((), {}, "69184773449aa042"), ((), {"b": 1}, "185937c1a0104317"),
        ((1,), {"b": [1, {"x": None}]}, "cfc9d277d3b7e48b"), ((2**70,), {}, "afbf8720591fcc62"),
        ((b"ab",), {}, "43c7727a564332f4"), (((1, 2),), {}, "b40721ae96c2f8d5"),
        (({1, 2},), {}, "c047b11231f75101"), (("\ud800",), {}, "8277b28e2283e5e1"),
        ((datetime(2026, 1, 2, 3, 4, tzinfo=ZoneInfo("Europe/Berlin")),), {}, "9cb6f538bda993b2"),
        ((Decimal("1.10"),), {}, "6c8f40683a847ec5"), ((Path("/a"),), {}, "e673c9ad4063db66"),
    ],
)  # fmt: skip
def test_a_recorded_call_has_the_digest_it_had_in_earlier_versions(
    args: tuple[Any, ...], kwargs: dict[str, Any], digest: str
) -> None:
    def call(a: Any = None, b: Any = None) -> None: ...

    assert arguments_of("call", call, args, kwargs).digest == digest
