"""Declaring: what `@flow`, `@task` and `gather` make, refuse, and do outside a run."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

import turnout
from turnout import current, every, flow, gather, limit, retry, task
from turnout.service.domain.errors import SetupError
from turnout.service.flowcontrol.limit import Limit


class Tick:
    name = "every:1s"
    kind = "every"

    def check(self) -> None: ...


@task
async def charge(name: str) -> str:
    """Charge a card."""
    return f"{name} {current().key('card')[:4]}"


@task(retry=3, timeout="30s", name="weighing")
def weigh(name: str) -> int:
    return len(name)


def test_a_plain_flow_has_the_documented_defaults() -> None:
    @flow
    async def bill() -> None: ...

    assert (bill.name, bill.triggers, bill.retry.count, bill.timeout) == ("bill", (), 0, None)
    assert (bill.pool, bill.on_dead, bill.concurrency, bill.was) == (
        "thread",
        "continue",
        (),
        None,
    )
    assert bill.file == __file__
    assert bill.line == inspect.getsourcelines(test_a_plain_flow_has_the_documented_defaults)[1] + 1


def test_every_option_lands_on_the_flow() -> None:
    tick = Tick()

    @flow(
        on=[tick], when=lambda event: True, concurrency=limit(8, per=lambda event: event.id),
        ordered_by=lambda event: event.id, retry=retry(5, delay="2s"), timeout="5m",
        on_dead="block", name="billing", was="old",
    )  # fmt: skip
    def bill() -> None:
        """Bill an order."""

    assert (bill.name, bill.was, bill.triggers, bill.on_dead) == (
        "billing",
        "old",
        (tick,),
        "block",
    )
    assert (bill.retry.count, bill.timeout) == (5, timedelta(minutes=5))
    assert bill.__doc__ == "Bill an order." and not bill.is_async
    assert flow(on=tick, concurrency=3)(bill.function).concurrency == (Limit(3),)
    assert inspect.signature(weigh) == inspect.signature(weigh.function)
    assert (weigh.name, weigh.retry.count, weigh.timeout_seconds) == ("weighing", 3, 30.0)


@dataclass
class _Mutable:
    name: str = "mutable"
    kind: str = "mutable"

    def check(self) -> None: ...


def timer_named(name: Any) -> Any:
    return every("1m", name=name)


def _flow_problem(options: dict[str, Any], function: Callable[..., Any] | None = None) -> str:
    def bill() -> None: ...

    with pytest.raises(SetupError) as caught:
        flow(**options)(function or bill)
    assert caught.value.file == __file__ and caught.value.line
    return caught.value.message


def test_a_flow_that_cannot_be_is_refused_at_its_line() -> None:
    def yields() -> Any:
        yield 1

    async def asynchronous() -> None: ...

    assert "is not a trigger" in _flow_problem({"on": "inbox/*.csv"})
    assert "frozen=True" in _flow_problem({"on": _Mutable()})
    assert "the name of a trigger is a text" in _flow_problem({"on": timer_named(5)})
    assert "when=3" in _flow_problem({"when": 3})
    assert "0" in _flow_problem({"concurrency": 0})
    assert 'cannot read the duration "soon"' in _flow_problem({"timeout": "soon"}).replace("'", '"')
    assert "retry=" in _flow_problem({"retry": "3"})
    assert "on_dead" in _flow_problem({"on_dead": "stop"})
    assert "returns one value" in _flow_problem({}, yields)
    assert "is async" in _flow_problem({"pool": "process"}, asynchronous)
    assert "top of the file" in _flow_problem({"pool": "process"})
    assert '"thread" or "process"' in _flow_problem({"pool": "fiber"})
    with pytest.raises(SetupError, match="directly above `def`"):
        task(charge)
    with pytest.raises(SetupError, match="plain function"):
        flow(print)


async def test_outside_a_run_everything_is_a_plain_call() -> None:
    @flow
    async def bill(name: str) -> tuple[str, int, list[int], list[str]]:
        receipt, weight = await gather(charge(name), weigh.run(name))
        current().log.debug("order.charged")
        return receipt, weight, weigh.map(["a", "bb"]), await charge.map(["x"])

    receipt, weight, weights, receipts = await bill("ann")
    assert (weight, weights) == (3, [1, 2])
    assert receipt.startswith("ann ") and receipts[0].startswith("x ")
    assert current().run.id == current().event.id == "direct"
    assert (current().attempt, current().tenant) == (1, "default")
    assert current().key("a") == current().key("a") != current().key("b")
    assert weigh("four") == 4


async def test_gather_raises_the_first_error_as_itself_and_ends_the_others() -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waits")

    async def fails() -> None:
        raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        await gather(waits(), fails())
    assert ended == ["waits"]
    results = await gather(fails(), charge("a"), return_exceptions=True)
    assert isinstance(results[0], KeyError) and isinstance(results[1], str)
    assert await gather() == ()


async def test_a_cancelled_gather_leaves_no_coroutine_behind() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(gather(never(), never()))
        await asyncio.sleep(0)
        waiting.cancel()
    assert waiting.cancelled()


# ---------------------------------------------------------------- the face


def test_every_name_of_the_face_is_there() -> None:
    for name in turnout.__all__:
        assert getattr(turnout, name) is not None, name
        assert name in dir(turnout)
    with pytest.raises(AttributeError, match="no attribute 'celery'"):
        _ = turnout.celery  # type: ignore[attr-defined]  # under test


def run_python(code: str) -> str:
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_face_brings_nothing_heavy() -> None:
    heavy = "{'pydantic', 'fastapi', 'watchfiles', 'uvicorn', 'apsw', 'httpx', 'structlog'}"
    names = "flow, task, current, gather, secret, resource, retry, Event"
    code = f"import sys\nfrom turnout import {names}\nprint({heavy} & set(sys.modules))"
    assert run_python(code) == "set()"


def test_files_is_the_function_however_it_is_reached() -> None:
    code = (
        "import turnout.triggers.files, turnout.triggers.webhook\n"
        "from turnout import files, webhook\nprint(callable(files), callable(webhook))"
    )
    assert run_python(code) == "True True"


async def later(event: Any) -> Any: ...


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a\nb"}, "printable"),
        ({"name": "x" * 201}, "a name is 1 to 200 printable characters"),
        ({"name": 3}, "printable"),
        ({"name": "~x"}, "names that begin with ~ are turnout's own"),
        ({"concurrency": "8"}, "concurrency='8': write a count"),
        ({"concurrency": True}, "write a count"),
        ({"concurrency": Limit(3, "customer")}, "per='customer': write a function"),  # type: ignore[arg-type]  # under test
        ({"when": later}, "when= is asked while an event is accepted: `def`"),
        ({"ordered_by": later}, "ordered_by= is asked"),
        ({"concurrency": limit(3, per=later)}, "per= is asked"),  # type: ignore[arg-type]  # under test
        ({"timeout": "0s"}, "nothing ends in no time"),
        ({"concurrency": 10**30}, "1,000,000 are the most; leave it out for no limit"),
        ({"max_queued": 10**30}, "1,000,000,000 are the most; leave it out for no bound"),
        ({"when": lambda: True}, "when= takes one argument, the event"),
        ({"on": "order.placed"}, "on='order.placed' is not a trigger"),
    ],
)
def test_what_could_never_work_is_refused(options: dict[str, Any], message: str) -> None:
    assert message in _flow_problem(options)


def test_a_policy_that_could_never_work_is_refused() -> None:
    for factor in (float("nan"), float("inf"), 1e300, 0.5):
        with pytest.raises(SetupError, match="factor from 1 to 1000"):
            retry(3, factor=factor)
    with pytest.raises(SetupError, match="nothing ends in no time"):
        task(timeout="0s")(len_of)


@pytest.mark.parametrize("name", ["a\nb", "x" * 201, "~failed"])
def test_a_task_s_name_is_like_a_flow_s(name: str) -> None:
    with pytest.raises(SetupError, match=r"test_authoring.py:\d+: task '.*name"):
        task(name=name)(len_of)


def len_of(text: str) -> int:
    return len(text)
