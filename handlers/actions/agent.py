"""The action `agent`: a language model that works with tasks as its tools, each call a step.

Not here: the conversation (`agent_run`), its budgets (`agent_budget`), and the framework that
speaks with the models (`agent_framework`, and `agent_transcript`: only they import it).
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import re
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from functools import cached_property
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from turnout.handlers.task import retry_policy
from turnout.service.domain.errors import MisplacedTask, SetupError
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.retry import retry as retry_of
from turnout.service.domain.task import Task
from turnout.service.domain.units import parse_duration, parse_timeout
from turnout.service.governance import secrets
from turnout.service.governance.secrets import Secret
from turnout.service.steps.author_code import where
from turnout.service.steps.context import current
from turnout.service.steps.durable_wait import refuse_thread
from turnout.service.steps.scope import here
from turnout.service.steps.unawaited import to_await

from . import agent_run
from .agent_budget import USUAL_ANSWER_TOKENS, Limits, read_money
from .http_response import HttpError

if TYPE_CHECKING:
    from . import agent_framework

O = TypeVar("O")  # noqa: E741  the output

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_USUAL = retry_of(3, delay="1s", max="30s", on=(HttpError, OSError))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAnswer(Generic[O]):
    """What an agent came to, recorded as one step when it has ended.

    * `output`: the answer: text, or a value of the class `output=` names
    * `transcript`: what was said, in order, with secrets masked. Each entry is a dict whose `role`
      is `user`, `model`, `tool` or `turnout`. `turnout.testing.replayed` plays it again
    * `calls`: how many model calls it took, those that were cut off too
    * `tool_calls`: how many calls of tools
    * `tokens`: how many tokens were read and written
    * `money`: what they cost by `prices=`, 0 without

    Raises nothing: it is a value.

    ```python
    from turnout import AgentAnswer, agent, flow

    clerk = agent("clerk", "openai-chat:gpt-5")


    @flow
    async def answer(question: str) -> str:
        said: AgentAnswer[str] = await clerk(question)
        return f"{said.output} ({said.tokens} tokens)"
    ```
    """

    output: O
    transcript: Sequence[dict[str, Any]]
    calls: int
    tool_calls: int
    tokens: int
    money: Decimal


class Agent(Generic[O]):
    """What `agent(…)` declares; call it in an `async def` flow: `await clerk("…")`.

    `model` may be set to another one, such as a model of `pydantic_ai.models.test` in a test.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        *,
        instructions: str,
        tools: Sequence[Task[Any]],
        approve: Collection[str],
        approve_timeout: timedelta | None,
        output: type[O],
        connection: Mapping[str, Any],
        limits: Limits,
        retry: RetryPolicy,
    ) -> None:
        self.name = name
        self.model = model
        self.instructions = instructions
        self.tools = tools
        self.approve = approve
        self.approve_timeout = approve_timeout
        self.output = output
        self.connection = connection
        self.limits = limits
        self.retry = retry

    def __call__(self, prompt: str) -> Coroutine[object, None, AgentAnswer[O]]:
        """Let the agent work on `prompt`, in an `async def` flow.

        Model calls and calls of tools are recorded steps. Raises `AgentSpent`, `HttpError` when a
        model does not answer, `HttpRefused` when it refuses, `Fail` when it gives no usable answer,
        the error of a tool, and `MisplacedTask` in a task or a `def` flow.
        """
        if not isinstance(prompt, str):
            raise TypeError(f"agent {self.name!r} is asked with text, not {type(prompt).__name__}")
        scope = here("agent")
        if scope is None and current().services is not None:
            raise MisplacedTask(
                f"agent {self.name!r}, called at {where()}, is for the flow itself: its calls are "
                "steps, and a task has none"
            )
        refuse_thread("agent")
        return to_await(agent_run.run(self, prompt, scope), f"agent {self.name!r}")

    @cached_property
    def prepared(self) -> agent_framework.Prepared:
        """The agent as the framework has it; raises `SetupError` for what it cannot be."""
        from . import agent_framework

        return agent_framework.prepare(self)

    @property
    def returns(self) -> Any:
        """The class of its answers, by which they are recorded."""
        return GenericAlias(AgentAnswer, self.output)


