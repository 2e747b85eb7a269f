"""The flow of Prefect 3 that `prefect_orders.py` starts, served by `python prefect_flow.py`.

Its last task starts a flow of turnout; `call_turnout.py` lies beside it.
"""

from typing import Any

import prefect
from call_turnout import start_run
from prefect.runtime import flow_run
from prefect.states import Completed, State


@prefect.task
def charge(order: dict[str, Any]) -> str:
    """Charge an order; returns the receipt."""
    if order["amount"] < 0:
        raise ValueError(f"order {order['id']} has a negative amount")
    return f"receipt-{order['id']}"


@prefect.task(retries=3, retry_delay_seconds=1)
def tell(receipt: str) -> str:
    """Tell turnout, under a key that is the same for each try of this run."""
    return start_run({"receipt": receipt}, key=f"{flow_run.id}/tell")


@prefect.flow
def bill(order: dict[str, Any]) -> State[str]:
    """Charge an order, and tell turnout; the API shows the message of the state to everybody."""
    receipt = charge(order)
    tell(receipt)
    return Completed(message=receipt)


if __name__ == "__main__":
    bill.serve(name="orders")
