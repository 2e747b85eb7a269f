"""A dry run: tasks that read are called, and what would change something is listed instead.

A task says that it reads, `@task(reads=True)`; whatever does not is taken to change something. What
it would have returned is `Unknown`: the flow may pass it on, and ends where it goes on by it. Waits
pass at once. Not here: starting one (`app.run_once`), and what it prints (`cli.run`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from turnout.service.domain.error_groups import leaves
from turnout.service.domain.errors import SetupError
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.unknown import DryRunEnds, Unknown

from .author_code import location_in
from .failures import describe

if TYPE_CHECKING:
    from turnout.service.project import AnyFlow

    from .step import StepCall


class Would(NamedTuple):
    """What a step would have done: `kind` is `call`, `read`, `start`, `take`, `emit` or `wait`."""

    step: str
    kind: str
    words: str


class DryRun:
    """What a flow would do; `returned` is what it returned, `ended` why it went no further."""

    def __init__(self) -> None:
        self.steps: dict[str, Would] = {}
        self.returned: Any = None
        self.ended: str | None = None
        self._unknown: set[str] = set()

    def performs(self, call: StepCall) -> bool:
        """Whether a task is called: it reads, and all it is given is known, also in its text."""
        return call.task.reads and self._unknown_in((call.args, call.kwargs)) is None

    def _unknown_in(self, value: Any, depth: int = 0) -> str | None:
        """Return what stands in a value for something that is not known."""
        if type(value) is Unknown:
            return repr(value)
        if isinstance(value, str | bytes):
            text = value if isinstance(value, str) else value.decode("utf-8", "replace")
            return next((mark for mark in self._unknown if mark in text), None)
        parts = _parts_of(value) if depth < _DEEPEST else ()
        return next(filter(None, (self._unknown_in(each, depth + 1) for each in parts)), None)

    def instead(self, call: StepCall, kind: str, words: str | None = None) -> Any:
        """List what a step would do, and return what stands for its result."""
        call.recorded()
        if words is None:
            words = "" if call.arguments is None else call.arguments.words
        if kind == "read":
            words += f", but {self._unknown_in((call.args, call.kwargs))} is not known"
        if not call.key.startswith("~"):  # the undo of what has not been done
            self.steps[call.key] = Would(call.key, kind, words)
        if call.task.returns in (None, type(None)):
            return None
        made = Unknown(call.key)
        self._unknown.add(repr(made))
        return made

    def prepared(self, flow: AnyFlow) -> AnyFlow:
        """Return the flow as it runs dry: once, without its hook, to where it ends.

        Raises `SetupError` for a flow of a worker process, whose steps are not recorded.
        """
        if not flow.is_async and flow.pool == "process":
            raise SetupError(
                f"flow {flow.name!r} runs in a worker process and has no steps: there is nothing "
                "to leave out in a dry run", file=flow.file, line=flow.line,
            )  # fmt: skip
        function = _ending_here(self, flow.function, is_async=flow.is_async)
        return replace(flow, function=function, on_failure=None, retry=RetryPolicy())

    @contextmanager
    def ends_here(self) -> Iterator[None]:
        """Note why the flow goes no further."""
        try:
            yield
        except BaseException as error:
            end = next((each for each in leaves(error) if isinstance(each, DryRunEnds)), None)
            if end is None:
                raise
            location = location_in(describe(end).traceback)
            self.ended = f"{end}{f' ({location})' if location else ''}"


_DEEPEST = 8
"""So deep into lists, dicts and values with fields what is not known is looked for."""


def _parts_of(value: Any) -> Iterable[Any]:
    """Return what a value is made of."""
    if isinstance(value, Mapping):
        return (*value.keys(), *value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, each.name) for each in fields(value)]
    return vars(value).values() if hasattr(type(value), "model_fields") else ()


def _ending_here(
    dry_run: DryRun, function: Callable[..., Any], *, is_async: bool
) -> Callable[..., Any]:
    @functools.wraps(function)
    async def awaited(*args: Any, **kwargs: Any) -> None:
        with dry_run.ends_here():
            dry_run.returned = await function(*args, **kwargs)

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> None:
        with dry_run.ends_here():
            dry_run.returned = function(*args, **kwargs)

    return awaited if is_async else called
