"""Let a LangChain agent act on alarms: each of its calls is a step, some are asked for first.

`_langchain_steps.py` makes the steps. `MODEL_URL` speaks the protocol of OpenAI and takes
`MODEL_KEY`, `OPS_URL` does the work, and who sends an alarm signs it with `ALARM_SECRET`.
"""

# /// script
# dependencies = ["langchain>=1.2", "langchain-openai>=1.1", "langgraph>=1.0"]
# ///

from typing import Any

from _langchain_steps import HandOver, act
from langchain.agents import create_agent
from langchain_core.messages import convert_to_openai_messages
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver

from turnout import Rejected, approval, current, flow, hmac, http, retry, secret, task, webhook


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
OFFERED = [StructuredTool.from_function(coroutine=each.function) for each in TOOLS.values()]
ASK_FIRST = {"scale"}


async def use(name: str, arguments: dict[str, Any]) -> str:
    """Run a tool, once a person agrees where that is needed."""
    if name in ASK_FIRST:
        try:
            await approval("ops", text=f"{name} {arguments}?", timeout="1h")
        except Rejected:
            return "rejected"
        except TimeoutError:
            return "nobody has answered"
    return await TOOLS[name](**arguments)


def model() -> ChatOpenAI:
    """Return the model; what fails is tried again by the step."""
    url, key = secret("MODEL_URL").reveal(), secret("MODEL_KEY")
    return ChatOpenAI(model="gpt-5", base_url=url, api_key=lambda: key.reveal(), max_retries=0)


@task(retry=retry(3), timeout="2m")
async def think(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Ask the model once."""
    headers = {"Idempotency-Key": current().key()}
    said = await model().bind_tools(OFFERED).ainvoke(messages, extra_headers=headers)
    return convert_to_openai_messages(said)


def outcome(run: Any) -> str:
    """Return what came of an earlier run."""
    return f"{run.state}: {run.error.message if run.error else run.result or run.reason}"


alarm = webhook("/metrics-alert", verify=hmac("X-Signature"), secret=secret("ALARM_SECRET"))


@flow(on=alarm, mode="latest")
async def on_call(metrics: dict[str, Any]) -> str:
    """Have the agent look at metrics, the newest next; it knows what came of the last times."""
    earlier = [outcome(run) for run in current().history() if run.state != "skipped"][:3]
    agent = create_agent(
        model(), OFFERED, middleware=[HandOver()], checkpointer=InMemorySaver(),
        system_prompt="You keep a web application healthy. If all is well, do nothing.",
    )  # fmt: skip
    prompt = f"Metrics: {metrics}. What came of the last times: {earlier}."
    return await act(agent, prompt, think, use, most_calls=10)
