"""What a dry run has instead of results: a value that is not known, and an end where it matters."""

from __future__ import annotations

from typing import Any, NoReturn


class DryRunEnds(BaseException):
    """Ends a dry run where the flow goes on by a value that is not known; no flow catches it."""


class Unknown:
    """What a step would have returned; it may be passed on and written into text, no more."""

    __slots__ = ("_step",)

    def __init__(self, step: str) -> None:
        self._step = step

    def __repr__(self) -> str:
        """Return the step in brackets: what it would have returned stands here."""
        return f"<{self._step}>"

    def __format__(self, _spec: str) -> str:
        """Return the step in brackets."""
        return repr(self)

    def __getattr__(self, name: str) -> Any:
        """End the dry run: its parts are not known."""
        if name.startswith("__"):
            raise AttributeError(name)
        self._ends()

    def _ends(self, *_given: object) -> NoReturn:
        raise DryRunEnds(f"the flow goes on by what {self._step} returns")

    __bool__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _ends
    __iter__ = __len__ = __getitem__ = __contains__ = __call__ = __await__ = _ends
    __int__ = __float__ = __index__ = __round__ = __abs__ = __neg__ = __enter__ = _ends
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _ends
    __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __or__ = __and__ = _ends
