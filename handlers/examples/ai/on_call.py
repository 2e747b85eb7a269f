"""Let a LangChain agent act on alarms: each of its calls is a step, some are asked for first.

`create_agent` decides; a middleware hands every call of the model and of a tool to the flow, which
makes a recorded step of it. `MODEL_URL` speaks the protocol of OpenAI, `OPS_URL` does the work.
"""

# /// script
# dependencies = ["langchain>=1.2", "langchain-openai>=1.1"]
# ///

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest
from langchain_core.messages import ToolMessage, convert_to_messages, convert_to_openai_messages
from langchain_core.tools import StructuredTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_openai import ChatOpenAI
from pydantic import ValidationError

from turnout import (
    Fail,
    Rejected,
    approval,
    current,
    flow,
    gather,
    http,
    retry,
    secret,
    task,
    webhook,
)  # fmt: skip

MAX_TOOL_CALLS = 10


@task(timeout="30s")
async def send_email(to: str, text: str) -> str:
    """Send a mail to somebody."""
    return await order("mails", to=to, text=text)


@task(timeout="30s")
async def create_ticket(title: str) -> str:
    """Open a ticket for the people on call."""
    return await order("tickets", title=title)


@task(timeout="30s")
async def scale(instances: int) -> str:
    """Run the web application on so many instances."""
    return await order("scale", instances=instances)


async def order(what: str, **wanted: Any) -> str:
    """Have it done; the request carries the key of the step, the same for every try."""
    return (await http.post(f"{secret('OPS_URL').reveal()}/{what}", json=wanted)).text


TOOLS = {each.name: each for each in (send_email, create_ticket, scale)}
ASK_FIRST = {"scale"}
OFFERED = [StructuredTool.from_function(coroutine=each.function) for each in TOOLS.values()]


@task(retry=retry(3, delay="1s"), timeout="2m")
async def think(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Ask the model once; messages go in and come out as OpenAI has them."""
    model = ChatOpenAI(
        model="gpt-5", base_url=secret("MODEL_URL").reveal(), max_retries=0,
        api_key=lambda: secret("MODEL_KEY").reveal(),
    ).bind_tools([convert_to_openai_tool(each) for each in OFFERED])  # fmt: skip
    headers = {"Idempotency-Key": current().key()}
    return convert_to_openai_messages(await model.ainvoke(messages, extra_headers=headers))


@task
async def refuse(name: str, why: str) -> str:
    """Record that a call was refused, and tell the model."""
    current().log.warning("tool.refused", tool=name, why=why)
    return f"refused: {why}"


async def use(request: Any) -> str:
    """Run a tool that the model may use, with arguments that fit, if a person agrees."""
    name, arguments = request.tool_call["name"], request.tool_call["args"]
    if request.tool is None:
        return await refuse(name, "there is no such tool")
    try:
        request.tool.args_schema.model_validate(arguments)
    except ValidationError as error:
        return await refuse(name, str(error))
    if name in ASK_FIRST:
        try:
            await approval("ops", text=f"{name} {arguments}?", timeout="1d")
        except Rejected:
            return "rejected"
    return await TOOLS[name](**arguments)


class HandOver(AgentMiddleware):
    """Hands the calls of an agent to the flow: a step is one only in the flow's own task."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: asyncio.Queue[Any] = asyncio.Queue()

    async def awrap_model_call(self, request: Any, handler: Callable[..., Awaitable[Any]]) -> Any:
        """Wait for the flow to have called the model."""
        answer = asyncio.get_running_loop().create_future()
        self.asked.put_nowait((request, answer))
        return await answer

    awrap_tool_call = awrap_model_call


@flow(on=webhook("/metrics-alert", verify="none"), concurrency=1)
async def on_call(metrics: dict[str, Any]) -> str:
    """Have the agent look at metrics; it knows what came of the last times."""
    earlier = [str(run.result) for run in current().history(limit=3)]
    prompt = f"Metrics: {metrics}. What was said the last times: {earlier}."
    middleware = HandOver()
    agent = create_agent(
        ChatOpenAI(model="gpt-5", api_key=lambda: "unused"), tools=OFFERED, middleware=[middleware],
        system_prompt="You keep a web application healthy. If all is well, do nothing.",
    )  # fmt: skip
    asked = middleware.asked
    working = asyncio.get_running_loop().create_task(agent.ainvoke({"messages": prompt}))
    working.add_done_callback(asked.put_nowait)
    calls: list[Any] = []
    used = 0
    try:
        while (one := await asked.get()) is not working:
            request, answer = one
            if isinstance(request, ModelRequest):
                messages = [request.system_message, *request.messages]
                (said,) = convert_to_messages([await think(convert_to_openai_messages(messages))])
                calls = [call["id"] for call in said.tool_calls]
                answer.set_result(said)
                continue
            used += len(calls)
            if used > MAX_TOOL_CALLS:
                raise Fail(f"budget: the model wants {used} tool calls")
            batch = [one, *[await asked.get() for _ in calls[1:]]]
            batch.sort(key=lambda each: calls.index(each[0].tool_call["id"]))  # as it asked
            done = await gather(*[use(request) for request, _ in batch])
            for (request, answer), text in zip(batch, done, strict=True):
                answer.set_result(ToolMessage(text, tool_call_id=request.tool_call["id"]))
    finally:
        working.cancel()
    return str(working.result()["messages"][-1].text)
