"""The DAG of Airflow 3 that `airflow_orders.py` starts; its last task starts a flow of turnout.

`call_turnout.py` lies beside it in the folder of DAGs.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowFailException
from call_turnout import start_run


@dag(schedule=None, default_args={"retries": 3, "retry_delay": timedelta(seconds=1)})
def bill() -> None:
    """Charge an order, and tell turnout."""

    @task
    def charge(dag_run: Any = None) -> str:
        order = dag_run.conf
        if order["amount"] < 0:
            raise AirflowFailException(f"order {order['id']} has a negative amount")
        return f"receipt-{order['id']}"

    @task
    def tell(receipt: str, ti: Any = None) -> str:
        return start_run({"receipt": receipt}, key=f"{ti.dag_id}/{ti.run_id}/{ti.task_id}")

    tell(charge())


bill()
