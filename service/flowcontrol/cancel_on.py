"""Cancelling by an event: `cancel_on=event("order.cancelled"), match="order"`.

An event of the trigger cancels the unfinished runs that arrived before it and match it. A run that
arrives later is not cancelled: a cancel that came first is not remembered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import orjson

from turnout.service.domain.conditions import CANCEL_RULE
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.foreign import ask, short_key
from turnout.service.domain.match import as_text, field_of
from turnout.service.domain.trigger import Trigger

Match: TypeAlias = str | Mapping[str, str | Callable[[Event], Hashable]]
"""The fields in which a cancelling event and a run must agree: `"order"`, which both have, or
`{"order": "id"}`, or `{"order": lambda event: …}`, which is asked of the run's own event."""


@dataclass(frozen=True, eq=False)
class CancelOn:
    """Cancels runs by an event; `fields` maps a field of it to what the run's event has for it."""

    trigger: Trigger
    fields: Mapping[str, str | Callable[[Event], Hashable]]
    rule_id: ClassVar[str] = CANCEL_RULE
    option: ClassVar[str] = "match="

    @cached_property
    def per(self) -> Callable[[Event], Hashable]:
        """What asks the event of a run for its key; None where a field has no value."""

        def of_run(event: Event) -> str | None:
            return _key({name: _answer(event, asked) for name, asked in self.fields.items()})

        return of_run

    def key(self, event: Event) -> str | None:
        """Return the key of the runs that an event cancels; None where a field has no value."""
        key = _key({name: field_of(event, name, null=None) for name in self.fields})
        return None if key is None else short_key(key)


def _answer(event: Event, asked: str | Callable[[Event], Hashable]) -> str | None:
    if isinstance(asked, str):
        return field_of(event, asked, null=None)
    answer = ask(asked, event)
    return None if answer is None else as_text(answer)


def _key(values: Mapping[str, str | None]) -> str | None:
    if None in values.values():
        return None
    return orjson.dumps(sorted(values.items())).decode()


def checked_cancel_on(trigger: Any, match: Any) -> CancelOn | None:
    """Return what `cancel_on=` and `match=` declare; raises `SetupError` for what cannot be meant.

    The trigger itself is checked where those of `on=` are.
    """
    if trigger is None:
        if match is None:
            return None
        raise SetupError(
            "match= says which runs an event of cancel_on= cancels; write cancel_on=TRIGGER with it"
        )
    return CancelOn(trigger, _fields(match))


def _fields(match: Any) -> Mapping[str, str | Callable[[Event], Hashable]]:
    if match is None:
        return {}
    fields = {match: match} if isinstance(match, str) else match
    if not isinstance(fields, Mapping) or not fields or not all(map(_is_field, fields.items())):
        raise SetupError(
            f'match={match!r}: write the field that both events have, match="order", or '
            'match={"order": lambda event: …}, a field of the cancelling event and how the '
            "flow's own event says the same"
        )
    return dict(fields)


def _is_field(field: tuple[object, object]) -> bool:
    name, asked = field
    is_question = callable(asked) and not inspect.iscoroutinefunction(asked)
    return isinstance(name, str) and bool(name) and (isinstance(asked, str) or is_question)
