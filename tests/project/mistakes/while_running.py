"""Mistakes that show when a flow runs, or when somebody calls it, and what is said of each.

`FLOWS` is one file with a webhook for each; `LINE` in a text is the line marked `# here: PATH`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FLOWS = """
import asyncio
import time
from typing import Any

from turnout import *

paid = webhook("/paid")


@task(retry=retry(1, delay="10ms", jitter=False))
async def fails() -> None:
    raise OSError("no answer")  # here: step


@task
def weigh() -> int:
    return 1


@task
async def work(x: Any = 1) -> int:
    return 1


@flow(on=webhook("/blocks"))
async def blocks() -> None:
    time.sleep(4)  # here: blocks


@flow(on=webhook("/step"))
async def step() -> None:
    await fails()


@flow(on=webhook("/attempt"), retry=retry(1, delay="10ms", jitter=False))
async def attempt() -> None:
    raise OSError("no answer")  # here: attempt


@flow(
    on=webhook("/filter"),
    when=lambda event: event.data["amount"] > 0,  # here: filter
)
async def asks() -> None: ...


@flow(on=webhook("/shared"))
async def counts(count: int) -> None: ...


@flow(on=webhook("/shared"))
async def takes_all(data: dict) -> None: ...


@flow(on=webhook("/signed", verify="github", secret=secret("ORDERS_HMAC")))
async def signed() -> None: ...


@flow(on=webhook("/small", max_body="10B"))
async def small(data: dict) -> None: ...


@flow(on=webhook("/alone"))
async def alone(count: int) -> None: ...


@flow(on=webhook("/forgets"))
async def forgets() -> None:
    call = work
    call()  # here: forgets


@flow(on=webhook("/plain"))
async def plain() -> None:
    call = weigh
    call()  # here: plain


@flow(on=webhook("/context"))
async def context() -> None:
    run = current()
    run.run_id  # here: context


@flow(on=webhook("/waits"))
async def waits() -> None:
    trigger = paid
    await wait_for(trigger)


@flow(on=webhook("/background"))
async def background() -> None:
    async with asyncio.timeout(5):  # here: background
        await sleep("1h")


@task
async def opens() -> Any:
    return lambda: 1


@flow(on=webhook("/result"))
async def result() -> None:
    await opens()


@flow(on=webhook("/leaks"))
async def leaks() -> str:
    return secret("ORDERS_HMAC").reveal()


@flow(on=webhook("/nan"))
async def nan() -> None:
    await emit("a.b", {"x": float("nan")})


@flow(on=webhook("/undo"))
async def undoes() -> None:
    current().on_undo(lambda: None)


@flow(on=webhook("/map"))
async def maps() -> None:
    await work.map([1], limit=0)


@flow(on=webhook("/child"))
async def child() -> None:
    call = counts
    await call("many")


@task(timeout="50ms")
async def hangs() -> None:
    await asyncio.sleep(5)


@flow(on=webhook("/slow"))
async def slow() -> None:
    await hangs()


@task
async def naps() -> None:
    call = sleep
    await call("1h")  # here: naps


@flow(on=webhook("/naps"))
async def sleeps_in_a_task() -> None:
    await naps()


@flow(on=webhook("/question"))
async def question() -> str:
    said = approval("ops")
    return said.by  # here: question


