"""Airflow: one DAG of one task; `airflow standalone` is given this folder."""

from __future__ import annotations

from airflow.sdk import dag, task


@dag(dag_id="orders", schedule=None)
def orders() -> None:
    @task
    def bill() -> int:
        return 1

    bill()


orders()