@overload
def agent(
    name: str,
    model: Any,
    *,
    instructions: str = ...,
    tools: Sequence[Callable[..., Any]] = ...,
    approve: Sequence[Callable[..., Any]] = ...,
    approve_timeout: str | timedelta | None = ...,
    key: Secret | None = ...,
    url: str | None = ...,
    max_calls: int = ...,
    max_tool_calls: int = ...,
    max_tokens: int | None = ...,
    max_money: str | Decimal | None = ...,
    prices: Mapping[str, str | Decimal] | None = ...,
    max_time: str | timedelta | None = ...,
    answer_tokens: int | None = ...,
    timeout: str | timedelta | None = ...,
    retry: RetryPolicy | int | None = ...,
) -> Agent[str]: ...
@overload
def agent(
    name: str,
    model: Any,
    *,
    output: type[O],
    instructions: str = ...,
    tools: Sequence[Callable[..., Any]] = ...,
    approve: Sequence[Callable[..., Any]] = ...,
    approve_timeout: str | timedelta | None = ...,
    key: Secret | None = ...,
    url: str | None = ...,
    max_calls: int = ...,
    max_tool_calls: int = ...,
    max_tokens: int | None = ...,
    max_money: str | Decimal | None = ...,
    prices: Mapping[str, str | Decimal] | None = ...,
    max_time: str | timedelta | None = ...,
    answer_tokens: int | None = ...,
    timeout: str | timedelta | None = ...,
    retry: RetryPolicy | int | None = ...,
) -> Agent[O]: ...
def agent(
    name: str,
    model: Any,
    *,
    output: Any = str,
    instructions: str = "",
    tools: Sequence[Callable[..., Any]] = (),
    approve: Sequence[Callable[..., Any]] = (),
    approve_timeout: str | timedelta | None = None,
    key: Secret | None = None,
    url: str | None = None,
    max_calls: int = 20,
    max_tool_calls: int = 50,
    max_tokens: int | None = None,
    max_money: str | Decimal | None = None,
    prices: Mapping[str, str | Decimal] | None = None,
    max_time: str | timedelta | None = None,
    answer_tokens: int | None = None,
    timeout: str | timedelta | None = "2m",
    retry: RetryPolicy | int | None = 3,
) -> Agent[Any]:
    """Declare an agent: a language model that works with tasks as its tools.

    `said = await clerk("…")` in an `async def` flow. Each model call and each call of a tool is a
    recorded step: it is not made again over waits, retries and restarts. One that was cut off is
    made again with the same `Idempotency-Key`, and counts twice. Needs `pip install 'turnout[ai]'`.

    * `name`: the agent's name, for people
    * `model`: a model of pydantic-ai by its name, such as `"openai-chat:gpt-5"` (the protocol of
      chat completions, which most servers speak) or `"anthropic:…"`, or a model itself
    * `output`: the class of its answer: a model, a dataclass or a `TypedDict`; text by default
    * `instructions`: what it always goes by
    * `tools`: the tasks it may call. It sees their names, annotations and docstrings; a call of
      another one is refused, and it is told so. An error of a tool is an error of the run: a task
      with `fallback=` tells the model instead
    * `approve`: those of its tools of which a person must approve each call (`turnout approve`);
      the model is told of a no
    * `approve_timeout`: how long to wait for that, such as `"2d"`; then the answer is no
    * `key`: the secret with the key of the model's service, in place of its usual environment
      variable
    * `url`: the address of a service that speaks the protocol of the model
    * `max_calls`: how many model calls one call of the agent may make, also those that were cut
      off or had no answer, but not those that the service refused
    * `max_tool_calls`: how many calls of tools
    * `max_tokens`: how many tokens, read and written
    * `max_money`: how much money, in the currency of `prices`
    * `prices`: what a million tokens cost: `{"input": "1.25", "output": "10"}`
    * `max_time`: how long the model calls may take together; tools have their own `timeout=`
    * `answer_tokens`: the most tokens of one answer: 4096 where tokens or money are bounded
    * `timeout`: how long one model call may take
    * `retry`: how often 5xx, 429 and no answer are tried again, or a policy `retry(…)`

    Budgets are for each call of the agent and are reserved before each model call, by the most it
    may take. Raises `SetupError` for a declaration that cannot be meant, and where the extra is
    not installed; a call raises `AgentSpent` when a budget is spent.

    ```python
    from turnout import agent, event, flow, secret, task


    @task
    async def price(item: str) -> str:
        \"\"\"Return what an item costs.\"\"\"
        return f"{item}: 3 euros"


    clerk = agent(
        "clerk",
        "openai-chat:gpt-5",
        key=secret("OPENAI_KEY"),
        instructions="Answer customers of a shop, briefly.",
        tools=[price],
        max_calls=10,
    )


    @flow(on=event("question.asked"))
    async def answer(question: dict[str, str]) -> str:
        return (await clerk(question["text"])).output
    ```
    """
    words = f"agent({name!r:.60})"
    _refuse_missing(words)
    _refuse_names(words, name, instructions)
    listed = [_tool(words, each) for each in tools]
    names = [each.name for each in listed]
    if len({*names}) < len(names):
        raise SetupError(f"{words}: two tools have one name; give one of them @task(name=…)")
    approved = [_tool(words, each).name for each in approve]
    if not {*approved} <= {*names}:
        raise SetupError(f"{words}: approve= names tools that tools= does not have")
    if key is not None and not isinstance(key, Secret):
        raise SetupError(f'{words}: write key=secret("OPENAI_KEY"), not the key itself')
    if not isinstance(model, str) and (key is not None or url is not None):
        raise SetupError(f"{words}: key= and url= are for a model by its name")
    policy = retry_policy(retry)
    if not isinstance(retry, RetryPolicy):
        policy = replace(_USUAL, count=policy.count)
    declared: Agent[Any] = Agent(
        name,
        model,
        instructions=instructions,
        tools=listed,
        approve=frozenset(approved),
        approve_timeout=None if approve_timeout is None else parse_duration(approve_timeout),
        output=output,
        connection={"key": key, "url": url},
        limits=_limits(
            words, max_calls, max_tool_calls, max_tokens, max_money, prices, max_time,
            answer_tokens, timeout,
        ),
        retry=policy,
    )  # fmt: skip
    if multiprocessing.parent_process() is None:  # a worker process runs no flow
        declared.prepared  # noqa: B018  so that what cannot be is said now, and nothing waits later
    return declared


