"""Whatever an author's code raises or answers where the service asks it ends that question only."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator

from tests.support.program import Program
from tests.support.running import eventually, make_event, running
from turnout import Retry, Skip, emit, event, flow, limit, retry, task, wait_for, webhook
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.resource import resource
from turnout.service.domain.run import Run, RunState
from turnout.service.domain.trigger import Emitter

HALF = "\ud800"
"""Half of a character, which UTF-8 cannot hold."""


def leave(*_: object) -> Any:
    sys.exit(3)


def leave_on(number: int) -> Callable[[Event], Any]:
    return lambda event: leave() if event.data == number else "key"


class Panic(BaseException):
    """As compiled modules raise it."""


def raise_on(number: int, error: BaseException) -> Callable[[Event], Any]:
    def ask(event: Event) -> Any:
        if event.data == number:
            raise error
        return "key"

    return ask


async def wait(_: Event) -> bool:
    return False


class Unreadable:
    def __str__(self) -> str:
        return leave()  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        return leave()  # type: ignore[no-any-return]


def refuse(value: int) -> int:
    return leave() if value == 1 else value


QUESTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "when exits": ({"when": leave_on(1)}, "SystemExit: 3"),
    "per exits": ({"concurrency": limit(2, per=leave_on(1))}, "SystemExit: 3"),
    "ordered_by exits": ({"ordered_by": leave_on(1)}, "SystemExit: 3"),
    "when is a cancel": ({"when": raise_on(1, asyncio.CancelledError())}, "CancelledError: "),
    "ordered_by is a cancel": (
        {"ordered_by": raise_on(1, asyncio.CancelledError())},
        "CancelledError: ",
    ),
    "per panics": ({"concurrency": limit(2, per=raise_on(1, Panic("oh")))}, "Panic: oh"),
    "truth exits": ({"when": lambda event: event.data != 1 or Unreadable()}, "SystemExit: 3"),
    "text of a key exits": (
        {"ordered_by": lambda event: Unreadable() if event.data == 1 else "a"},
        "SystemExit: 3",
    ),
    "key is half a character": (
        {"ordered_by": lambda event: HALF if event.data == 1 else "a"},
        "ordered_by=: '\\ud800' holds '\\ud800', half of a character, which cannot be stored",
    ),
    "key of a limit is bytes decoded loosely": (
        {
            "concurrency": limit(
                1, per=lambda event: b"\xff".decode("utf-8", "surrogateescape" * (event.data == 1))
                if event.data == 1 else "a"
            )
        },
        "per=: '\\udcff' holds",
    ),
    "when is to be awaited": (
        {"when": lambda event: wait(event) if event.data == 1 else True},
        "when= answers with something to await",
    ),
    "key is to be awaited": (
        {"ordered_by": lambda event: wait(event) if event.data == 1 else "a"},
        "ordered_by= answers with something to await",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", QUESTIONS)
async def test_a_question_that_fails_is_a_dead_letter_and_its_neighbours_run(
    tmp_path: Path, what: str
) -> None:
    options, words = QUESTIONS[what]

    @flow(on=event("number"), **options)
    async def asked(data: int) -> int:
        return data

    @flow
    async def emits(data: int) -> None:
        await emit("number", data)

    async with running(tmp_path, [asked, emits]) as service:
        events = [make_event(number) for number in range(3)]
        receipts = await service.emitter(events)
        runs = [await service.run(run) for receipt in receipts for run in receipt.runs]
        runs += await service.all_finished()
    ended = {
        state: [run for run in runs if run.flow == "asked" and run.state is state]
        for state in RunState
    }
    letters = {run.id: run for run in ended[RunState.FAILED]}
    assert len(letters) == 2  # of the sender's event and of the emitted one
    for letter in letters.values():
        assert letter.error is not None
        assert letter.error.type == "filter_error"
        assert words in letter.error.message
    assert {run.flow for run in runs if run.state is RunState.FAILED} == {"asked"}


async def test_a_child_whose_key_cannot_be_stored_fails_its_caller_by_name(tmp_path: Path) -> None:
    @flow(ordered_by=lambda event: HALF)
    async def child(data: int) -> None: ...

    @flow(ordered_by=leave)
    async def leaving(data: int) -> None: ...

    @flow
    async def parent(data: int) -> None:
        await child(data)

    @flow
    async def parents(data: int) -> None:
        await leaving.map([data])

    async with running(tmp_path, [child, leaving, parent, parents]) as service:
        service.process.dispatcher.pause("child")
        service.process.dispatcher.pause("leaving")
        receipt = (await service.emitter([make_event(7)]))[0]
        by_flow = {run.flow: run for run in [await service.run(id) for id in receipt.runs]}
        ended = [await service.finished(by_flow[name].id) for name in ("parent", "parents")]
    assert [run.error.message[:40] for run in ended if run.error is not None] == [
        "ordered_by=: '\\ud800' holds '\\ud800', ha",
        "3",
    ]


class Serialized:
    """What a step returns: its pickling exits."""

    def __reduce__(self) -> Any:
        leave()


class Told(Exception):
    def __str__(self) -> str:
        return leave()  # type: ignore[no-any-return]

    def __reduce__(self) -> Any:
        leave()

    @property
    def retry_after(self) -> float:
        return leave()  # type: ignore[no-any-return]


class Later(Retry):
    def __init__(self) -> None: ...  # forgets to call ours


class Nothing(Skip):
    def __init__(self) -> None: ...

    def __str__(self) -> str:
        return leave()  # type: ignore[no-any-return]


@task
async def serialize(_: int) -> Any:
    return Serialized()


@task(fallback=leave)
async def falls(_: int) -> None:
    raise ValueError


@task(retry=retry(1, delay="1ms"))
async def tells(_: int) -> None:
    raise Told


@task
def serialize_in_thread(_: int) -> Any:
    return Serialized()


@flow
async def value() -> None:
    await serialize.map([1])


@flow
def value_in_thread() -> None:
    serialize_in_thread.map([1])


@flow
async def fallback() -> None:
    await falls.map([1])


@flow(retry=retry(1, delay="1ms"))
async def error() -> None:
    raise Told


@flow
async def error_of_step() -> None:
    await tells.map([1])


@flow(retry=retry(1, delay="1ms"))
async def later() -> None:
    raise Later


@flow
async def nothing() -> None:
    raise Nothing


@flow
async def model(number: Annotated[int, AfterValidator(refuse)]) -> None: ...


async def test_code_that_exits_behind_a_value_or_an_error_fails_its_run_alone(
    tmp_path: Path,
) -> None:
    flows: list[Flow[..., Any]] = [
        value, value_in_thread, fallback, error, error_of_step, later, nothing, model,
    ]  # fmt: skip
    async with running(tmp_path, flows) as service:
        receipt = (await service.emitter([make_event(1)]))[0]
        ended: dict[str, Run] = {}
        for run_id in receipt.runs:
            run = await service.finished(run_id)
            ended[run.flow] = run
    assert {run.flow for run in ended.values() if run.state is not RunState.FAILED} == {"nothing"}
    assert ended["nothing"].state is RunState.SKIPPED
    assert ended["later"].attempts == 2
    assert ended["error"].attempts == 2
    assert ended["model"].error is not None
    assert ended["model"].error.type == "binding_error"


class LaterInAnInteger(Retry):
    def __init__(self) -> None:
        self.after: Any = 30


class LaterThanAnyDate(Retry):
    def __init__(self) -> None:
        self.after = timedelta.max


class LaterByChance(Retry):
    def __init__(self) -> None: ...

    @property
    def after(self) -> Any:  # type: ignore[override]  # as an author may write it
        return leave()


def raises_in_a_flow(error: Callable[[], Exception]) -> Flow[..., Any]:
    @flow(retry=retry(1, delay="1ms"))
    async def raising() -> None:
        raise error()

    return raising


def raises_in_a_step(error: Callable[[], Exception]) -> Flow[..., Any]:
    @task(retry=retry(1, delay="1ms"))
    async def step() -> None:
        raise error()

    @flow
    async def raising() -> None:
        await step()

    return raising


@pytest.mark.parametrize("error", [LaterInAnInteger, LaterThanAnyDate, LaterByChance])
@pytest.mark.parametrize("where", [raises_in_a_flow, raises_in_a_step])
async def test_a_wait_that_is_no_duration_is_left_to_the_policy(
    tmp_path: Path,
    error: Callable[[], Exception],
    where: Callable[[Callable[[], Exception]], Flow[..., Any]],
) -> None:
    async with running(tmp_path, [where(error)]) as service:
        run = await service.finished((await service.send()).runs[0])
        assert run.error is not None
        assert run.error.type == error.__name__


async def test_an_error_that_cannot_even_be_judged_fails_its_run_alone(tmp_path: Path) -> None:
    class Odd(Exception):
        def __getattribute__(self, name: str) -> Any:
            if name in ("__cause__", "__context__"):
                leave()
            return super().__getattribute__(name)

    @flow
    async def raising() -> None:
        raise Odd

    async with running(tmp_path, [raising, works_on]) as service:
        ended = [await service.finished(each) for each in (await service.send()).runs]
        assert [run.state for run in ended] == [RunState.FAILED, RunState.SUCCEEDED]
        assert ended[0].error is not None
        assert ended[0].error.type == "Odd"
        assert "SystemExit: 3" in ended[0].error.message


@flow
async def works_on() -> None: ...


async def test_a_match_that_exits_fails_the_run_that_waits_alone(tmp_path: Path) -> None:
    paid = webhook("/paid", verify="none")

    @flow(awaits=paid)
    async def waits(data: int) -> None:
        await wait_for(paid, match=leave)

    async with running(tmp_path, [waits]) as service:
        receipt = (await service.emitter([make_event(1)]))[0]

        async def suspended() -> bool:
            return (await service.run(receipt.runs[0])).state is RunState.WAITING

        await eventually(suspended)
        await service.process.emitters["webhook:/paid"]([make_event(1)])
        run = await service.finished(receipt.runs[0])
    assert run.error is not None
    assert run.error.type == "SystemExit"


@resource
def exits() -> int:
    return leave()  # type: ignore[no-any-return]


async def test_a_resource_that_exits_is_a_mistake_with_its_line(tmp_path: Path) -> None:
    @flow
    async def works(number: Annotated[int, exits]) -> None: ...

    with pytest.raises((SetupError, BaseExceptionGroup)) as caught:
        async with running(tmp_path, [works]):
            pass
    assert "resource 'exits' did not start: SystemExit: 3" in repr(
        getattr(caught.value, "exceptions", (caught.value,))
    )


@dataclass(frozen=True)
class Exits:
    """A trigger of an author's own."""

    name: str = "own"
    kind: str = "own"

    def check(self) -> None: ...

    async def run(self, emit: Emitter) -> None:
        emit.up()
        leave()


