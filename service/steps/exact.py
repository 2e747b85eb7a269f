"""A value is kept exactly or refused: it comes back equal in every part.

JSON is readable and cheap, so it is used if it gives back the very same value. This is tried, and
the two are compared part by part for the types whose equality is known: type, zone and fold of an
instant, set, extra and private fields of a model, attributes beside the fields of a dataclass. A
value that holds one object twice is never the same in JSON. Every other value is pickled; what a
pickle does not give back either is refused by the caller.

Not here: sizes and secrets (`codec`), errors (`domain.portable`).
"""

from __future__ import annotations

import json
import math
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PosixPath, PurePosixPath
from types import MemberDescriptorType, NoneType
from typing import Any
from uuid import UUID

import orjson

from turnout.service.domain.payload import write_json
from turnout.service.domain.portable import dumps
from turnout.service.domain.unpickle import unpickle

ATOMS: frozenset[type] = frozenset((str, int, bool, NoneType))
"""JSON's own types that have no parts and no odd values."""

_KEYS = frozenset((str,))
_MISSING = object()


# ---------------------------------------------------------------- JSON's own types


def is_plain(value: Any, *, shared: bool = False, most: float = math.inf) -> bool:
    """Whether a value consists of JSON's own types, and reads back the same without an annotation.

    With `shared` a part may stand in several places; more than `most` lists and dicts, or one
    longer than that, is not plain.
    """
    kind = type(value)
    if kind is dict or kind is list:
        parts = value if kind is list else value.values()
        is_flat = ATOMS.issuperset(map(type, parts)) and len(value) < most
        if is_flat and (kind is list or _KEYS.issuperset(map(type, value))):
            return True  # as most values are: a third of the cost of looking for parts
        return _is_plain_tree(value, shared, most)
    return kind in ATOMS or (kind is float and math.isfinite(value))


def _is_plain_tree(value: Any, shared: bool, most: float) -> bool:
    seen = {id(value)}
    left = [value]
    for node in left:  # it grows meanwhile
        if len(node) > most or len(seen) > most:
            return False
        if type(node) is dict:
            if not _KEYS.issuperset(map(type, node)):
                return False
            node = node.values()
        if ATOMS.issuperset(map(type, node)):  # most lists and dicts: a tenth of the loop's cost
            continue
        for part in node:
            kind = type(part)
            if kind in ATOMS or (kind is float and math.isfinite(part)):
                continue
            if (kind is not dict and kind is not list) or (id(part) in seen and not shared):
                return False
            if id(part) not in seen:
                seen.add(id(part))
                left.append(part)
    return True


def plain_json(value: Any, *, shared: bool = False) -> bytes | None:
    """Return the JSON of a plain value, None for any other."""
    if not is_plain(value, shared=shared):
        return None
    try:
        return write_json(value)
    except TypeError:  # an integer past 64 bits, a lone surrogate, hundreds of levels
        return None


# ---------------------------------------------------------------- what was read back


def same(back: Any, value: Any) -> bool:
    """Whether `back`, made anew from a text, is `value` in all its parts."""
    return _same(back, value, set())


def _same(back: Any, value: Any, seen: set[int]) -> bool:
    kind = type(value)
    if type(back) is not kind:
        return False
    text = _TEXTS.get(kind)
    if text is not None:
        return bool(text(back) == text(value))
    if issubclass(kind, Enum):
        return back is value
    if kind is not tuple and kind is not frozenset:
        if id(value) in seen:
            return False
        seen.add(id(value))
    if kind in (set, frozenset):
        return _same_members(back, value, seen)
    if kind is dict:  # in its order, which JSON keeps
        return _same_items([*back], [*value], seen) and _same_items(
            [*back.values()], [*value.values()], seen
        )
    if kind is list or kind is tuple or is_named_tuple(kind):
        return _same_items(back, value, seen)
    return _same_records(back, value, seen)


def _itself(value: Any) -> Any:
    return value


def _instant(value: datetime | time) -> tuple[type, str]:
    return type(value.tzinfo), repr(value)


_TEXTS: Mapping[type, Callable[[Any], Any]] = {
    **dict.fromkeys((*ATOMS, bytes), _itself),
    # Their `repr` tells all there is: of a float also its sign at zero.
    **dict.fromkeys(
        (float, Decimal, date, timedelta, PurePosixPath, PosixPath, IPv4Address, IPv6Address,
         IPv4Network, IPv6Network),
        repr,
    ),
    datetime: _instant,
    time: _instant,
    UUID: lambda value: (value, value.is_safe),
}  # fmt: skip
"""By type of values without parts: what is equal in two of them that are the same."""


