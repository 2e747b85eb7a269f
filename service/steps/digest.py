"""Digests of a call's arguments: equal arguments have one digest, arguments that differ another.

Types count, the order of a dict or set does not. A value whose differences cannot be seen is
refused with a `TypeError` or `ValueError`, never guessed. There are two rules. `INPUT`, for the
keys of cached results, includes everything. `ARGUMENTS`, which recognises an earlier call in
changed code, ignores where a class is defined and fields left at their default, and identifies a
secret by its name.
"""

from __future__ import annotations

import math
import os
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import cached_property, lru_cache
from hashlib import blake2b
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson

from turnout.service.domain.event import Event
from turnout.service.governance.secrets import Secret

from .exact import ATOMS, attributes, is_named_tuple, is_plain, is_record

_WRITTEN = ATOMS | frozenset(
    (float, bytes, date, timedelta, Decimal, UUID, complex, Fraction, IPv4Address, IPv4Network,
     IPv6Address, IPv6Network, timezone)
)  # fmt: skip
"""Types whose `repr` tells all there is."""

_DEEPEST = 100
_secret_key = os.urandom(32)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a digest takes in; a value of more than `most` parts or `most_bytes` is refused."""

    modules: bool
    defaults: bool
    secret_values: bool
    most: float = math.inf
    most_bytes: float = math.inf


INPUT = Rule(modules=True, defaults=True, secret_values=True)
ARGUMENTS = Rule(modules=False, defaults=False, secret_values=False, most=1000, most_bytes=2**20)


def encoded(value: Any, rule: Rule) -> bytes:
    """Return bytes that tell a value from every other; they are about as long as the value."""
    if is_plain(value, shared=True, most=rule.most):
        try:
            return _bounded(b"j" + orjson.dumps(value, option=orjson.OPT_SORT_KEYS), rule)
        except TypeError:  # an integer past 64 bits, a lone surrogate, hundreds of levels
            pass
    writer = _Writer(rule)
    writer.write(value, 0)
    return _bounded(b"".join(writer.out), rule)


def encoded_call(args: Sequence[Any], kwargs: Mapping[str, Any], rule: Rule) -> bytes:
    """Return what tells the arguments of a call from every other call's."""
    if not kwargs and ATOMS.issuperset(map(type, args)):  # most calls, for a tenth of the cost
        try:
            return _bounded(b"j" + orjson.dumps((args, {})), rule)
        except TypeError:  # as above
            pass
    return encoded([[*args], kwargs], rule)


def _bounded(data: bytes, rule: Rule) -> bytes:
    if len(data) > rule.most_bytes:
        raise ValueError("it is too large")
    return data


def join(parts: Iterable[bytes], size: int) -> bytes:
    """Return a digest of parts; each is written with its length."""
    digest = blake2b(digest_size=size)
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()


