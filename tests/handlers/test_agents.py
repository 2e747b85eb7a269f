"""`agent`: a model that works with tasks, each call a recorded step; over real HTTP."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from tests.support.model_server import ModelServer, Request, Said, model_server
from turnout import AgentAnswer, AgentSpent, HttpRefused, agent, flow, secret, task
from turnout.handlers.actions.agent import Agent
from turnout.handlers.actions.agent_budget import Limits, Spent, read_money
from turnout.handlers.actions.agent_run import _changes
from turnout.service.domain.errors import SetupError
from turnout.service.domain.run import RunState
from turnout.testing import replayed, run, serve

# The first import of the framework takes seconds.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

done: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def _framework() -> None:
    importlib.import_module("turnout.handlers.actions.agent_framework")


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


class Verdict(BaseModel):
    refunded: bool


@task
async def lookup(order: int) -> str:
    """Look an order up."""
    done.append(f"lookup {order}")
    return f"order {order} has a cracked lid"


@task
def refund(order: int, euros: Decimal) -> dict[str, Any]:
    """Give money back."""
    done.append(f"refund {order} {euros}")
    return {"paid": str(euros)}


TEN_TURNS = [
    Said(calls=[("lookup", {"order": 1}), ("lookup", {"order": 2}), ("lookup", {"order": 3})]),
    Said(calls=[("drop_table", {"name": "orders"})]),
    Said(calls=[("lookup", {"order": "first"}), ("lookup", {"order": 4})]),
    Said(calls=[("lookup", '{"order": ')]),
    Said("Now I pay.", calls=[("refund", {"order": 1, "euros": "2.50"})]),
    Said(calls=[("lookup", {"order": 5}), ("lookup", {"order": 6})], ids=["same", "same"]),
    Said("Hm."),
    Said("Just text."),
    Said(calls=[("final_result", {"refunded": "perhaps"})]),
    Said(calls=[("final_result", {"refunded": True})]),
]


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server(TEN_TURNS) as served:
        yield served


def clerk(server: ModelServer, **options: Any) -> Agent[Verdict]:
    return agent(
        "clerk", "openai-chat:gpt-5", url=server.url, tools=[lookup, refund], output=Verdict,
        instructions="Be just.", **options,
    )  # fmt: skip


def asking(one: Agent[Any]) -> Any:
    @flow(name="complaint")
    async def complaint(text: str) -> dict[str, Any]:
        said: AgentAnswer[Any] = await one(text)
        verdict = said.output.refunded if isinstance(said.output, Verdict) else said.output
        return {
            "output": verdict, "transcript": list(said.transcript), "calls": said.calls,
            "tool_calls": said.tool_calls, "tokens": said.tokens, "money": str(said.money),
        }  # fmt: skip

    return complaint


async def test_ten_turns_with_an_approval_over_a_restart_and_again_without_the_server(
    server: ModelServer,
) -> None:
    one = clerk(server, approve=[refund], max_money="1", prices={"input": "1", "output": "10"})
    complaint = asking(one)
    async with serve(complaint) as service:
        waiting = await service.run(complaint, "My lid is cracked.")
        assert (waiting.state, len(server.asked)) == (RunState.WAITING, 5)
        assert "refund 1 2.50" not in done, "nobody has approved it"
        begun_at = waiting.steps["agent#1"].started_at
        await service.advance("1h")
        await service.restart()
        await service.answer(waiting.id, by="ops")
        ended = await service.ended(waiting.id)
    assert ended.state == "succeeded", ended.error
    assert ended.result["output"] is True
    assert ended.steps["agent#1"].started_at == begun_at, "it goes on, and does not begin anew"
    assert len(server.asked) == ended.result["calls"] == 10, "no model call is made twice"
    assert sorted(done) == [*(f"lookup {n}" for n in range(1, 7)), "refund 1 2.50"]
    assert len({asked.key for asked in server.asked}) == 10
    assert ended.result["money"] == "0.002", "1,000 tokens read, 100 written"
    assert "agent#1[1]/gather#1[2]/lookup#1" in ended.steps
    assert "agent#1[3]/gather#1[1]/lookup#1" in ended.steps
    assert "agent#1[6]/gather#1[1]/lookup#1" in ended.steps, "two calls under one id"
    said = ended.result["transcript"]
    told = {each["id"]: each for each in said if each["role"] == "tool"}
    assert "Unknown tool name: 'drop_table'" in told["call-1-0"]["result"]
    assert "wrong arguments: order: Input should be a valid integer" in told["call-2-0"]["result"]
    assert told["call-4-0"]["result"] == {"paid": "2.50"}
    server.close()
    done.clear()
    one.model, one.connection = replayed(said), {"key": None, "url": None}
    async with serve(complaint) as service:
        again = await service.run(complaint, "My lid is cracked.")
        await service.answer(again.id, by="ops")
        again = await service.ended(again.id)
    assert again.result["transcript"] == said


async def test_the_model_is_told_of_a_no(server: ModelServer) -> None:
    server.script = [
        Said(calls=[("refund", {"order": 1, "euros": "9"})]),
        Said(calls=[("final_result", {"refunded": False})]),
    ]
    complaint = asking(clerk(server, approve=[refund]))
    async with serve(complaint) as service:
        waiting = await service.run(complaint, "Pay.")
        await service.answer(waiting.id, approved=False, reason="too much")
        ended = await service.ended(waiting.id)
    assert (ended.state, done) == ("succeeded", [])
    assert server.asked[1].results == ["rejected: too much"], "it is no person's name that said it"


TWO = [
    Said(calls=[("lookup", {"order": 1}), ("refund", {"order": 1, "euros": "1"})]),
    Said(calls=[("final_result", {"refunded": True})]),
]


def test_after_a_crash_recorded_calls_are_not_made_and_the_one_in_flight_counts(
    server: ModelServer,
) -> None:
    server.script = TWO
    complaint = asking(clerk(server))
    whole = run(complaint, "x").result
    for crash, model_calls, tool_calls in ((1, 3, 2), (3, 2, 3), (4, 3, 2), (5, 2, 2)):
        server.asked.clear()
        done.clear()
        ended = run(complaint, "x", crash_at=crash)
        assert ended.state == "succeeded", (crash, ended.error)
        assert ended.result["transcript"] == whole["transcript"]
        assert (len(server.asked), ended.result["calls"]) == (model_calls, model_calls), crash
        assert len({asked.key for asked in server.asked}) == 2, "the same key when sent again"
        assert len(done) <= tool_calls, crash


def test_a_model_that_loops_is_ended_by_its_budget_of_calls(server: ModelServer) -> None:
    server.script = lambda request: Said(calls=[("nonsense", {"turn": request.turn})])
    ended = run(asking(clerk(server, max_calls=4)), "x")
    assert ended.state == "failed"
    assert ended.error is not None
    assert ended.error.type == "AgentSpent"
    assert ended.error.message.startswith("agent 'clerk' has spent its calls: 4 of 4 used")
    assert (ended.attempts, len(server.asked)) == (1, 4)


def test_more_tool_calls_than_are_left_are_all_refused(server: ModelServer) -> None:
    server.script = [Said(calls=[("lookup", {"order": n}) for n in range(50)])]
    ended = run(asking(clerk(server, max_tool_calls=10)), "x")
    assert ended.error is not None
    assert "spent its tool calls: 0 of 10 used, and the next call may take 50" in str(ended.error)
    assert done == []


def test_a_model_call_is_reserved_by_the_most_it_may_take() -> None:
    limits = Limits(
        calls=9, tool_calls=9, tokens=2000, money=Decimal("0.01"), seconds=10.0,
        input_price=Decimal(1), output_price=Decimal(10), answer_tokens=100, call_seconds=4.0,
    )  # fmt: skip
    assert limits.reserve("a", Spent(), 1900) == Spent(1, 1900, 100, 4.0)
    assert limits.reserve("a", Spent(1, 0, 0, 7.0), 1).seconds == 3.0
    for used, most, budget in (
        (Spent(), 1901, "tokens"),
        (Spent(1, 0, 0, 10.0), 1, "time"),
        (Spent(9), 1, "calls"),
        (Spent(1, 0, 900), 1, "money"),
    ):
        with pytest.raises(AgentSpent) as spent:
            limits.reserve("a", used, most)
        assert spent.value.budget == budget
    assert limits.cost(Spent(1, 1, 1)) == Decimal("0.000011")
    for no_money in (0.5, "much", "-1", "NaN", True):
        with pytest.raises(SetupError, match="write an amount as text"):
            read_money(no_money, "max_money")


def test_what_a_service_asks_for_is_waited_for_and_its_no_is_final(server: ModelServer) -> None:
    left = [Said(status=500), Said(status=429, headers={"Retry-After": "7"})]

    def script(request: Request) -> Said:
        return left.pop(0) if left else Said(calls=[("final_result", {"refunded": True})])

    server.script = script
    complaint = asking(clerk(server))
    ended = run(complaint, "x")
    assert ended.state == "succeeded", ended.error
    assert ended.took.total_seconds() >= 7
    assert ended.result["calls"] == 1, "what was refused is not spent"
    assert len({asked.key for asked in server.asked}) == 1
    left.append(Said("no such model", status=404))
    refused = run(complaint, "x")
    assert refused.error is not None
    assert (refused.error.type, refused.attempts) == (HttpRefused.__name__, 1)
    assert "no such model" in refused.error.message


NO_CHOICE = b"""
    {"id": "x", "object": "chat.completion", "created": 1, "model": "gpt-5", "choices": []}
