"""What a run does with its agent later on: spent budgets, changed code, cancels and retries."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.model_server import ModelServer, Said, model_server
from turnout import agent, flow, task
from turnout.handlers.actions.agent import Agent
from turnout.service.domain.run import RunState
from turnout.service.operate.verbs import Cancel, Retry
from turnout.testing import run, serve

# The first import of the framework takes seconds.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

__turnout_code_version__ = "one"  # as the loader gives it to a file of flows

done: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def _framework() -> None:
    importlib.import_module("turnout.handlers.actions.agent_framework")


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


@task
async def lookup(order: int) -> str:
    """Look an order up."""
    done.append(f"lookup {order}")
    return f"order {order} has a cracked lid"


@task
async def refund(order: int) -> str:
    """Give money back."""
    done.append(f"refund {order}")
    return "paid"


@task(name="refund")
async def other_refund(order: int, euros: int) -> str:
    """Give money back."""
    done.append(f"refund {order} {euros}")
    return "paid"


LOOKS_THEN_PAYS = [
    Said(calls=[("lookup", {"order": 1})]),
    Said(calls=[("refund", {"order": 1})]),
    Said("It is paid."),
]


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server(LOOKS_THEN_PAYS) as served:
        yield served


def clerk(server: ModelServer, model: str = "openai-chat:gpt-5", **options: Any) -> Agent[str]:
    options = {"tools": [lookup, refund], "instructions": "Be just.", **options}
    one: Agent[str] = agent("clerk", model, url=server.url, **options)
    return one


class Desk:
    """A flow whose agent and prompt may change, as by a deploy."""

    def __init__(self, one: Agent[str], version: str | None = None) -> None:
        self.agent = one
        self.prompt = "My lid is cracked."

        @flow(name="complaint", version=version)
        async def complaint() -> dict[str, Any]:
            said = await self.agent(self.prompt)
            return {"output": said.output, "calls": said.calls}

        self.flow = complaint

    def deploy(self, server: ModelServer, **changes: Any) -> None:
        """Change the prompt or the agent, and with it the hash of the file."""
        self.prompt = changes.pop("prompt", self.prompt)
        self.agent = clerk(server, approve=[refund], **changes)
        if self.flow.version is None:
            vars(self.flow)["code_version"] = "another"


# ---------------------------------------------------------------- budgets


def test_tokens_money_and_time_are_spent(server: ModelServer) -> None:
    server.script = [Said(calls=[("lookup", {"order": 1})], tokens=(200_000, 4_000)), Said("Paid.")]
    server.delay_seconds = 0.2
    prices = {"input": "1", "output": "10"}
    for options, words in (
        ({"max_tokens": 205_000, "answer_tokens": 500}, "tokens: 204000 of 205000 used"),
        ({"max_money": "0.25", "prices": prices, "answer_tokens": 500}, "money: 0.24 of 0.25 used"),
        ({"max_time": "300ms", "retry": 5}, "time: 0.3 s of 0.3 s used"),
    ):
        server.asked.clear()
        done.clear()
        ended = run(Desk(clerk(server, **options)).flow)
        assert (ended.state, ended.attempts, done) == (RunState.FAILED, 1, ["lookup 1"]), words
        assert ended.error is not None
        assert (ended.error.type, ended.error.step) == ("AgentSpent", "agent#1[2]/model#1")
        assert f"agent 'clerk' has spent its {words}" in ended.error.message
        assert len(server.asked) == (2 if "max_time" in options else 1), "time is cut off"


def test_a_model_call_that_a_crash_cuts_off_is_spent(server: ModelServer) -> None:
    prices = {"input": "0", "output": "10"}
    for options, words in (
        ({"max_tokens": 15_000, "answer_tokens": 9_000}, "tokens: 9"),
        ({"max_money": "0.15", "prices": prices, "answer_tokens": 9_000}, "money: 0.09 of 0.15"),
        ({"max_time": "1h", "timeout": None}, "time: 3600.0 s of 3600 s used"),
    ):
        desk = Desk(clerk(server, **options))
        whole = run(desk.flow)
        assert whole.state == RunState.SUCCEEDED, f"it is enough without a crash: {whole.error}"
        server.asked.clear()
        ended = run(desk.flow, crash_at=1)
        assert ended.error is not None
        assert (ended.error.type, ended.error.step) == ("AgentSpent", "agent#1[1]/model#1")
        assert f"agent 'clerk' has spent its {words}" in ended.error.message
        assert len(server.asked) == 1


# ---------------------------------------------------------------- changed code


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"instructions": "Be hard."}, "has begun, and its instructions changed; put that back"),
        (
            {"tools": [lookup, other_refund]},
            "has begun, and its tool 'refund' changed; put that back, or begin anew: "
            "turnout retry RUN --from agent#1",
        ),
        ({"tools": [refund]}, "its tool 'lookup' is gone"),
        ({"output": int}, "its output changed"),
        ({"prompt": "My box is cracked."}, "is now called with other arguments"),
        ({"model": "openai-chat:gpt-4"}, ""),
        ({"max_tokens": 1_000_000}, ""),
    ],
    ids=["instructions", "tool", "no tool", "output", "prompt", "model", "budget"],
)
async def test_what_changes_under_a_waiting_run_is_said_by_name(
    server: ModelServer, changes: dict[str, Any], words: str
) -> None:
    desk = Desk(clerk(server, approve=[refund]))
    async with serve(desk.flow) as service:
        waiting = await service.run(desk.flow)
        assert waiting.state == RunState.WAITING
        desk.deploy(server, **changes)
        await service.restart()
        ended = await service.answer(waiting.id)
    if not words:
        assert (ended.state, done) == (RunState.SUCCEEDED, ["lookup 1", "refund 1"]), ended.error
        assert server.asked[2].body["model"] == changes.get("model", ":gpt-5").split(":")[1]
        return
    assert ended.error is not None and ended.error.type == "code_changed"
    assert words in ended.error.message
    assert (len(server.asked), done) == (2, ["lookup 1"]), "nothing was asked or done any more"


async def test_a_flow_that_keeps_its_version_goes_on(server: ModelServer) -> None:
    desk = Desk(clerk(server, approve=[refund]), version="1")
    async with serve(desk.flow) as service:
        waiting = await service.run(desk.flow)
        desk.deploy(server, instructions="Be hard.")
        await service.restart()
        ended = await service.answer(waiting.id)
    assert ended.state == RunState.SUCCEEDED, ended.error
    assert server.asked[2].messages[0]["content"] == "Be hard."


# ---------------------------------------------------------------- cancel and retry


async def test_a_retry_from_the_agent_after_cancels_begins_anew(server: ModelServer) -> None:
    desk = Desk(clerk(server, approve=[refund]))
    async with serve(desk.flow) as service:
        do = service.process.operator.do
        run_id = (await service.run(desk.flow)).id

        async def cancelled_and_retried(from_step: str | None) -> int:
            await do(Cancel(run_id))
            assert (await service.ended(run_id)).state == RunState.CANCELLED
            await do(Retry(run_id, from_step=from_step))
            assert (await service.ended(run_id)).state == RunState.WAITING
            return len(server.asked)

        assert len(server.asked) == 2
        assert await cancelled_and_retried(None) == 2, "it goes on"
        assert await cancelled_and_retried("agent#1") == 4, "it begins anew"
        assert await cancelled_and_retried("agent") == 6
        assert await cancelled_and_retried(None) == 6
        assert await cancelled_and_retried("agent#1[2]/model#1") == 7, "from the second turn on"
        assert done == ["lookup 1"] * 3
        assert (await service.answer(run_id)).result["output"] == "It is paid."
