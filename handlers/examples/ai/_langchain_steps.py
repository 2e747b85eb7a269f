"""Run an agent of LangChain in a flow: each call of its model and of its tools is a recorded step.

Make the agent with `middleware=[HandOver()]` and `checkpointer=InMemorySaver()`. It stops at each
call, the flow makes the call, and the agent goes on with the answer. After a crash it begins again,
and is given what is recorded. Messages are as OpenAI has them.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import convert_to_messages, convert_to_openai_messages
from langgraph.types import Command, interrupt
from pydantic import ValidationError

from turnout import Fail, current, gather, task

Step = Callable[..., Coroutine[Any, Any, Any]]


class HandOver(AgentMiddleware):
    """Stops the agent at each call; a step is one only in the flow's own task."""

    async def awrap_model_call(self, request: Any, handler: Step) -> Any:
        """Stop with what the model is to read; goes on with what it said."""
        system = [request.system_message] if request.system_message else []
        read = convert_to_openai_messages([*system, *request.messages])
        return convert_to_messages([interrupt(read)])[0]

    async def awrap_tool_call(self, request: Any, handler: Step) -> Any:
        """Stop with the call of a tool; goes on with its result."""
        result = interrupt(request.tool_call | {"wrong": wrong(request)})
        answer = {"role": "tool", "tool_call_id": request.tool_call["id"], "content": result}
        return convert_to_messages([answer])[0]


def wrong(request: Any) -> str | None:
    """Return why a call cannot be made, if so: only the agent's tools, with what they take."""
    if request.tool is None:
        return "there is no such tool"
    try:
        request.tool.args_schema.model_validate(request.tool_call["args"])
    except ValidationError as error:
        return str(error)
    return None


@task
async def refuse(name: str, why: str) -> str:
    """Record that a call was refused, and tell the model."""
    current().log.warning("tool.refused", tool=name, why=why)
    return f"refused: {why}"


async def make(call: dict[str, Any], use: Step) -> Any:
    """Make the call of a tool, unless something is wrong with it."""
    if call["wrong"]:
        return await refuse(call["name"], call["wrong"])
    return await use(call["name"], call["args"])


async def act(agent: Any, prompt: str, think: Step, use: Step, most_calls: int) -> str:
    """Let it act, by `think(messages)` and `use(tool, arguments)`; returns what it says at last."""
    thread = {"configurable": {"thread_id": "the only one"}}
    state = await agent.ainvoke({"messages": prompt}, thread)
    while stops := state.get("__interrupt__"):
        if isinstance(stops[0].value, list):
            answers: tuple[Any, ...] = (await think(stops[0].value),)
        else:
            order = [call["id"] for call in state["messages"][-1].tool_calls]
            stops.sort(key=lambda stop: order.index(stop.value["id"]))
            used = sum(len(said.tool_calls) for said in state["messages"] if said.type == "ai")
            if used > most_calls:
                raise Fail(f"budget: the model wants {used} tool calls")
            answers = await gather(*[make(stop.value, use) for stop in stops])
        resumed = {stop.id: answer for stop, answer in zip(stops, answers, strict=True)}
        state = await agent.ainvoke(Command(resume=resumed), thread)
    return str(state["messages"][-1].text)
