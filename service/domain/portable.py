"""Errors as bytes, raised again as the same type: after a restart, or from a worker process.

An error is kept whole if possible: its type, arguments, attributes, notes and cause, and each
member of a group. Of any other error the type and the text are always kept; an `Unkept` replaces
each part that cannot be kept, and raises an error that names it when it is used. A class whose
constructor does not take the message is created without its constructor.

Not here: a class that a restart could not find (one defined in a function) cannot be kept at all.
"""

from __future__ import annotations

import io
import pickle
import reprlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from types import BuiltinFunctionType, GetSetDescriptorType, MemberDescriptorType, NoneType
from typing import Any, cast

from .errors import FOREIGN, TEXT, StepFailed, message_of

_MAX_SHOWN = 200
_HARMLESS = frozenset((NoneType, bool, float, timedelta))
_KIND = "__turnout_kind__"


@dataclass(frozen=True, slots=True)
class Portable:
    """An error as a pickle; `is_whole` when what is read back differs in nothing."""

    data: bytes
    is_whole: bool


class Unkept:
    """Stands in an error for what could not be kept of it; any use raises `AttributeError`."""

    __slots__ = ("_name", "_shown")

    def __init__(self, name: str, shown: str) -> None:
        self._name = name
        self._shown = shown

    def __repr__(self) -> str:
        return self._shown

    def __reduce__(self) -> tuple[type[Unkept], tuple[str, str]]:
        return Unkept, (self._name, self._shown)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{self._name} of this error could not be kept with the step, so its {name!r} is gone; "
            f"read what the flow needs inside the task"
        )

    def __bool__(self) -> bool:
        raise AttributeError(f"{self._name} of this error could not be kept with the step")


def portable(error: BaseException, *, mask: Callable[[str], str] | None = None) -> Portable | None:
    """Return an error in a form that is read back as itself, or None.

    With `mask` only the type, the masked text and short attributes are kept, for an error that is
    too large or holds what must not be kept.
    """
    try:
        pickler = _Pickler(mask)
        data = pickler.dumped(error)
        back = pickle.loads(data)
    except FOREIGN:  # pickling runs the author's code
        return None if mask is not None else portable(error, mask=lambda text: text)
    if not isinstance(back, kind_of(error)):
        return None
    return Portable(data, pickler.is_whole and mask is None)


def dumps(value: Any) -> bytes:
    """Return the pickle of a value; the errors in it are read back with causes and notes.

    Raises `ValueError` for an error that cannot be kept whole, and whatever pickling raises.
    """
    pickler = _Pickler(None)
    data = pickler.dumped(value)
    if not pickler.is_whole:
        raise ValueError("an error in it holds what cannot be kept")
    return data


def kind_of(error: BaseException) -> type[BaseException]:
    """Return an error's class as the author wrote it."""
    kind = type(error)
    written: type[BaseException] = vars(kind).get(_KIND, kind)
    return written


# ---------------------------------------------------------------- writing


