"""Backtest: what a flow would have started of the events that are stored, beside what it did.

The events of a period are routed again, in the order they came and at their own instants. Filter,
parameters and keys are asked by the router, windows by their rules, unique, mode and rate limits by
a journal in memory. Not asked: what only delays (concurrency, throttle, order), bounds of queues,
pauses, and what came before the flow is asked at all: identity.
"""

from __future__ import annotations

from .asking import backtest
from .report import KeepTimes, Report

__all__ = ["KeepTimes", "Report", "backtest"]
