"""Which flows listen to emitted events of a type: by its name, or by a pattern of types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from turnout.service.domain.event_types import is_pattern, matches

if TYPE_CHECKING:
    from . import AnyFlow

_REMEMBERED = 1024


class Listeners:
    """The flows by the type they listen to, in the order in which the project lists them.

    With patterns the answer for a type is remembered, up to a bound: senders choose the types.
    """

    def __init__(self, listed: Sequence[tuple[str, AnyFlow]] = ()) -> None:
        self._listed = listed
        self._has_patterns = any(is_pattern(heard) for heard, _ in listed)
        self._found = {heard: self._find(heard) for heard, _ in listed if not is_pattern(heard)}

    def of(self, event_type: str) -> tuple[AnyFlow, ...]:
        """Return the flows that listen to events of a type, each once."""
        found = self._found.get(event_type)
        if found is not None:
            return found
        if not self._has_patterns:
            return ()
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        found = self._found[event_type] = self._find(event_type)
        return found

    def _find(self, event_type: str) -> tuple[AnyFlow, ...]:
        heard = [flow for pattern, flow in self._listed if matches(pattern, event_type)]
        return tuple(dict.fromkeys(heard))