"""


def test_an_answer_that_cannot_be_read_is_tried_again(server: ModelServer) -> None:
    paid = Said(calls=[("final_result", {"refunded": True})])
    for unreadable in (NO_CHOICE, b"<html>"):
        left = [Said(body=unreadable)]
        server.script = lambda _, left=left: left.pop(0) if left else paid
        ended = run(asking(clerk(server)), "x")
        assert ended.state == "succeeded", ended.error
        assert ended.result["calls"] == 2, "nobody knows whether it was paid"
    server.script = lambda _: Said(body=NO_CHOICE)
    ended = run(asking(clerk(server, retry=1)), "x")
    assert ended.error is not None
    assert (ended.error.type, ended.steps["agent#1[1]/model#1"].tries) == ("HttpError", 2)
    assert ended.error.message.startswith("model 'gpt-5' answered what cannot be read: IndexError")


def test_half_a_character_is_kept_as_a_question_mark(server: ModelServer) -> None:
    server.script = [
        Said("half: \ud83d, nothing: \0", calls=[("lookup", {"order": "x"})]),
        Said(calls=[("final_result", {"refunded": True})]),
    ]
    ended = run(asking(clerk(server)), "x")
    assert ended.state == "succeeded", ended.error
    assert ended.result["transcript"][1]["text"] == "half: ?, nothing: \0"


def test_a_service_that_counts_backwards_gives_nothing_back() -> None:
    messages = importlib.import_module("pydantic_ai.messages")
    usage = importlib.import_module("pydantic_ai.usage").RequestUsage
    framework = importlib.import_module("turnout.handlers.actions.agent_framework")
    reserved = Spent(1, 700, 500, 60.0)
    for read, written, spent in (
        (-100_000, -100, Spent(1, 700, 500, 2.0)),
        (0, 0, Spent(1, 700, 500, 2.0)),
        (90, -5, Spent(1, 90, 0, 2.0)),
    ):
        said = messages.ModelResponse([], usage=usage(input_tokens=read, output_tokens=written))
        assert framework.taken(said, reserved, 2.0) == spent


def test_a_service_that_is_down_is_tried_again(server: ModelServer) -> None:
    complaint = asking(clerk(server, retry=1))
    server.close()
    ended = run(complaint, "x")
    assert ended.error is not None
    assert (ended.error.type, ended.error.step) == ("HttpError", "agent#1[1]/model#1")
    assert ended.steps["agent#1[1]/model#1"].tries == 2


def test_secrets_reach_neither_the_model_nor_the_record(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_KEY", "sk-very-secret-1")
    server.script = [Said(calls=[("final_result", {"refunded": True})], text="sk-very-secret-1")]
    secret("MODEL_KEY").reveal()
    ended = run(asking(clerk(server, key=secret("MODEL_KEY"))), "the key is sk-very-secret-1")
    assert ended.state == "succeeded", ended.error
    assert "sk-very" not in str(server.asked[0].body)
    assert server.asked[0].headers["authorization"] == "Bearer sk-very-secret-1"
    assert "sk-very" not in str(ended.steps)


async def test_outside_a_run_it_is_a_plain_call(server: ModelServer) -> None:
    server.script = TWO
    answer = await clerk(server)("x")
    assert (answer.output, answer.calls, answer.tool_calls) == (Verdict(refunded=True), 2, 2)


def test_what_changed_is_said_by_name() -> None:
    before = {"prompt": "a", "instructions": "b", "output": "c", "tools": {"x": "1", "y": "2"}}
    now = {"prompt": "A", "instructions": "b", "output": "c", "tools": {"x": "3", "z": "2"}}
    assert _changes(before, before) == []
    assert _changes(before, now) == [
        "its prompt changed", "its tool 'x' changed", "its tool 'y' is gone", "its tool 'z' is new",
    ]  # fmt: skip


def test_a_declaration_that_cannot_be_meant_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain() -> None: ...

    for options, words in (
        ({"tools": [plain]}, "plain is no task"),
        ({"tools": [lookup, lookup]}, "two tools have one name"),
        ({"approve": [lookup]}, "approve= names tools that tools= does not have"),
        ({"max_calls": 0}, "write 1 or more"),
        ({"max_money": "1"}, "go together"),
        ({"max_money": 0.5, "prices": {"input": "1", "output": "2"}}, "write an amount as text"),
        ({"key": "sk-1"}, "not the key itself"),
    ):
        with pytest.raises(SetupError, match=words):
            agent("a", "openai-chat:gpt-5", **options)
    for model in ("gpt-5", "nobody:gpt-5"):
        with pytest.raises(SetupError, match="agent 'a'"):
            agent("a", model)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pydantic_ai" else real(name)
    )
    with pytest.raises(SetupError, match=r"pip install 'turnout\[ai\]'"):
        agent("a", "openai-chat:gpt-5")
