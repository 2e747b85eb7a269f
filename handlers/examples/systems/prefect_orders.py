"""Start a deployment of Prefect 3, wait without holding anything, and take its last message.

`PREFECT_URL` is the address of the server's API: `http://…:4200/api`. What it runs is in
`prefect_flow.py`, which calls back by `call_turnout.py`.
"""

from typing import Any

from turnout import Fail, Pending, current, flow, http, poll, retry, secret, task, webhook

PATIENT = retry(1000, delay="1s", max="1m")
"""Prefect may be down for half a day: its run is waited for."""


async def prefect(method: str, path: str, **options: Any) -> Any:
    """Ask its REST API."""
    return (await http(method, secret("PREFECT_URL").reveal() + path, **options)).json()


@task(retry=PATIENT, timeout="1m")
async def trigger(order: dict[str, Any]) -> str:
    """Start a run under the step's key; Prefect has one run for a key, and returns that."""
    deployment = await prefect("GET", "/deployments/name/bill/orders")
    asked = {"parameters": {"order": order}, "idempotency_key": current().key()}
    run = await prefect("POST", f"/deployments/{deployment['id']}/create_flow_run", json=asked)
    return str(run["id"])


@task(retry=PATIENT, timeout="1m")
async def charged(run: str) -> str | Pending:
    """Look whether the run has ended, and take the message of its state."""
    state = (await prefect("GET", f"/flow_runs/{run}"))["state"]
    if state["type"] == "COMPLETED":
        return str(state["message"])
    if state["type"] in ("FAILED", "CRASHED", "CANCELLED"):
        raise Fail(f"Prefect's run {run} is {state['name']}: {state['message']}")
    return Pending(state["name"])


@flow(on=webhook("/orders/prefect", verify="none"))
async def bill_by_prefect(order: dict[str, Any]) -> str:
    """Have Prefect charge the order, and return the receipt."""
    return await poll(charged, await trigger(order), every="5s", timeout="12h")
