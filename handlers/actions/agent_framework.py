"""What the action `agent` needs of pydantic-ai: models, schemas, messages.

Not here: what was said as plain data (`agent_transcript`). Nothing else imports pydantic-ai.

The framework runs the conversation and reads answers. Tools are external to it (deferred tools): it
says which calls a model makes, and is given what they came to; so it never runs one, in whatever
task. Its model hands each request over (`HandedOver`) to whoever records it as a step.
"""

from __future__ import annotations

import asyncio
import json
import logging
from asyncio import Future
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_ai import (
    Agent,
    DeferredToolRequests,
    DeferredToolResults,
    ExternalToolset,
    ModelRetry,
    Tool,
)
from pydantic_ai.exceptions import (
    AgentRunError,
    ModelAPIError,
    ModelHTTPError,
    UserError,
)
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    ToolCallPart,
)
from pydantic_ai.models import Model, ModelRequestParameters, infer_model, parse_model_id
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers import Provider, infer_provider_class
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import UsageLimits

from turnout.service.domain.errors import SetupError
from turnout.service.domain.run import Fail
from turnout.service.domain.task import Task
from turnout.service.governance import secrets
from turnout.service.steps import failures

from .agent_budget import Spent
from .agent_transcript import entries
from .http_response import HttpError, HttpRefused

if TYPE_CHECKING:
    from .agent import Agent as Declared

