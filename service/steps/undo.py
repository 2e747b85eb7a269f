"""What would undo a step, as a value that outlives the process: a function by name, with arguments.

`current().on_undo(refund, receipt)` makes one, and the journal keeps it, so that it can be carried
out where the flow itself cannot run again. The function is found by its module and name, which is
why it stands at the top of a file. Not here: carrying it out (`ending`).
"""

from __future__ import annotations

import base64
import importlib
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from turnout.service.errors import FOREIGN, CodeChanged, NotKept
from turnout.service.governance import secrets


@dataclass(frozen=True, slots=True)
class Undo:
    """A call to make when the run fails for good; `arguments` is a pickle of (args, kwargs)."""

    module: str
    name: str
    arguments: bytes

    @classmethod
    def of(
        cls, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Undo:
        """Write a call down; raises `NotKept` for what a restart could not find or read again."""
        module = getattr(function, "__module__", "")
        name = getattr(function, "__qualname__", repr(function))
        if _find(module, name) is not function:
            raise NotKept(
                f"on_undo({name}): a restart could not find this function again; define it with "
                f"`def` at the top of a file, and pass what it needs as arguments"
            )
        try:
            arguments = pickle.dumps((args, dict(kwargs)), protocol=5)
            pickle.loads(arguments)
        except FOREIGN as error:  # pickling runs the author's __reduce__
            raise NotKept(
                f"on_undo({name}): an argument cannot be kept ({type(error).__name__}: {error}); "
                f"pass plain data or an id instead"
            ) from None
        if secrets.find_live(arguments) is not None:
            raise NotKept(
                f"on_undo({name}): an argument holds a secret's value; call reveal() where the "
                f"value is used"
            )
        return cls(module, name, arguments)

    def pack(self) -> bytes:
        """Return it as the journal keeps it."""
        return orjson.dumps(self.as_dict())

    @classmethod
    def unpack(cls, kept: bytes) -> Undo:
        """Read back what `pack` wrote; runs none of the author's code."""
        return cls.from_dict(orjson.loads(kept))

    def as_dict(self) -> dict[str, str]:
        """Return it as plain text."""
        arguments = base64.b64encode(self.arguments).decode()
        return {"module": self.module, "name": self.name, "arguments": arguments}

    @classmethod
    def from_dict(cls, kept: Mapping[str, str]) -> Undo:
        """Read back what `as_dict` returned."""
        return cls(kept["module"], kept["name"], base64.b64decode(kept["arguments"]))

    def call(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Return (function, args, kwargs); raises `CodeChanged` when the code no longer has it."""
        try:
            importlib.import_module(self.module)
            function = _find(self.module, self.name)
            args, kwargs = pickle.loads(self.arguments)
        except FOREIGN as error:
            raise CodeChanged(f"{self.name} cannot be called any more: {error}") from error
        if not callable(function):
            raise CodeChanged(f"{self.name} is no longer in the code; undo its step by hand")
        return function, args, kwargs


def _find(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found
