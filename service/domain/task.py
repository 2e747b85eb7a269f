"""A task: what an author declares as a step, as a value: a function and the policy of its steps."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Generic, TypeVar

from .binding import UNANNOTATED
from .flow import LimitRule, Pool
from .retry import RetryPolicy

R = TypeVar("R", covariant=True)

NO_FALLBACK: Any = object()
"""The `fallback` of a task that has none; None is a valid fallback."""


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How long a task's results are cached."""

    ttl: timedelta


@dataclass(frozen=True, eq=False, kw_only=True)
class Task(Generic[R]):
    """A function whose calls inside a run are steps, and the policy of each step."""

    function: Callable[..., Any]
    name: str
    retry: RetryPolicy
    timeout_seconds: float | None = None
    pool: Pool = "thread"
    fallback: Any = NO_FALLBACK
    cache: CachePolicy | None = None
    undo: Callable[..., Any] | None = None
    limit: LimitRule | None = None
    reads: bool = False
    file: str = ""
    line: int = 0

    @cached_property
    def is_async(self) -> bool:
        """Whether the function runs on the loop (`async def`) or in a pool (`def`)."""
        return inspect.iscoroutinefunction(self.function)

    @cached_property
    def words(self) -> str:
        """The task in words, for messages."""
        return f"task {self.name!r}"

    @cached_property
    def returns(self) -> Any:
        """The return annotation, by which results are encoded; unannotated if it cannot be read."""
        try:
            hints = typing.get_type_hints(self.function, include_extras=True)
        except (NameError, TypeError, SyntaxError, AttributeError):
            return UNANNOTATED  # known to a type checker only
        return hints.get("return", UNANNOTATED)
