"""Dagster: one job of one op; `dagster-webserver` and `dagster-daemon` are given this file."""

from __future__ import annotations

from dagster import Definitions, job, op


@op
def bill() -> int:
    return 1


@job
def orders() -> None:
    bill()


defs = Definitions(jobs=[orders])
