"""Reads pickles of any version: a journal outlives the modules its pickles name.

A class that has moved is found in its new module. Entries of `MOVED` are never removed: without one
an error that a flow caught would silently come back as another type, and the flow would take
another branch.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

_SERVICE = "turnout.service"

MOVED = {
    f"{_SERVICE}.{name}": f"{_SERVICE}.domain.{name}"
    for name in (
        "binding", "errors", "event", "flow", "payload", "portable", "resource", "retry", "run",
        "shape", "trigger", "units",
    )
} | {
    f"{_SERVICE}.steps.calling": f"{_SERVICE}.steps.children",
    f"{_SERVICE}.steps.waiting": f"{_SERVICE}.steps.wait",
}  # fmt: skip
"""By the module a class or function was in: the module it is in now."""


def unpickle(data: bytes) -> Any:
    """Return what a journal of this or an earlier version keeps as a pickle.

    Raises whatever the pickled classes raise, and `AttributeError` or `ImportError` for one that
    is gone.
    """
    return _Unpickler(io.BytesIO(data)).load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        return super().find_class(MOVED.get(module, module), name)