class _Writer:
    """Writes a value down, each part with its type and length."""

    def __init__(self, rule: Rule) -> None:
        self.out: list[bytes] = []
        self._rule = rule
        self._parts = 0

    def write(self, value: Any, depth: int) -> None:
        kind = type(value)
        self._parts += 1
        if depth > _DEEPEST or self._parts > self._rule.most:
            raise ValueError("it is too large, nested too deeply, or holds itself")
        if (kind is str or kind is bytes) and len(value) > self._rule.most_bytes:
            raise ValueError("it is too large")  # before it is copied
        if kind is str:
            data = value.encode("utf-8", "surrogatepass")
            self.out.append(b"str %d:%b" % (len(data), data))
        elif kind in _WRITTEN or isinstance(value, PurePath):
            self._leaf(kind, repr(value))
        elif kind is datetime or kind is time:
            self._leaf(kind, f"{value!r} {_zone(value.tzinfo)}")
        elif isinstance(value, Enum):
            self._leaf(kind, value.name or repr(value.value))  # flags together may have no name
        elif isinstance(value, Secret):
            self._leaf(kind, f"{value.name} {self._hidden(value)}")
        elif kind is Event:
            self._leaf(kind, repr((value.tenant, value.trigger, value.source, value.id)))
        else:
            self._compound(kind, value, depth + 1)

    def _compound(self, kind: type, value: Any, depth: int) -> None:
        if isinstance(value, dict):
            self._mapping(kind, value, depth)
        elif kind is list or kind is tuple or is_named_tuple(kind):
            self._items(kind, value, depth)
        elif kind is set or kind is frozenset:
            self._unordered(kind, ([each] for each in value), depth)
        elif is_record(kind):
            self._unordered(kind, self._fields(value).items(), depth)
        else:
            raise TypeError(f"there is no telling when two {kind.__qualname__} are the same")

    def _mapping(self, kind: type, value: Mapping[Any, Any], depth: int) -> None:
        if kind is OrderedDict:
            self._items(kind, [part for item in value.items() for part in item], depth)
        elif kind is dict or kind is Counter:
            self._unordered(kind, value.items(), depth)
        elif kind is defaultdict and isinstance(value.default_factory, type):  # type: ignore[attr-defined]  # it is one
            self._leaf(kind, _name(value.default_factory, self._rule).decode())  # type: ignore[attr-defined]
            self._unordered(kind, value.items(), depth)
        else:
            raise TypeError(f"there is no telling when two {kind.__qualname__} are the same")

    def _fields(self, value: Any) -> dict[str, Any]:
        """Return the attributes of a record that count: not its cached properties."""
        kind: type = type(value)
        found = attributes(value)
        for name in _cached(kind):
            found.pop(name, None)
        if self._rule.defaults:
            return found
        given = found.pop("__pydantic_fields_set__", None)
        if given is not None:
            unset = [name for name in kind.__pydantic_fields__ if name not in given]  # type: ignore[attr-defined]  # a model
        else:
            unset = [each.name for each in fields(kind) if _is_default(each, found)]
        for name in unset:
            found.pop(name, None)
        return found

    def _items(self, kind: type, items: Any, depth: int) -> None:
        self._head(kind, len(items))
        for each in items:
            self.write(each, depth)

    def _unordered(self, kind: type, groups: Iterable[Iterable[Any]], depth: int) -> None:
        written = []
        whole, self.out = self.out, []
        for group in groups:
            for part in group:
                self.write(part, depth)
            written.append(b"".join(self.out))
            self.out.clear()
        self.out = whole
        self._head(kind, len(written))
        self.out.extend(sorted(written))

    def _leaf(self, kind: type, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self._head(kind, len(data))
        self.out.append(data)

    def _head(self, kind: type, length: int) -> None:
        self.out.append(b"%b %d:" % (_name(kind, self._rule), length))

    def _hidden(self, secret: Secret) -> str:
        if not self._rule.secret_values:
            return ""
        return blake2b(secret.reveal().encode(), key=_secret_key, digest_size=20).hexdigest()


@lru_cache(maxsize=256)
def _name(kind: type, rule: Rule) -> bytes:
    return (f"{kind.__module__}." if rule.modules else "").encode() + kind.__qualname__.encode()


@lru_cache(maxsize=256)
def _cached(kind: type) -> tuple[str, ...]:
    """Return the attributes that only cache what follows from others."""
    return tuple(
        name
        for base in kind.__mro__
        for name, held in vars(base).items()
        if isinstance(held, cached_property)
    )


def _zone(zone: Any) -> str:
    """Return the kind of a zone; its own `repr`, in that of the instant, has the rest."""
    kind = type(zone)
    is_known = zone is None or kind is timezone or kind.__module__.startswith("pydantic_core")
    if not is_known and not (kind is ZoneInfo and zone.key is not None):
        raise TypeError(f"there is no telling when two {kind.__qualname__} are the same zone")
    return kind.__qualname__


def _is_default(field: Any, found: Mapping[str, Any]) -> bool:
    """Whether a field has its default, as far as that is seen without the author's code."""
    if field.name not in found:
        return False
    held = found[field.name]
    if field.default is not MISSING:
        return type(held) is type(field.default) and (
            held is field.default or (type(held) in ATOMS and bool(held == field.default))
        )
    return field.default_factory in (list, dict, set) and (
        type(held) is field.default_factory and not held
    )
