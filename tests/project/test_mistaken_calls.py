"""Mistakes of the first hour that the text shows, or the declaration."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.support import CHECKOUT
from tests.support.running import running
from turnout import Fail, Skip, flow, retry, task
from turnout.service.domain.errors import SetupError
from turnout.service.domain.run import RunState
from turnout.service.project import loader
from turnout.service.project.check import check

from .forgotten import end_of, nothing_done

__all__ = ["nothing_done"]  # the fixture


# ---------------------------------------------------------------- as the text shows it

FILE = """
    import asyncio
    import turnout
    from turnout import emit as tell, flow, gather, sleep, task

    @task
    async def work(n: int) -> int:
        return n

    @task
    def sync(n: int) -> int:
        return n

    async def helper() -> None: ...

    @flow
    async def first() -> None:
        work(1)                        # bad: work(…) is called and not awaited
        tell("a.b")                    # bad: tell(…) is called and not awaited
        turnout.sleep("1s")            # bad: turnout.sleep(…) is called and not awaited
        sync.run(1)                    # bad: sync.run(…) is called and not awaited
        work.map([1])                  # bad: work.map(…) is called and not awaited
        helper()                       # bad: helper(…) is called and not awaited
        first()                        # bad: first(…) is called and not awaited
        await work(work(1))            # bad: work(…) is given work(…) itself
        await sync.run(n=work(1))      # bad: sync.run(…) is given work(…) itself
        await tell("a.b", work(1))     # bad: tell(…) is given work(…) itself
        await gather(work(1), helper())
        asyncio.create_task(helper())
        later = work(1)
        await later

    @flow
    def second() -> int:
        work(1)                        # bad: flow 'second' is a plain `def` and cannot await w
        gone = sleep("1s")             # bad: flow 'second' is a plain `def` and cannot await s
        asyncio.run(helper())
        sync.map([1])
        return sync(1)

    @task
    def inside() -> None:
        work(1)                        # bad: work(…) is called and not awaited

    def given(work):
        work(1)

    def shadowed() -> None:
        helper = print
        helper()
"""


def test_check_finds_what_the_text_shows_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "unawaited_flows.py"
    text = dedent(FILE)
    file.write_text(text)
    expected = {
        number: line.partition("# bad: ")[2]
        for number, line in enumerate(text.splitlines(), 1)
        if "# bad: " in line
    }
    found = {problem.line: problem.message for problem in check([file]).problems}
    assert found.keys() == expected.keys()
    for line, said in expected.items():
        assert found[line].startswith(said)
    assert not check([CHECKOUT / "handlers/examples"]).problems
    assert len(loader.load([file]).flows) == 2  # to serve it is no mistake of the text's


# ---------------------------------------------------------------- other mistakes of the first hour


def test_a_method_is_refused_where_it_is_declared() -> None:
    decorators: list[tuple[Any, str]] = [(task, "task"), (flow, "flow")]
    for declare, kind in decorators:
        with pytest.raises(SetupError, match=f"{kind} 'fetch' is a method") as caught:

            class Client:
                @declare  # type: ignore[untyped-decorator]  # either decorator
                def fetch(self) -> None: ...

        assert caught.value.file == __file__

    class Jobs:
        @staticmethod
        @task
        def ping(word: str) -> str:
            return word

    assert Jobs.ping("x") == "x"


@task
async def named(self: int) -> int:
    return self


@task
def sync_named(self: int) -> int:
    return self


@flow
async def named_flow(self: int = 1) -> int:
    return await named(self=self) + await sync_named.run(self=1)


@flow
async def calls_named() -> int:
    return await named_flow(self=5)


async def test_a_parameter_may_be_called_self(tmp_path: Path) -> None:
    assert await named(self=1) + sync_named(self=1) + await named_flow(self=1) == 4
    async with running(tmp_path, [calls_named, named_flow]) as service:
        run = await end_of(service, calls_named)
    assert (run.state, run.result) == (RunState.SUCCEEDED, b"6")


tried: list[str] = []


@flow(retry=retry(3, delay="1ms"))
async def fails_bare() -> None:
    tried.append("fails")
    raise Fail


@flow
async def skips_bare() -> None:
    raise Skip


async def test_fail_and_skip_need_no_reason(tmp_path: Path) -> None:
    tried.clear()
    async with running(tmp_path, [fails_bare, skips_bare]) as service:
        failed, skipped = (
            await end_of(service, fails_bare),
            await end_of(service, skips_bare),
        )
    assert failed.error is not None and failed.error.type == "failed"
    assert skipped.state is RunState.SKIPPED
    assert tried == ["fails"]


# ---------------------------------------------------------------- what is right


RIGHT = """
import asyncio
import functools
from turnout import *

options = {"timeout": "5s"}
token = secret("PATH")


def counted(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper


@task
async def work(n: int, *more: int, by: int = 1, **named: int) -> int:
    await asyncio.sleep(90)
    return n


@task
@counted
def wrapped(n: int) -> int:
    return n


@task
def looks(job: str, times: int = 1) -> str | Pending:
    return job if times else Pending


@flow
async def fine(n: int) -> int:
    numbers, address = [1, 2], f"https://{n}.example"
    await work(1, 2, 3, by=4, other=5)
    await work(*numbers, **options)
    await wrapped.run(n=1)
    await gather(*[work(each) for each in numbers])
    await poll(looks, "job", every="1m")
    await poll(looks, *numbers)
    await http("PATCH", address, json={}, timeout=None, allow={404})
    await http.get(address, **options)
    await http.post(token, content=b"x", headers={"Authorization": f"Bearer {token.reveal()}"})
    await kafka.publish("orders", {}, key="7")
    await emit("order.paid", id="7", data=None)
    await budget("x", max_changes=1, per="1h").take()
    def sleep(seconds):
        raise Skip("a name of its own")
    sleep(5)
    return n


if __name__ == "__main__":
    fine(1)
"""


def test_calls_that_are_right_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "flows.py").write_text(RIGHT)
    found = check([tmp_path])
    assert (found.problems, found.warnings) == ((), ())
