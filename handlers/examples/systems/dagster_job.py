"""The job of Dagster that `dagster_orders.py` starts; its last op starts a flow of turnout.

`call_turnout.py` lies beside it.
"""

from call_turnout import start_run
from dagster import (
    Config,
    Definitions,
    OpExecutionContext,
    RetryPolicy,
    in_process_executor,
    job,
    op,
)


class Order(Config):
    """What the run is configured with."""

    id: str
    amount: float


@op
def charge(context: OpExecutionContext, config: Order) -> str:
    """Charge an order; the API shows the metadata of an output to everybody."""
    if config.amount < 0:
        raise ValueError(f"order {config.id} has a negative amount")
    receipt = f"receipt-{config.id}"
    context.add_output_metadata({"receipt": receipt})
    return receipt


@op(retry_policy=RetryPolicy(max_retries=3, delay=1))
def tell(context: OpExecutionContext, receipt: str) -> None:
    """Tell turnout, under a key that is the same for each try of this run."""
    start_run({"receipt": receipt}, key=f"{context.run_id}/{context.op_handle}")


@job(executor_def=in_process_executor)
def bill() -> None:
    """Charge an order, and tell turnout."""
    tell(charge())


defs = Definitions(jobs=[bill])