def _refuse_missing(words: str) -> None:
    if importlib.util.find_spec("pydantic_ai") is None:
        raise SetupError(
            f"{words} needs packages that are not installed: pip install 'turnout[ai]'"
        )


def _refuse_names(words: str, name: object, instructions: object) -> None:
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > 200:
        raise SetupError(f"{words}: a name is printable text of at most 200 letters")
    if not isinstance(instructions, str):
        raise SetupError(f"{words}: instructions= is text")
    secrets.refuse_live(name, words)


def _tool(words: str, given: object) -> Task[Any]:
    if not isinstance(given, Task):
        name = getattr(given, "__name__", repr(given))
        raise SetupError(f"{words}: {name} is no task; its tools are functions with @task")
    if not _NAME.fullmatch(given.name):
        raise SetupError(
            f"{words}: the name of tool {given.name!r} must be letters, digits, - and _, at most 64"
        )
    return given


def _limits(
    words: str,
    max_calls: int,
    max_tool_calls: int,
    max_tokens: int | None,
    max_money: object,
    prices: object,
    max_time: str | timedelta | None,
    answer_tokens: int | None,
    timeout: str | timedelta | None,
) -> Limits:
    counts = {
        "max_calls": max_calls, "max_tool_calls": max_tool_calls, "max_tokens": max_tokens,
        "answer_tokens": answer_tokens,
    }  # fmt: skip
    for option, count in counts.items():
        if count is not None and (type(count) is not int or count < 1):
            raise SetupError(f"{words}: {option}={count!r}: write 1 or more")
    if (max_money is None) is not (prices is None):
        raise SetupError(f"{words}: max_money= and prices= go together")
    if prices is not None and (not isinstance(prices, Mapping) or {*prices} != {"input", "output"}):
        raise SetupError(f'{words}: write prices={{"input": "1.25", "output": "10"}}')
    if answer_tokens is None and (max_tokens is not None or max_money is not None):
        answer_tokens = USUAL_ANSWER_TOKENS
    money = None if max_money is None else read_money(max_money, f"{words}: max_money")
    cost = {
        kind: read_money(price, f"{words}: the price of {kind}")
        for kind, price in (prices.items() if isinstance(prices, Mapping) else ())
    }
    seconds = parse_timeout(timeout)
    return Limits(
        calls=max_calls,
        tool_calls=max_tool_calls,
        tokens=max_tokens,
        money=money,
        input_price=cost.get("input", Decimal(0)),
        output_price=cost.get("output", Decimal(0)),
        seconds=None if max_time is None else parse_duration(max_time).total_seconds(),
        answer_tokens=answer_tokens,
        call_seconds=None if seconds is None else seconds.total_seconds(),
    )