class _Pickler(pickle.Pickler):
    """Pickles errors in the form of this module, wherever they are in a value."""

    def __init__(
        self,
        mask: Callable[[str], str] | None,
        busy: frozenset[int] = frozenset(),
        tried: dict[int, tuple[bool, bool]] | None = None,
    ) -> None:
        self._file = io.BytesIO()
        super().__init__(self._file, protocol=5)
        self._mask = mask
        self._busy = busy  # errors that hold what is only tried out
        self._tried = {} if tried is None else tried  # by id: whether it is kept, and whole
        self._alive: list[Any] = []  # an id is one only while what has it lives
        self.is_whole = True

    def dumped(self, value: Any) -> bytes:
        """Return the pickle of a value."""
        self.dump(value)
        return self._file.getvalue()

    def reducer_override(self, value: Any) -> Any:
        """Reduce an error; anything else is left to itself."""
        if not isinstance(value, BaseException):
            return NotImplemented
        if id(value) in self._busy:
            return Exception, ()
        if isinstance(value, BaseExceptionGroup):
            members = [self._error(each, value) for each in value.exceptions]
            make: Any = _new_group
            args: Any = (kind_of(value), self._text(value.message), members)
        else:
            make, args = self._maker(value)
        return make, args, self._state(value), None, None, _complete

    def _maker(self, error: BaseException) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return what makes an error anew: its own way where that gives the same, or ours."""
        if self._mask is not None:
            masked = Unkept("the arguments", self._text(message_of(error)))
            return _new, (kind_of(error), (masked,))
        if _is_validation(error):
            lines = error.errors(include_url=False)  # type: ignore[attr-defined]  # pydantic's
            lines = [{**line, "input": self._kept("input", line["input"], error)} for line in lines]
            return _new_validation, (error.title, lines)  # type: ignore[attr-defined]
        with suppress(*FOREIGN):  # the author's `__reduce__` and `__init__`
            make, args, *_ = cast(tuple[Any, ...], error.__reduce_ex__(5))
            made = make(*args)
            is_same = type(made) is type(error) and made.args == error.args
            if is_same and self._is_kept([*args], error):
                return make, args
        named = enumerate(error.args)
        return _new, (
            kind_of(error),
            tuple(self._kept(f"argument {index}", held, error) for index, held in named),
        )

    def _state(self, error: BaseException) -> dict[str, Any]:
        attributes = _attributes(error)
        text = attributes.pop(TEXT, None) or message_of(error)
        if self._mask is not None:
            attributes = {name: self._masked(name, held) for name, held in attributes.items()}
            return {"text": self._text(text), "attributes": attributes}
        if isinstance(error, AttributeError) and attributes.get("obj") is not None:
            # The object that lacks the attribute may be of any size, and says nothing more.
            self.is_whole = False
            attributes["obj"] = Unkept("obj", f"<{type(error.obj).__name__}>")
        kept = {name: self._kept(name, held, error) for name, held in attributes.items()}
        cause = error.__cause__
        return {
            "text": text,
            "attributes": kept,
            "cause": None if cause is None else self._error(cause, error),
        }

    def _masked(self, name: str, held: Any) -> Any:
        """Return an attribute that may be kept: ours, or a short one that hides nothing."""
        if name.startswith("__turnout"):
            return held
        if type(held) is str and len(held) <= _MAX_SHOWN:
            return self._text(held)
        is_small = type(held) is int and held.bit_length() <= 64
        return held if is_small or type(held) in _HARMLESS else Unkept(name, "(not kept)")

    def _error(self, held: BaseException, error: BaseException) -> BaseException:
        if self._is_kept(held, error):
            return held
        self.is_whole = False
        return StepFailed(self._text(message_of(held)), type=type(held).__name__)

    def _kept(self, name: str, held: Any, error: BaseException) -> Any:
        if self._is_kept(held, error):
            return held
        self.is_whole = False
        shown = "(not kept)"
        with suppress(*FOREIGN):  # the author's `__repr__`
            shown = reprlib.repr(held)[:_MAX_SHOWN]  # not all of it: it may be large
        return Unkept(name, shown)

    def _is_kept(self, held: Any, error: BaseException) -> bool:
        if id(held) not in self._tried:
            self._tried[id(held)] = False, False  # meanwhile
            self._tried[id(held)] = self._try(held, self._busy | {id(error)})
            self._alive.append(held)
        is_kept, is_whole = self._tried[id(held)]
        self.is_whole = self.is_whole and (is_whole or not is_kept)
        return is_kept

    def _try(self, held: Any, busy: frozenset[int]) -> tuple[bool, bool]:
        trial = _Pickler(self._mask, busy, self._tried)
        try:
            back = pickle.loads(trial.dumped(held))
        except FOREIGN:  # an author's object
            return False, False
        kind = kind_of(held) if isinstance(held, BaseException) else type(held)
        is_kept = isinstance(back, kind) if issubclass(kind, BaseException) else type(back) is kind
        return is_kept, trial.is_whole

    def _text(self, text: str) -> str:
        return text if self._mask is None else self._mask(text)


def _attributes(error: BaseException) -> dict[str, Any]:
    """Return what an error holds beside its arguments, also what is no entry of its `__dict__`."""
    found = dict(getattr(error, "__dict__", {}))
    for base in type(error).__mro__:
        if base in (BaseException, BaseExceptionGroup, object):
            continue
        for name, held in vars(base).items():
            if isinstance(held, MemberDescriptorType | GetSetDescriptorType) and name[:2] != "__":
                with suppress(*FOREIGN):  # it is not set
                    found[name] = getattr(error, name)
                if found.get(name, error) is None and base.__module__ == "builtins":
                    del found[name]  # not set either: an OSError with one argument tells it alone
    return found


# ---------------------------------------------------------------- reading


def _new(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """Make an error without its constructor."""
    for make in (kind.__new__, _own_new(kind)):
        for given in (args, ()):
            with suppress(*FOREIGN):  # the author's `__new__`
                error: BaseException = make(kind, *given)
                error.args = args
                return error
    raise TypeError(f"{kind.__qualname__} cannot be made")


def _is_validation(error: BaseException) -> bool:
    """Whether this is pydantic's error, which is not imported to find out."""
    kind = type(error)
    return kind.__name__ == "ValidationError" and kind.__module__.startswith("pydantic_core")


def _new_validation(title: str, lines: list[dict[str, Any]]) -> BaseException:
    """Make pydantic's error anew, which has neither constructor nor pickle."""
    from pydantic_core import PydanticCustomError, ValidationError

    for line in lines:
        message = line.pop("msg")
        try:
            ValidationError.from_exception_data(title, [line])  # type: ignore[list-item]  # from `errors`
        except FOREIGN:  # a kind of its own: any of KeyError, TypeError, ValueError
            line["type"] = PydanticCustomError(line["type"], message)
            line.pop("ctx", None)
    made = ValidationError.from_exception_data(title, lines)  # type: ignore[arg-type]  # as above
    made.args = ()
    return made


def _new_group(
    kind: type[BaseExceptionGroup[BaseException]], message: str, members: list[BaseException]
) -> BaseException:
    made: BaseException = BaseExceptionGroup.__new__(kind, message, members)
    return made


def _own_new(kind: type) -> Callable[..., Any]:
    """Return the `__new__` of the first class that is the interpreter's own."""
    made: Callable[..., Any] = next(
        new
        for base in kind.__mro__
        if isinstance(new := vars(base).get("__new__"), BuiltinFunctionType)
    )
    return made


def _complete(error: BaseException, state: Mapping[str, Any]) -> None:
    for name, held in state["attributes"].items():
        with suppress(*FOREIGN):  # one only its class may set
            BaseException.__setattr__(error, name, held)
    cause = state.get("cause")
    if cause is not None:
        error.__cause__ = cause
    text = state["text"]
    if message_of(error) != text:
        BaseException.__setattr__(error, TEXT, text)
        with suppress(*FOREIGN):  # a class that cannot be changed, or has no subclass
            kind: type = type(error)
            error.__class__ = _told(kind)


@lru_cache(maxsize=256)
def _told(kind: type) -> type:
    """Return an error class whose text is the one that was kept; it is caught as the original."""

    def text(self: BaseException) -> str:
        kept: str = getattr(self, TEXT)
        return kept

    names = {"__str__": text, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), {**names, _KIND: kind})
