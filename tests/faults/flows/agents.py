"""An agent with two tools and an approval, its model at `MODEL`; its tools write into `DONE`."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import Any

from turnout import agent, current, flow, task, webhook

passed = vars(builtins)["turnout_test_passed"]


def note(what: str) -> None:
    with Path(os.environ["DONE"]).open("a") as file:
        file.write(f"{what} {current().key()}\n")


@task
async def lookup(run: int, order: int) -> str:
    """Look an order up."""
    note(f"{run} lookup{order}")
    passed(f"lookup {order} is done")
    return f"order {order} has a cracked lid"


@task
async def refund(run: int) -> str:
    """Give money back."""
    note(f"{run} refund")
    passed("refund is done")
    return "paid"


clerk = agent(
    "clerk",
    "openai-chat:gpt-5",
    url=os.environ["MODEL"],
    tools=[lookup, refund],
    approve=[refund],
)


@flow(on=webhook("/agents"))
async def agents(data: dict[str, Any]) -> dict[str, Any]:
    said = await clerk(str(data["number"]))
    return {"output": said.output, "calls": said.calls, "tools": said.tool_calls}
