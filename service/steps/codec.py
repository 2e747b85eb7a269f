"""Results to bytes and back: what is read after a restart equals what was returned.

A step's result is JSON when the return annotation brings the very same value back, which is tried,
not assumed; any other object is pickled. A run's own result is for people and programs outside:
JSON only, through the annotation. A value that cannot be kept (unpicklable, too large, holding a
live secret) is refused by name before anything downstream runs (decision 23).
"""

from __future__ import annotations

import inspect
import math
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal

import orjson

from turnout.service.errors import CodeChanged, NotKept
from turnout.service.governance import secrets
from turnout.service.payload import read_json
from turnout.service.shape import adapter

Encoding = Literal["json", "pickle"]

UNANNOTATED: Any = inspect.Signature.empty
_PLAIN = (str, int, bool)
_UNTYPED = (UNANNOTATED, Any, object)


def encode(value: Any, annotation: Any, *, max_bytes: int, name: object) -> tuple[Encoding, bytes]:
    """Return (encoding, bytes) of a step's result; raises `NotKept` naming `name` and the fix."""
    data = _exact_json(value, annotation)
    encoding: Encoding = "json"
    if data is None:
        encoding, data = "pickle", _pickled(value, name)
    _check(data, max_bytes, name, "max_spilled_bytes")
    return encoding, data


def decode(encoding: Encoding, data: bytes, annotation: Any, *, name: object) -> Any:
    """Return what `encode` kept; raises `CodeChanged` when today's code cannot read it."""
    try:
        if encoding == "pickle":
            return pickle.loads(data)
        if annotation in _UNTYPED or annotation in _PLAIN or annotation is None:
            return read_json(data)
        return adapter(annotation).validate_json(data)
    except Exception as error:
        raise CodeChanged(
            f"the recorded result of {name} no longer fits the code ({type(error).__name__}: "
            f"{error}); retry from that step to run it again"
        ) from error


def encode_result(value: Any, annotation: Any, *, max_bytes: int, name: object) -> bytes | None:
    """Return a run's result as JSON, None for None; raises `NotKept` for what is not data."""
    if value is None:
        return None
    data = _plain_json(value)
    if data is None:
        data = _lossy_json(value, annotation, name)
    _check(data, max_bytes, name, "max_result_bytes")
    return data


def _check(data: bytes, max_bytes: int, name: object, setting: str) -> None:
    if len(data) > max_bytes:
        raise NotKept(
            f"{name}: the result is {len(data):,} bytes and the limit is {max_bytes:,} "
            f"({setting}); write it to a file or a database and return where it is"
        )
    found = secrets.find_live(data)
    if found is not None:
        raise NotKept(
            f"{name}: the result holds the value of secret {found!r}; return something else, and "
            f"call reveal() only where the value is used"
        )


# ---------------------------------------------------------------- JSON that comes back the same


def _exact_json(value: Any, annotation: Any) -> bytes | None:
    """Return JSON that is read back as an equal value of the same type, or None."""
    if annotation in _UNTYPED or annotation in _PLAIN or annotation is None:
        return _plain_json(value)
    try:
        checks = adapter(annotation)
        data = checks.dump_json(value, warnings="error")
        back = checks.validate_json(data)
        same = _same(back, value)
    except Exception:  # noqa: BLE001  serializing and comparing run the author's code
        return None  # not what it was annotated as, or not for JSON: pickle keeps it as it is
    return data if same else None


def _same(back: Any, value: Any) -> bool:
    """Whether two values are equal and of the same types all the way down.

    Equal alone is not enough: a `StrEnum` in a `dict[str, Any]` would come back as a `str`.
    """
    kind = type(value)
    if type(back) is not kind:
        return False
    if kind in _PLAIN:
        return bool(back == value)
    if isinstance(value, dict):
        # In their order, which JSON keeps.
        return _same_items((*back, *back.values()), (*value, *value.values()))
    if isinstance(value, list | tuple):
        return _same_items(back, value)
    if back != value:
        return False
    if isinstance(value, set | frozenset):
        return Counter(map(type, back)) == Counter(map(type, value))
    if is_dataclass(value):
        names = [each.name for each in fields(value)]
        return all(_same(getattr(back, name), getattr(value, name)) for name in names)
    if hasattr(kind, "__pydantic_extra__"):
        extra = (back.__pydantic_extra__, value.__pydantic_extra__)
        return _same(vars(back), vars(value)) and (extra == (None, None) or _same(*extra))
    return True


def _same_items(back: Sequence[Any], value: Sequence[Any]) -> bool:
    return len(back) == len(value) and all(map(_same, back, value))


def _plain_json(value: Any) -> bytes | None:
    """Return the JSON of a value made of JSON's own types only, or None."""
    if not _is_plain(value, 0):
        return None
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer past 64 bits, a lone surrogate
        return None


def _is_plain(value: Any, depth: int) -> bool:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return True
    if kind is float:
        return math.isfinite(value)
    if depth > 64:
        return False
    if kind is dict:
        return all(type(key) is str and _is_plain(item, depth + 1) for key, item in value.items())
    return kind is list and all(_is_plain(item, depth + 1) for item in value)


def _lossy_json(value: Any, annotation: Any, name: object) -> bytes:
    """Return the JSON of models, dataclasses, dates, sets, …: readable, not to be read back."""
    from pydantic_core import to_json

    try:
        if annotation not in _UNTYPED:
            try:
                return _readable(adapter(annotation).dump_json(value, warnings="error"))
            except (TypeError, ValueError):
                pass  # it returned something else than it says: show what it is
        return _readable(to_json(value, inf_nan_mode="null"))
    except (TypeError, ValueError, RecursionError) as error:
        hint = "; did you forget `await`?" if inspect.isawaitable(value) else ""
        raise NotKept(
            f"{name}: the result, {type(value).__name__}, is not JSON ({error}); return plain "
            f"data, a dataclass or a pydantic model{hint}"
        ) from None


def _readable(data: bytes) -> bytes:
    """Return JSON that can be read back; raises `ValueError`, as for an integer without end."""
    read_json(data)
    return data


def _pickled(value: Any, name: object) -> bytes:
    try:
        data = pickle.dumps(value, protocol=5)
        pickle.loads(data)  # some objects go in and never come out again
    except Exception as error:  # noqa: BLE001  pickling runs the author's __reduce__
        if inspect.iscoroutine(value):
            value.close()  # it was never awaited; the error below says so
        raise NotKept(
            f"{name}: the result, {type(value).__name__}, can be kept neither as JSON nor as a "
            f"pickle ({type(error).__name__}: {error}); return plain data, a dataclass or a model"
        ) from None
    return data
