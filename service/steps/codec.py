"""Results to bytes and back: what is read after a restart is what was returned.

A step's result is JSON when the return annotation brings the very same value back, which is tried,
not assumed (`exact`); any other object is pickled. A run's own result is for people and programs
outside: JSON only, through the annotation. A value is kept exactly or refused: one that cannot be
pickled, is too large or holds a secret's value is refused by name before the next step runs.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

from turnout.service.domain.binding import UNANNOTATED
from turnout.service.domain.errors import FOREIGN, CodeChanged, NotKept
from turnout.service.domain.payload import read_json
from turnout.service.domain.shape import adapter, reads_alike
from turnout.service.domain.unpickle import unpickle
from turnout.service.governance import secrets
from turnout.service.journal.records import ChildEnd

from .exact import pickled, plain_json, same, what_json_loses

Encoding = Literal["json", "pickle"]

_PLAIN = (str, int, bool)
_UNTYPED = (UNANNOTATED, Any, object)

Words = tuple[str, str]
_RETURNED: Words = ("the result", "return")
_EMITTED: Words = ("the data", "emit")
"""What an error message calls the value, and the verb for what its author did with it."""


def encode(value: Any, annotation: Any, *, max_bytes: int, name: object) -> tuple[Encoding, bytes]:
    """Return (encoding, bytes) of a step's result; raises `NotKept` naming `name` and the fix."""
    data = _exact_json(value, annotation)
    encoding: Encoding = "json"
    if data is None:
        encoding, data = "pickle", _pickled(value, name)
    _check(data, max_bytes, name, "max_blob_bytes")
    return encoding, data


def decode(encoding: Encoding, data: bytes, annotation: Any, *, name: object) -> Any:
    """Return the value `encode` wrote; raises `CodeChanged` if the current code cannot read it."""
    try:
        if encoding == "pickle":
            return unpickle(data)
        if annotation in _UNTYPED or annotation in _PLAIN or annotation is None:
            return read_json(data)
        return adapter(annotation).validate_json(data)
    except FOREIGN as error:
        raise CodeChanged(
            f"the recorded result of {name} no longer fits the code ({type(error).__name__}: "
            f"{error}); retry from that step to run it again"
        ) from error


def encode_result(
    value: Any, annotation: Any, *, max_bytes: int, name: object, words: Words = _RETURNED
) -> bytes | None:
    """Return a run's result as JSON, None for None; raises `NotKept` for what is not data."""
    if value is None:
        return None
    data = plain_json(value, shared=True)
    if data is None:
        data = _lossy_json(value, annotation, name, words)
    _check(data, max_bytes, name, "max_result_bytes", words)
    return data


def encode_data(value: Any, *, max_bytes: int, name: object) -> bytes:
    """Return the data of an event as JSON; raises `NotKept` if JSON would lose something."""
    found = encode_result(value, UNANNOTATED, max_bytes=max_bytes, name=name, words=_EMITTED)
    data = found or b"null"
    lost = what_json_loses(value, data)
    if lost is not None:
        raise NotKept(f"{name}: {lost}; emit what the flows that listen are to read")
    return data


def encode_returned(
    value: Any, annotation: Any, *, called: bool, max_bytes: int, name: object
) -> tuple[bytes | None, bytes | None]:
    """Return a run's result as JSON, and a pickle where its caller could not read that back.

    Raises `NotKept` for what is not data; of a `called` run also for what no pickle gives back.
    """
    if not called or value is None:
        return encode_result(value, annotation, max_bytes=max_bytes, name=name), None
    data = _exact_json(value, annotation, whole=True)
    if data is not None:
        _check(data, max_bytes, name, "max_result_bytes")
        return data, None
    data = encode_result(value, annotation, max_bytes=max_bytes, name=name)
    returned = _pickled(value, name)
    _check(returned, max_bytes, name, "max_result_bytes")
    return data, returned


def decode_returned(end: ChildEnd, annotation: Any, *, name: object) -> Any:
    """Return a called run's result; raises `CodeChanged` if the current code cannot read it."""
    if end.returned is not None:
        return decode("pickle", end.returned, annotation, name=name)
    return None if end.result is None else decode("json", end.result, annotation, name=name)


def _check(
    data: bytes, max_bytes: int, name: object, setting: str, words: Words = _RETURNED
) -> None:
    if len(data) > max_bytes:
        what, verb = words
        raise NotKept(
            f"{name}: {what} is {len(data):,} bytes and the limit is {max_bytes:,} "
            f"({setting}); write it to a file or a database and {verb} where it is"
        )
    found = secrets.find_live(data) if secrets.live_forms else None
    if found is not None:
        what, verb = words
        raise NotKept(
            f"{name}: {what} holds the value of secret {found!r}; {verb} something else, and "
            f"call reveal() only where the value is used"
        )


# ---------------------------------------------------------------- JSON that comes back the same


def _exact_json(value: Any, annotation: Any, *, whole: bool = False) -> bytes | None:
    """Return JSON that reads back as the very same value, or None.

    With `whole` it also has the fields of a model that nobody set.
    """
    if annotation in _UNTYPED or annotation in _PLAIN or annotation is None:
        return plain_json(value)
    try:
        checks = adapter(annotation)
        if not reads_alike(annotation):
            return None
        for is_brief in (False,) if whole else (False, True):
            data = checks.dump_json(value, warnings="error", exclude_unset=is_brief)
            if same(checks.validate_json(data), value):
                return data
    except FOREIGN:  # serializing and comparing run the author's code
        pass  # not what it was annotated as, or not for JSON: pickle keeps it as it is
    return None


def _lossy_json(value: Any, annotation: Any, name: object, words: Words) -> bytes:
    """Return the JSON of models, dataclasses, dates, sets: for people, not to be read back."""
    from pydantic_core import to_json

    try:
        if annotation not in _UNTYPED:
            try:
                return _readable(adapter(annotation).dump_json(value, warnings="error"))
            except (TypeError, ValueError):
                pass  # it returned something else than it says: show what it is
        return _readable(to_json(value, inf_nan_mode="null"))
    except (TypeError, ValueError, RecursionError) as error:
        what, verb = words
        hint = "; did you forget `await`?" if inspect.isawaitable(value) else ""
        raise NotKept(
            f"{name}: {what}, {type(value).__name__}, is not JSON ({error}); {verb} plain "
            f"data, a dataclass or a pydantic model{hint}"
        ) from None


def _readable(data: bytes) -> bytes:
    """Return JSON that can be read; raises `ValueError`, as for an integer that is too long."""
    read_json(data)
    return data


def _pickled(value: Any, name: object) -> bytes:
    try:
        return pickled(value)
    except FOREIGN as error:  # pickling runs the author's __reduce__
        if inspect.iscoroutine(value):
            value.close()  # it was never awaited; the error below says so
        raise NotKept(
            f"{name}: the result, {type(value).__name__}, can be kept neither as JSON nor as a "
            f"pickle ({type(error).__name__}: {error}); return plain data, a dataclass or a model"
        ) from None
