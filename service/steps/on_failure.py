"""The hook of a flow that failed for good: `@flow(on_failure=tell)`, what it may be and takes.

Not here: when it is called, once and as a recorded step (`compensation`).
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.run import RunError
from turnout.service.domain.task import Task


def check_hook(function: object) -> None:
    """Raise `SetupError` unless `function` can be a flow's `on_failure`."""
    plain = function.function if isinstance(function, Task) else function
    if not inspect.isfunction(plain):
        raise SetupError(f"on_failure={function!r}: write a function or a @task")
    hook_arguments(plain, None, None)


def hook_arguments(
    function: Callable[..., Any], error: RunError | None, event: Event | None
) -> dict[str, Any]:
    """Fill a hook's parameters: `RunError` and `Event` by annotation, or by the names for them."""
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # known to a type checker only: the names decide
        hints = {}
    filled: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints.get(name)
        if kind is RunError or (kind is None and name == "error"):
            filled[name] = error
        elif kind is Event or (kind is None and name == "event"):
            filled[name] = event
        elif parameter.default is inspect.Parameter.empty:
            raise SetupError(
                f"on_failure={function.__name__}: nothing fills parameter {name!r}; a hook takes "
                f"`error: RunError` and `event: Event`, and `current()` has the rest"
            )
    return filled
