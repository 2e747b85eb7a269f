"""The undo of a step, as a value that outlives the process: a function's name, and arguments.

`@task(undo=refund)` registers one before the first try of each step, since from then on its effect
may have happened, whatever is recorded. `current().on_undo(refund, receipt)` registers one for
anything else. The journal stores it, so it can run where the flow itself cannot run again. The
function is found by module and name, so it has to stand at the top of a file.

The parameters of a step's undo are filled by name: with the arguments of the step, `result` (None
if the step has none) and `key`, the step's `current().key()`. Not here: running it
(`compensation`).
"""

from __future__ import annotations

import base64
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from turnout.service.domain.errors import FOREIGN, CodeChanged, SetupError
from turnout.service.domain.payload import write_json
from turnout.service.domain.unpickle import unpickle

from .recorded_call import find, name_of, named, pickled_arguments

_OF_STEP = ("result", "key")
_FILLABLE = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class Undo:
    """A call to make when the run fails for good; `arguments` is a pickle of (args, kwargs).

    `step` is the key of the step it undoes, `task` that step's task as (module, name); both are
    empty for what the flow registered itself.
    """

    module: str
    name: str
    arguments: bytes
    step: str = ""
    task: tuple[str, str] = ("", "")

    @classmethod
    def of(
        cls, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Undo:
        """Return the undo of a call; raises `NotKept` for what a restart could not load."""
        module, name = named(function, f"on_undo({name_of(function)})")
        return cls(module, name, pickled_arguments((args, dict(kwargs)), f"on_undo({name})"))

    @classmethod
    def of_step(
        cls, undo: Callable[..., Any], task: Any, key: str, given: Mapping[str, Any]
    ) -> Undo:
        """Return the undo of the step `key`, whose task was called with `given`; raises as `of`."""
        what = f"the undo of step {key!r}"
        module, name = named(undo, what)
        found = named(task, what)
        takes = inspect.signature(_plain(undo)).parameters
        kwargs = {each: value for each, value in given.items() if each in takes}
        return cls(module, name, pickled_arguments(((), kwargs), what), key, found)

    def pack(self) -> bytes:
        """Return the bytes the journal stores."""
        return write_json(self.as_dict())

    @classmethod
    def unpack(cls, stored: bytes) -> Undo:
        """Read what `pack` wrote, without running the author's code."""
        return cls.from_dict(orjson.loads(stored))

    def as_dict(self) -> dict[str, Any]:
        """Return the undo as plain data."""
        arguments = base64.b64encode(self.arguments).decode()
        stored = {"module": self.module, "name": self.name, "arguments": arguments}
        return stored | ({"step": self.step, "task": self.task} if self.step else {})

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Undo:
        """Read what `as_dict` returned."""
        module, task = stored.get("task", ("", ""))
        arguments = base64.b64decode(stored["arguments"])
        return cls(
            stored["module"], stored["name"], arguments, stored.get("step", ""), (module, task)
        )

    def call(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Return (function, args, kwargs); raises `CodeChanged` when the code no longer has it.

        `result` and `key` of a step are not among the arguments: see `parameters_of_step`.
        """
        try:
            importlib.import_module(self.module)
            function = find(self.module, self.name)
            args, kwargs = unpickle(self.arguments)
        except FOREIGN as error:
            raise CodeChanged(f"{self.name} cannot be called any more: {error}") from error
        if not callable(function):
            raise CodeChanged(f"{self.name} is no longer in the code; undo its step by hand")
        return function, args, kwargs

    def find_task(self) -> Any:
        """Return the task of the step; raises `CodeChanged` when the code no longer has it."""
        module, name = self.task
        try:
            importlib.import_module(module)
            found = find(module, name)
        except FOREIGN as error:
            raise CodeChanged(f"task {name!r} cannot be found any more: {error}") from error
        if found is None:
            raise CodeChanged(f"task {name!r} of step {self.step!r} is no longer in the code")
        return found


def parameters_of_step(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> Sequence[str]:
    """Return which of `result` and `key` the undo of a step takes besides its arguments."""
    takes = inspect.signature(_plain(function)).parameters
    return [name for name in _OF_STEP if name in takes and name not in kwargs]


def bound_arguments(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """Return a call's arguments by name, with defaults; None if they do not fit the function."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    return bound.arguments


def check(undo: object, function: Callable[..., Any]) -> None:
    """Raise `SetupError` unless `undo` can undo the calls of the task `function`."""
    plain = _plain(undo)
    name = getattr(plain, "__name__", repr(undo))
    if not inspect.isfunction(plain):
        raise SetupError(f"undo={undo!r}: write a function or a @task")
    for each in (plain, function):
        if "<" in each.__qualname__:
            raise SetupError(
                f"undo={name}: {each.__name__} is defined inside a function, where a restart "
                f"could not find it; define it at the top of the file"
            )
    known = inspect.signature(function).parameters
    for parameter in inspect.signature(plain).parameters.values():
        is_filled = parameter.kind in _FILLABLE and parameter.name in (*known, *_OF_STEP)
        is_needed = parameter.default is inspect.Parameter.empty and (
            parameter.kind in (*_FILLABLE, inspect.Parameter.POSITIONAL_ONLY)
        )
        if is_needed and not is_filled:
            raise SetupError(
                f"undo={name}: nothing fills parameter {parameter.name!r}; an undo takes "
                f"parameters of its task ({', '.join(known) or 'it has none'}), `result` and `key`"
            )


def _plain(undo: Any) -> Any:
    return getattr(undo, "function", undo)
