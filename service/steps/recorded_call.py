"""A call that outlives the process: a function by module and name, and its arguments pickled.

So the journal can keep what is to be called where the flow itself does not run. The function has to
stand at the top of a file. Not here: what is called (`undo`, `polling`).
"""

from __future__ import annotations

import base64
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from turnout.service.domain.errors import FOREIGN, CodeChanged, NotKept
from turnout.service.domain.unpickle import unpickle
from turnout.service.governance import secrets

from .exact import pickled_call


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A function and the pickled arguments it is to be called with."""

    module: str
    name: str
    arguments: bytes

    @classmethod
    def of(
        cls, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], what: str
    ) -> RecordedCall:
        """Return the call; raises `NotKept`, beginning with `what`, if a restart could not."""
        module, name = named(function, what)
        return cls(module, name, pickled_arguments((args, dict(kwargs)), what))

    def load(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Return (function, args, kwargs); raises `CodeChanged` when the code has it no more."""
        try:
            importlib.import_module(self.module)
            function = find(self.module, self.name)
            args, kwargs = unpickle(self.arguments)
        except FOREIGN as error:
            raise CodeChanged(f"{self.name} cannot be called any more: {error}") from error
        if function is None:
            raise CodeChanged(f"{self.name} is no longer in the code")
        return function, args, kwargs

    def as_dict(self) -> dict[str, str]:
        """Return the call as plain data."""
        arguments = base64.b64encode(self.arguments).decode()
        return {"module": self.module, "name": self.name, "arguments": arguments}

    @classmethod
    def from_dict(cls, stored: Mapping[str, str]) -> RecordedCall:
        """Read what `as_dict` returned."""
        return cls(stored["module"], stored["name"], base64.b64decode(stored["arguments"]))


def name_of(function: Any) -> str:
    """Return the name of a function within its module."""
    return str(getattr(function, "__qualname__", repr(function)))


def named(function: Any, what: str) -> tuple[str, str]:
    """Return the module and name by which a restart finds a function; raises `NotKept`."""
    module, name = getattr(function, "__module__", ""), name_of(function)
    if find(module, name) is not function:
        raise NotKept(
            f"{what}: a restart could not find {name} again; define it with `def` at the top of a "
            f"file, and pass what it needs as arguments"
        )
    return module, name


def pickled_arguments(arguments: tuple[tuple[Any, ...], dict[str, Any]], what: str) -> bytes:
    """Return the pickle of (args, kwargs); raises `NotKept` for what would not come back."""
    try:
        pickled = pickled_call(*arguments)
    except FOREIGN as error:  # pickling runs the author's __reduce__
        raise NotKept(
            f"{what}: an argument cannot be kept ({type(error).__name__}: {error}); "
            f"pass plain data or an id instead"
        ) from None
    if secrets.find_live(pickled) is not None:
        raise NotKept(
            f"{what}: an argument holds a secret's value; call reveal() where the value is used"
        )
    return pickled


def find(module: str, name: str) -> Any:
    """Return what has this name in a loaded module, None if nothing has."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found
