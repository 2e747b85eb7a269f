"""What an agent and its model have said as plain data, and a model that says it again.

Not here: how a conversation is led (`agent_run`), and how models are spoken with
(`agent_framework`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel

from turnout.service.domain.run import Fail
from turnout.service.governance import secrets


def entries(messages: Sequence[ModelMessage]) -> Iterator[dict[str, Any]]:
    """Yield what was said as plain data, without what differs between replays."""
    for message in messages:
        if isinstance(message, ModelResponse):
            yield _said(message)
            continue
        for part in message.parts:
            if isinstance(part, ToolReturnPart):
                yield {
                    "role": "tool",
                    "tool": part.tool_name,
                    "id": part.tool_call_id,
                    "outcome": part.outcome,
                    "result": part.content,
                }
            else:
                role = "user" if isinstance(part, UserPromptPart) else "turnout"
                yield {"role": role, "text": getattr(part, "content", "")}


def _said(message: ModelResponse) -> dict[str, Any]:
    asks = [
        {
            "tool": each.tool_name,
            "id": each.tool_call_id,
            "arguments": each.args if isinstance(each.args, str) else each.args_as_json_str(),
        }
        for each in message.tool_calls
    ]
    return {
        "role": "model",
        "text": "".join(each.content for each in message.parts if isinstance(each, TextPart)),
        "asks": asks,
        "tokens": [message.usage.input_tokens, message.usage.output_tokens],
    }


def transcript(messages: Sequence[ModelMessage]) -> list[dict[str, Any]]:
    """Return what was said, as JSON would have it, with secrets masked."""
    said: list[dict[str, Any]] = [*entries(messages)]
    text = orjson.dumps(said, default=_plain, option=orjson.OPT_NON_STR_KEYS).decode()
    masked: list[dict[str, Any]] = orjson.loads(secrets.mask(text))
    return masked


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if callable(dump) else str(value)


def replayed(said: Sequence[Mapping[str, Any]]) -> FunctionModel:
    """Return a model that says what a transcript says, and asks nobody."""
    left = [each for each in said if each["role"] == "model"]

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        at = sum(isinstance(each, ModelResponse) for each in messages)
        if at >= len(left):
            raise Fail(f"the transcript has only {len(left)} answers of the model")
        entry = left[at]
        parts: list[Any] = [TextPart(entry["text"])] if entry["text"] else []
        parts += [ToolCallPart(a["tool"], a["arguments"], a["id"]) for a in entry["asks"]]
        response = ModelResponse(parts)
        response.usage.input_tokens, response.usage.output_tokens = entry["tokens"]
        return response

    return FunctionModel(answer, model_name="replayed")
