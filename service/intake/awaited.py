"""Events that runs may wait for, and the topics each of them wakes.

Holds the awaited triggers and the distinct sets of compared fields, never a run: ten thousand
waiting runs cost no memory here. A set is never removed, so the number of sets grows only with the
code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from turnout.service.domain.decisions import Reason
from turnout.service.domain.event import Event
from turnout.service.domain.event_types import EMITTERS, event_name, matches
from turnout.service.domain.match import field_of
from turnout.service.domain.trigger import StartsOnType
from turnout.service.journal.records import Decision, Entry
from turnout.service.project import AnyFlow
from turnout.service.steps.wait import event_topic


class Awaited:
    """Adds the topics to wake to events that a run may wait for."""

    def __init__(self) -> None:
        self._shapes: dict[str, set[tuple[str, ...]]] = {}
        self._types: dict[str, str] = {}  # of a trigger's name: its type, or pattern of types

    def serve(self, flows: Iterable[AnyFlow]) -> None:
        """Take the flows of a (re)loaded project."""
        for flow in flows:
            for trigger in flow.awaits:
                self._shapes.setdefault(trigger.name, set())
                if isinstance(trigger, StartsOnType):
                    self._types[trigger.name] = trigger.event_type

    def watch(self, shape: Sequence[str]) -> None:
        """Compare the fields of `shape` (trigger, field…) in that trigger's events from now on."""
        self._shapes.setdefault(shape[0], set()).add(tuple(shape[1:]))

    def may_wake(self, trigger: str) -> bool:
        """Whether a run may wait for an event of a trigger that sends its own."""
        return trigger in self._shapes

    def add_topics(self, entry: Entry) -> bool:
        """Add to an entry the topics it wakes; False if no run can wait for it."""
        name = entry.event.trigger
        if name not in EMITTERS:
            if name not in self._shapes:
                return False
            entry.awaited, entry.topics = name, self._topics(name, entry.event)
        else:
            heard = self._types and self._heard_as(entry.event.type)
            if not heard:
                return False
            entry.awaited = event_name(entry.event.type)
            entry.topics = [topic for each in heard for topic in self._topics(each, entry.event)]
        name = entry.awaited
        if not entry.runs:
            entry.decisions = [
                _awaited(name) if made.reason is Reason.UNMATCHED else made
                for made in entry.decisions
            ]
        return True

    def _heard_as(self, event_type: str) -> list[str]:
        """Return the names of the awaited triggers that emitted events of a type belong to."""
        return [name for name, heard in self._types.items() if matches(heard, event_type)]

    def _topics(self, name: str, event: Event) -> list[str]:
        """Return the topics that an event wakes of those who wait for a trigger."""
        topics = []
        for shape in self._shapes[name]:
            fields = {field: field_of(event, field) for field in shape}
            found = {field: value for field, value in fields.items() if value is not None}
            if len(found) == len(fields):
                topics.append(event_topic(name, found))
        return topics


def _awaited(name: str) -> Decision:
    detail = "no flow starts on it; runs may wait for it"
    return Decision("", Reason.UNMATCHED, detail, {"awaited": name})