async def test_a_trigger_of_an_author_that_exits_is_down_and_started_again(
    tmp_path: Path,
) -> None:
    @flow(on=Exits())
    async def works() -> None: ...

    async with running(tmp_path, [works]) as service:
        await service.process.start_triggers()

        async def down() -> bool:
            return service.process.emitters["own"].status.problem == "SystemExit: 3"

        await eventually(down)
        await service.send()


def test_text_of_a_flow_that_cannot_be_stored_is_refused_at_its_line() -> None:
    for option in ("was", "version"):
        with pytest.raises(SetupError, match=r"printable|printed"):
            flow(**{option: HALF})(wait)  # type: ignore[call-overload]


SERVED = """
import sys
from turnout import event, flow, webhook

@flow(on=webhook("/a", verify="none"), when=lambda e: e.data["n"] != 1 or sys.exit(3))
async def exits(data: dict) -> int:
    return data["n"]

@flow(on=webhook("/b", verify="none"), ordered_by=lambda e: chr(e.data["k"]))
async def keyed(data: dict) -> int:
    return data["k"]
"""


def test_a_served_program_answers_and_goes_on(tmp_path: Path) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text(SERVED)
    with Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log").start() as program:
        program.ready()

        def send(path: str, body: bytes) -> int:
            headers = {"content-type": "application/json"}
            answer = program.ask(f"/hooks/{path}", method="POST", body=body, headers=headers)
            assert answer is not None
            return answer.status

        assert [send("a", b'{"n": %d}' % number) for number in (0, 1, 2)] == [202, 202, 202]
        assert [send("b", b'{"k": %d}' % key) for key in (65, 0xD800, 66)] == [202] * 3
        program.quiet(10)
        dead = program.api("/dead")["items"]
        assert [run["error"]["type"] for run in dead] == ["filter_error"] * 2
        assert program.stop() == 0
