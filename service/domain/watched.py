"""What a question of the author's reads of an event: its fields and their values, for people.

A question that has failed, or said no, is asked again with a watched copy of the event. The copy
gives the same answers and notes which fields were read, the latest ones last.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from .event import Event

_MOST_READS = 20
_PATH_CHARACTERS = 200
_MISSING = object()
_FIELDS = frozenset({field.name for field in fields(Event)} | {"data", "path"})


class _Short(reprlib.Repr):
    """Values as short text; `mask` sees each text whole, before it is cut."""

    def __init__(self, mask: Callable[[str], str]) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 80
        self.maxlevel = 3
        self._mask = mask

    def repr_str(self, text: str, level: int) -> str:
        return super().repr_str(self._mask(text), level)

    def repr_bytes(self, data: bytes, _level: int) -> str:
        return f"{len(data)} bytes"

    def of(self, value: object) -> str:
        if value is _MISSING:
            return "missing"
        try:
            return self.repr(value)
        except ValueError:  # an integer of too many digits
            return f"a {type(value).__name__} that is too long to show"


class Reads:
    """The fields that were read, and their values: the latest ones, up to a bound."""

    def __init__(self) -> None:
        self._found: dict[str, object] = {}

    def note(self, path: str, value: object) -> Any:
        """Note that the value at `path` was read; returns it so that what is in it is noted too."""
        self._found.pop(path, None)
        self._found[path] = value
        if len(self._found) > _MOST_READS:
            del self._found[next(iter(self._found))]
        if isinstance(value, dict):
            return _Fields(value, path, self)
        if isinstance(value, list):
            return _Items(value, path, self)
        return value

    def note_missing(self, path: str) -> None:
        """Note that a field was asked for that is not there."""
        self.note(path, _MISSING)

    def shown(self, mask: Callable[[str], str]) -> dict[str, str]:
        """Return each value as short text, by the path of its field: `data.amount`.

        An object of which fields were read is left out. `mask` hides secrets.
        """
        paths, short = list(self._found), _Short(mask)
        return {
            mask(path)[:_PATH_CHARACTERS]: short.of(value)
            for path, value in self._found.items()
            if not any(other.startswith((f"{path}.", f"{path}[")) for other in paths)
        }


def watched(event: Event) -> tuple[Event, Reads]:
    """Return a copy of an event, and what will be read of it."""
    reads = Reads()
    made = object.__new__(_WatchedEvent)
    object.__getattribute__(made, "__dict__")["_watched"] = (event.own(), reads)
    return made, reads


class _WatchedEvent(Event):
    def __getattribute__(self, name: str) -> Any:
        event, reads = object.__getattribute__(self, "__dict__")["_watched"]
        value = getattr(event, name)
        return reads.note(name, value) if name in _FIELDS else value


class _Fields(dict[Any, Any]):
    """An object of JSON, or the headers, parameters or extensions of an event."""

    def __init__(self, values: Mapping[Any, Any], path: str, reads: Reads) -> None:
        super().__init__(values)
        self._path = path
        self._reads = reads

    def __getitem__(self, key: Any) -> Any:
        if key not in self.keys():
            self._reads.note_missing(_below(self._path, key))
        return self._reads.note(_below(self._path, key), super().__getitem__(key))

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        if not found:
            self._reads.note_missing(_below(self._path, key))
        return found

    def get(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            return default
        return self[key]


class _Items(list[Any]):
    """An array of JSON."""

    def __init__(self, values: list[Any], path: str, reads: Reads) -> None:
        super().__init__(values)
        self._path = path
        self._reads = reads

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, int):
            return super().__getitem__(index)
        if not -len(self) <= index < len(self):
            self._reads.note_missing(f"{self._path}[{index}]")
        return self._reads.note(f"{self._path}[{index}]", super().__getitem__(index))

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def _below(path: str, key: object) -> str:
    is_name = isinstance(key, str) and key.isidentifier()
    return f"{path}.{key}" if is_name else f"{path}[{key!r}]"