@flow(on=kafka("orders", group="billing"))
async def reads() -> None: ...
"""


@dataclass(frozen=True)
class WhileRunning:
    """A request, and the line of the log that tells of the mistake behind it."""

    title: str
    path: str
    message: str
    says: Mapping[str, object]
    place: str
    fix: str

    @property
    def line(self) -> int:
        """The number of the marked line, 0 if there is none."""
        mark = f"# here: {self.path}"
        lines = enumerate(FLOWS.splitlines(), 1)
        return next((number for number, text in lines if mark in text), 0)


def _failed(title: str, path: str, error: str, place: str, fix: str) -> WhileRunning:
    return WhileRunning(title, path, "run.failed", {"error": error}, place, fix)


WHILE_RUNNING = (
    WhileRunning(
        "code that blocks the loop for seconds",
        "blocks",
        "loop.blocked",
        {
            "flow": "blocks",
            "location": "FILE:LINE",
            "code": "time.sleep(4)  # here: blocks",
            "hint": "nothing else runs meanwhile: call it in a `def` task",
        },
        "FILE:LINE",
        "call it in a `def` task",
    ),
    WhileRunning(
        "a step that is tried again",
        "step",
        "step.retried",
        {
            "flow": "step", "step": "fails#1", "error": "OSError: no answer",
            "location": "FILE:LINE", "tries": 1, "of": 2, "again_in": "10ms",
        },
        "fails#1",
        "10ms",
    ),
    WhileRunning(
        "a run that is tried again",
        "attempt",
        "run.retried",
        {
            "flow": "attempt", "error": "OSError: no answer", "attempt": 1, "step": None,
            "location": "FILE:LINE",
        },
        "FILE:LINE",
        "",
    ),
    WhileRunning(
        "when= that raises",
        "filter",
        "filter.failed",
        {
            "flow": "asks",
            "error": "KeyError: 'amount' (in when=, at FILE:LINE, which read "
            "data.amount = missing)",
        },
        "FILE:LINE",
        "data.amount = missing",
    ),
    WhileRunning(
        "data that one of two flows cannot take",
        "shared",
        "event.rejected",
        {
            "flow": "counts",
            "trigger": "webhook:/shared",
            "error": "invalid_data: parameter 'count': Input should be a valid integer",
        },
        "counts",
        "should be a valid integer",
    ),
    WhileRunning(
        "a signature that is missing",
        "signed",
        "webhook.unverified",
        {
            "trigger": "webhook:/signed",
            "count": 1,
            "reason": "the header x-hub-signature-256 must occur once and have 1 to 4096 bytes",
            "hint": "compare secret ORDERS_HMAC with the one that the sender uses",
        },
        "webhook:/signed",
        "compare secret ORDERS_HMAC",
    ),
    _failed(
        "a call that nobody awaits, which the source does not show",
        "forgets",
        "not_awaited: flow 'forgets' called what it did not await, so that it never ran: task "
        "'work' at FILE:LINE; write `await` before the call",
        "FILE:LINE",
        "write `await`",
    ),
    _failed(
        "a def task in an async flow, which the source does not show",
        "plain",
        "MisplacedTask: task 'weigh', called at FILE:LINE, is not async and would block the "
        "service; in an `async def` flow write `await weigh.run(…)`",
        "FILE:LINE",
        "`await weigh.run(…)`",
    ),
    _failed(
        "what the run does not have",
        "context",
        "AttributeError: current() has no 'run_id'; did you mean current().run.id?",
        "FILE:LINE",
        "current().run.id",
    ),
    _failed(
        "a wait that the flow does not name",
        "waits",
        "failed: the flow waits for 'webhook:/paid' and does not say so: name the trigger in "
        "@flow(awaits=[…]), so that it is watched",
        "'webhook:/paid'",
        "@flow(awaits=[…])",
    ),
    _failed(
        "a sleep inside a timeout",
        "background",
        "MisplacedTask: a wait, or a child run, is inside a timeout (FILE:LINE), which ends with "
        "the attempt while the wait goes on; use the wait's own `timeout=`, or the timeout around "
        "tasks",
        "FILE:LINE",
        "`timeout=`",
    ),
    _failed(
        "a sleep in a task, which the source does not show",
        "naps",
        "MisplacedTask: sleep('1h'), called at FILE:LINE, is for the flow itself: call it before "
        "or after its tasks; in a task it is `asyncio.sleep`",
        "FILE:LINE",
        "before or after its tasks",
    ),
    _failed(
        "an approval that is read before it is answered",
        "question",
        "AttributeError: approval(…) has no 'by' before it is answered; write `said = await "
        "approval(…)`, then said.by",
        "FILE:LINE",
        "`said = await approval(…)`",
    ),
    _failed(
        "a result that cannot be kept",
        "result",
        "not_kept: step 'opens#1' of flow 'result': the result, function, can be kept neither as "
        "JSON nor as a pickle (AttributeError: Can't pickle local object "
        "'opens.<locals>.<lambda>'); return plain data, a dataclass or a model",
        "step 'opens#1' of flow 'result'",
        "return plain data",
    ),
    _failed(
        "a secret in a result",
        "leaks",
        "not_kept: flow 'leaks': the result holds the value of secret 'ORDERS_HMAC'; return "
        "something else, and call reveal() only where the value is used",
        "flow 'leaks'",
        "return something else",
    ),
    _failed(
        "data that JSON does not have",
        "nan",
        "not_kept: step 'emit#1' of flow 'nan': JSON has no nan; emit what the flows that listen "
        "are to read",
        "step 'emit#1' of flow 'nan'",
        "emit what the flows",
    ),
    _failed(
        "an undo that a restart could not find",
        "undo",
        "not_kept: on_undo(undoes.<locals>.<lambda>): a restart could not find "
        "undoes.<locals>.<lambda> again; define it with `def` at the top of a file, and pass what "
        "it needs as arguments",
        "on_undo",
        "define it with `def`",
    ),
    _failed(
        "no branch at once",
        "map",
        "ValueError: work.map: limit is 1 or more and items at most 10,000, got limit=0 and 1 "
        "items; map over chunks of them",
        "work.map",
        "limit is 1 or more",
    ),
    _failed(
        "a child that gets something else",
        "child",
        "invalid_data: argument 'count': Input should be a valid integer, unable to parse string "
        "as an integer",
        "argument 'count'",
        "should be a valid integer",
    ),
    _failed(
        "a step that takes too long",
        "slow",
        "TimeoutError: task 'hangs' did not end within its timeout of 0.05s",
        "task 'hangs'",
        "",
    ),
    WhileRunning(
        "a broker that does not answer",
        "",
        "trigger.down",
        {
            "trigger": "kafka:orders/billing",
            "error": "cannot reach Kafka at 127.0.0.1:1 (TURNOUT_KAFKA_BOOTSTRAP_SERVERS): "
            "ConnectionRefusedError: [Errno 111] Connection refused",
        },
        "kafka:orders/billing",
        "TURNOUT_KAFKA_BOOTSTRAP_SERVERS",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A request that is refused, and what it is answered."""

    title: str
    path: str
    status: int
    says: str
    fix: str
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"


ASKED = (
    Asked(
        "data that no flow can take", "/hooks/alone", 422,
        "no flow accepts this data; nothing was stored: alone: parameter 'count': Input should be "
        "a valid integer",
        "should be a valid integer",
    ),
    Asked(
        "a body that is no JSON", "/hooks/alone", 400,
        "the body is not JSON: unexpected character, expected a string key: line 1 column 2 "
        "(char 1)",
        "line 1 column 2", body=b"{bad",
    ),
    Asked(
        "a type of content that nobody reads", "/hooks/alone", 415,
        "image/png is not accepted here; send JSON, form, text, application/octet-stream or "
        "CloudEvents",
        "send JSON", headers={"content-type": "image/png"},
    ),
    Asked(
        "a body that is too large", "/hooks/small", 413, "a body is at most 10 bytes here",
        "at most 10 bytes", body=b'{"a": 1234567890}',
    ),
    Asked(
        "a path without /hooks", "/alone", 404,
        "no page has this path; did you mean /hooks/alone?", "/hooks/alone",
    ),
    Asked(
        "a method that the webhook does not take", "/hooks/alone", 405,
        "this webhook takes OPTIONS, POST", "POST", method="GET", body=b"",
    ),
)  # fmt: skip
