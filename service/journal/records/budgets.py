"""Budgets: what a step takes from one, and what there is to see of them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple


class Taking(NamedTuple):
    """What a step takes from the budget `name`, of which there are `most` in a `period`."""

    name: str
    amount: int
    most: int
    period: timedelta


class Spent(NamedTuple):
    """Why nothing could be taken: so many are used, and enough are free at an instant."""

    used: int
    free_at: datetime


class StoredBudget(NamedTuple):
    """A budget of which something is used, as whoever took last has declared it.

    `free_at` is when the first of what is used is free again.
    """

    name: str
    used: int
    most: int
    period: timedelta
    free_at: datetime