for _name in ("httpx", "httpx2"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # they log every address

_MANY = 1_000_000
"""More retries than any budget of calls allows: the budget ends a conversation."""
_PART_TOKENS = 16
"""What a part of a message may take beside its text."""


@dataclass(frozen=True)
class Prepared:
    """An agent as the framework has it."""

    agent: Agent[object, Any]
    tools: Mapping[str, Tool[Any]]
    signatures: Mapping[str, Any]
    """What a model sees of each tool."""
    output: Any
    """What it sees of the output."""

    def wants_tools(self, output: object) -> bool:
        """Whether what a talk has ended with are calls of tools."""
        return isinstance(output, DeferredToolRequests)

    async def talk(
        self, model: Model, instructions: str, prompt: str | None, history: Any, results: Any
    ) -> Any:
        """Talk with a model until it has answered, or asks for tools."""
        return await self.agent.run(
            prompt,
            model=model,
            instructions=instructions or None,
            message_history=history,
            deferred_tool_results=results,
            usage_limits=UsageLimits(request_limit=None),  # the limits are turnout's
        )


def prepare(declared: Declared[Any]) -> Prepared:
    """Return the agent of a declaration; raises `SetupError` for a tool no model can call."""
    tools = {each.name: _tool(declared, each) for each in declared.tools}
    try:
        if isinstance(declared.model, str):
            _provider_of(declared.model)
        agent: Agent[object, Any] = Agent(
            name=declared.name,
            output_type=[declared.output, DeferredToolRequests],
            toolsets=[_Tools([each.tool_def for each in tools.values()])],
            retries=_MANY,
        )
        output = TypeAdapter(declared.output).json_schema()
    except (UserError, ImportError, ValueError, TypeError, PydanticUserError) as error:
        raise SetupError(f"agent {declared.name!r}: {error}") from error
    seen = {
        name: [tool.tool_def.description, tool.tool_def.parameters_json_schema]
        for name, tool in tools.items()
    }
    return Prepared(agent, tools, seen, output)


class _Tools(ExternalToolset[Any]):
    """Tools the framework does not call; arguments that are no JSON are told to the model."""

    async def get_tools(self, ctx: Any) -> dict[str, Any]:
        """Return the tools, each with as many retries as the budgets allow."""
        found = await super().get_tools(ctx)
        return {name: replace(tool, max_retries=_MANY) for name, tool in found.items()}


def _provider_of(model: str) -> type[Provider[Any]]:
    """Return the provider of a model by its name; raises `ValueError` if there is none."""
    provider, _ = parse_model_id(model)
    if provider is None:
        raise ValueError(f"model {model!r}: write provider:model, such as 'openai-chat:gpt-5'")
    return infer_provider_class(provider)


def _tool(declared: Declared[Any], task: Task[Any]) -> Tool[Any]:
    try:
        return Tool(task.function, takes_ctx=False, name=task.name)
    except (UserError, TypeError, NameError) as error:
        raise SetupError(
            f"agent {declared.name!r}: no model can call tool {task.name!r}: {error}",
            file=task.file,
            line=task.line,
        ) from error


def connected(declared: Declared[Any]) -> Model:
    """Return the model of an agent; raises `SetupError` if there is none by its name."""
    key, url = declared.connection["key"], declared.connection["url"]

    def provider(name: str) -> Any:
        given: dict[str, Any] = {}
        if key is not None:
            given["api_key"] = key.reveal()
        if url is not None:
            given["base_url"] = url
        return infer_provider_class(name)(**given)

    try:
        return infer_model(declared.model, provider)  # a model itself is returned as it is
    except (UserError, ImportError, ValueError, TypeError) as error:
        raise SetupError(f"agent {declared.name!r}: model {declared.model!r}: {error}") from error


# ---------------------------------------------------------------- one request


@dataclass(frozen=True, eq=False)
class HandedOver:
    """A request of the framework to a model; `answer` is what it waits for."""

    messages: list[ModelMessage]
    settings: ModelSettings | None
    parameters: ModelRequestParameters
    answer: Future[ModelResponse]

    @property
    def most_tokens(self) -> int:
        """The most tokens the request has, by what the last answer took: one a byte at most."""
        known, since = 0, self.messages
        for at in range(len(self.messages) - 1, -1, -1):
            message = self.messages[at]
            if isinstance(message, ModelResponse) and message.usage.input_tokens > 0:
                known = message.usage.input_tokens + max(0, message.usage.output_tokens)
                since = self.messages[at + 1 :]
                break
        parts = [*entries(since)]
        size = len(orjson.dumps(parts, default=str)) + _PART_TOKENS * len(parts)
        if known:
            return known + size
        first = self.messages[-1]
        size += len((first.instructions or "").encode() if isinstance(first, ModelRequest) else b"")
        for tool in (*self.parameters.function_tools, *self.parameters.output_tools):
            seen = [tool.name, tool.description, tool.parameters_json_schema]
            size += len(orjson.dumps(seen, default=str))
        return size


class Handing(WrapperModel):
    """A model that sends nothing itself: it hands requests over, to a queue."""

    def __init__(self, wrapped: Model, queue: asyncio.Queue[Any]) -> None:
        super().__init__(wrapped)
        self._queue = queue

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Hand the request over, and return the recorded answer."""
        answer: Future[ModelResponse] = asyncio.get_running_loop().create_future()
        asked = HandedOver(messages, model_settings, model_request_parameters, answer)
        self._queue.put_nowait(asked)
        return await answer


async def sent(
    model: Model, asked: HandedOver, *, key: str, seconds: float | None, answer_tokens: int | None
) -> ModelResponse:
    """Send a request once, with an idempotency key; raises `HttpError` if no answer comes."""
    given = dict(asked.settings or {})
    ours: dict[str, Any] = {
        "max_retries": 0,  # each try is one of the step, and reserved
        "extra_headers": {**given.get("extra_headers", {}), "Idempotency-Key": key},
    }
    if seconds is not None:
        ours["timeout"] = seconds
    if answer_tokens is not None:
        ours["max_tokens"] = min(answer_tokens, given.get("max_tokens") or answer_tokens)
    given |= {name: value for name, value in ours.items() if name not in model.unsupported_settings}
    try:
        async with asyncio.timeout(seconds):
            response = await model.request(
                asked.messages,
                ModelSettings(**given),
                asked.parameters,
            )
    except TimeoutError:
        raise HttpError(f"model {model.model_name!r} did not answer in {seconds:g} s") from None
    except ModelHTTPError as error:
        is_temporary = error.status_code >= 500 or error.status_code in (408, 429)
        kind = HttpError if is_temporary else HttpRefused
        headers = error.headers or {}
        raise kind(
            secrets.mask(f"model {model.model_name!r} answered {error.status_code}: {error.body}"),
            status_code=error.status_code,
            retry_after=headers.get("retry-after") if is_temporary else None,
        ) from None
    except ModelAPIError as error:
        raise HttpError(secrets.mask(f"model {model.model_name!r}: {error.message}")) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise HttpError(
            secrets.mask(f"model {model.model_name!r} answered what cannot be read: {error!r}")
        ) from None
    return response


def is_unpaid(error: BaseException) -> bool:
    """Whether it is sure that a request that failed was not worked on."""
    if getattr(error, "status_code", None) is not None:
        return True
    return any(type(each).__name__ == "ConnectError" for each in failures.chain(error))


def packed(response: ModelResponse) -> Any:
    """Return an answer as plain data, with secrets masked and each call of a tool named once."""
    seen: set[str] = set()
    parts = []
    for part in response.parts:
        if isinstance(part, ToolCallPart):
            name, number = part.tool_call_id, 1
            while part.tool_call_id in seen:
                number += 1
                part = replace(part, tool_call_id=f"{name}-{number}")
            seen.add(part.tool_call_id)
        parts.append(part)
    response = replace(response, parts=parts)
    plain = ModelMessagesTypeAdapter.dump_python([response], mode="json")
    text = json.dumps(plain, ensure_ascii=False)
    text = text.encode("utf-8", "replace").decode()  # half of a character, which models may say
    return orjson.loads(secrets.mask(text))[0]


def unpacked(recorded: Any) -> ModelResponse:
    """Return a recorded answer."""
    [response] = ModelMessagesTypeAdapter.validate_python([recorded])
    assert isinstance(response, ModelResponse)
    return response


def taken(response: ModelResponse, reserved: Spent, seconds: float) -> Spent:
    """Return what an answer took: what it says, or what was reserved if it says nothing."""
    usage = response.usage
    read, written = max(0, usage.input_tokens), max(0, usage.output_tokens)  # it gives none back
    if not read and not written:
        return replace(reserved, seconds=seconds)
    return Spent(1, read, written, seconds)


# ---------------------------------------------------------------- tools


@dataclass(frozen=True)
class Call:
    """A call of a tool that a model asks for, with its arguments; `problem` if they do not fit."""

    id: str
    tool: str
    arguments: dict[str, Any]
    problem: str | None = None


def calls_of(prepared: Prepared, wanted: DeferredToolRequests, last: ModelResponse) -> list[Any]:
    """Return the calls of tools an answer asks for, in its order; None for one that is no tool."""
    deferred = {each.tool_call_id for each in wanted.calls}
    return [
        _call(prepared.tools[each.tool_name], each) if each.tool_call_id in deferred else None
        for each in last.tool_calls
    ]


def _call(tool: Tool[Any], part: ToolCallPart) -> Call:
    validator, given = tool.function_schema.validator, part.args
    try:
        if isinstance(given, str):
            arguments = validator.validate_json(given or "{}")
        else:
            arguments = validator.validate_python(given or {})
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
        words = "; ".join(": ".join([*_place(each["loc"]), each["msg"]]) for each in wrong)
        return Call(part.tool_call_id, part.tool_name, {}, f"wrong arguments: {words}")
    return Call(part.tool_call_id, part.tool_name, arguments)


def _place(loc: Sequence[object]) -> list[str]:
    """Return where arguments are wrong, nothing if they are as a whole."""
    return [".".join(map(str, loc))] if loc else []


def results_of(calls: Sequence[Call | None], results: Sequence[Any]) -> DeferredToolResults:
    """Return what the framework is told of its calls."""
    given = DeferredToolResults()
    for call, result in zip(calls, results, strict=True):
        if call is not None:
            given.calls[call.id] = result if call.problem is None else ModelRetry(call.problem)
    return given


def unknown_tools(prepared: Prepared, asked: HandedOver, response: ModelResponse) -> list[str]:
    """Return the tools that an answer asks for and that the agent does not have."""
    known = {*prepared.tools, *(each.name for each in asked.parameters.output_tools)}
    return [each.tool_name for each in response.tool_calls if each.tool_name not in known]


def as_failure(name: str, error: Exception) -> Exception:
    """Return an error of the framework as one of turnout's; it is final."""
    if isinstance(error, AgentRunError | UserError):
        return Fail(secrets.mask(f"agent {name!r}: {error}"))
    return error