def _same_items(back: Sequence[Any], value: Sequence[Any], seen: set[int]) -> bool:
    if len(back) != len(value):
        return False
    for one, other in zip(back, value, strict=True):
        if type(other) in ATOMS:
            if one != other or type(one) is not type(other):
                return False
        elif not _same(one, other, seen):
            return False
    return True


def _same_records(back: Any, value: Any, seen: set[int]) -> bool:
    kind: type = type(value)
    if not is_record(kind):
        return False
    found, expected = attributes(back), attributes(value)
    return found.keys() == expected.keys() and _same_items(
        [found[name] for name in expected], [*expected.values()], seen
    )


def _same_members(back: Any, value: Any, seen: set[int]) -> bool:
    found = {each: each for each in back}
    return len(back) == len(value) and all(
        _same(found.get(each, _MISSING), each, seen) for each in value
    )


# ---------------------------------------------------------------- what values are made of


def is_named_tuple(kind: type) -> bool:
    """Whether values of a class are tuples with names and nothing beside."""
    return issubclass(kind, tuple) and hasattr(kind, "_fields") and kind.__dictoffset__ == 0


@lru_cache(maxsize=256)
def is_record(kind: type) -> bool:
    """Whether values of a class are all in their attributes: those of dataclasses and models."""
    declared = is_dataclass(kind) or hasattr(kind, "__pydantic_fields__")
    return declared and getattr(kind, "__new__", None) is object.__new__


def attributes(value: Any) -> dict[str, Any]:
    """Return all attributes of a record: its fields, those beside them, and what a model keeps."""
    found = dict(getattr(value, "__dict__", ()))
    kind: type = type(value)
    for name in _slots(kind):
        held = getattr(value, name, _MISSING)
        if held is not _MISSING:
            found[name] = held
    return found


@lru_cache(maxsize=256)
def _slots(kind: type) -> tuple[str, ...]:
    return tuple(
        name
        for base in kind.__mro__
        for name, held in vars(base).items()
        if type(held) is MemberDescriptorType
    )


# ---------------------------------------------------------------- JSON for others


def what_json_loses(value: Any, data: bytes) -> str | None:
    """Return in words what JSON loses of a value, None if nothing.

    Another form of the same is no loss: a text for an instant, a list for a set. Losses are a
    number that JSON does not have, two keys that become one, a masked secret, a field left out.
    """
    if is_plain(value, shared=True):
        return None
    try:
        orjson.loads(data)
        json.loads(data, object_pairs_hook=_once)
        _refuse_loss(value, b'"**********"' in data, 0)
    except ValueError as error:
        return str(error)
    return None


def _once(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1] if len({*names}) < len(names) else []
    if twice:
        raise ValueError(f"two keys of a dict are both {twice[0]!r} in JSON")


def _refuse_loss(value: Any, masked: bool, depth: int) -> None:
    kind: type = type(value)
    if kind is float and not math.isfinite(value):
        raise ValueError(f"JSON has no {value!r}")
    if masked and hasattr(kind, "get_secret_value"):
        raise ValueError(f"a {kind.__name__} is only asterisks in JSON")
    if depth > 100:
        raise ValueError("it is nested too deeply, or holds itself")
    for part in _parts(kind, value):
        _refuse_loss(part, masked, depth + 1)


def _parts(kind: type, value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset | deque):
        return value
    for name, declared in getattr(kind, "__pydantic_fields__", {}).items():
        if declared.exclude or getattr(declared, "exclude_if", None):
            raise ValueError(f"field {name!r} of {kind.__name__} is left out (exclude=True)")
    if is_dataclass(kind):
        return attributes(value).values()
    extra = getattr(value, "__pydantic_extra__", None) or {}
    return [*vars(value).values(), *extra.values()] if is_record(kind) else ()


# ---------------------------------------------------------------- pickles


def pickled(value: Any) -> bytes:
    """Return a pickle that is read back as a value of the same type; raises what stands in the way.

    Pickling runs the author's code, so that may be any error.
    """
    data = dumps(value)
    _check_type(pickle.loads(data), value)  # some objects go in and never come out again
    return data


def pickled_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    """Return a pickle of (args, kwargs), each of which is read back as of the same type."""
    data = dumps((args, dict(kwargs)))
    placed, named = unpickle(data)
    for back, value in zip((*placed, *named.values()), (*args, *kwargs.values()), strict=True):
        _check_type(back, value)
    return data


def _check_type(back: Any, value: Any) -> None:
    if type(back) is not type(value):
        raise TypeError(f"{type(value).__qualname__} would come back as {type(back).__qualname__}")
