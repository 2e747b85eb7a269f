"""Events that cancel runs (`cancel_on=`): which runs, by flow and key.

Not here: cancelling them, which the journal does in the transaction that stores the event.
"""

from __future__ import annotations

from collections.abc import Iterable

from turnout.service.domain.decisions import Reason
from turnout.service.domain.event import Event
from turnout.service.domain.event_types import EMITTERS, matches
from turnout.service.domain.flow import Cancels
from turnout.service.domain.trigger import StartsOnType
from turnout.service.journal.records import Decision, Entry
from turnout.service.project import AnyFlow


class CancellingEvents:
    """Adds to an event the runs that it cancels."""

    def __init__(self) -> None:
        self._rules: list[tuple[str, Cancels]] = []

    def serve(self, flows: Iterable[AnyFlow]) -> None:
        """Take the flows of a (re)loaded project."""
        self._rules = [(flow.name, flow.cancel_on) for flow in flows if flow.cancel_on is not None]

    def may_cancel(self, trigger: str) -> bool:
        """Whether an event of a trigger that sends its own may cancel runs."""
        return any(rule.trigger.name == trigger for _, rule in self._rules)

    def add_to(self, entry: Entry) -> None:
        """Add to an entry the (flow, key) of the runs that its event cancels."""
        if not self._rules:
            return
        event = entry.event
        rules = [(flow, rule) for flow, rule in self._rules if _is_of(rule, event)]
        keys = [(flow, rule.key(event)) for flow, rule in rules]
        entry.cancels = [(flow, key) for flow, key in keys if key is not None]
        if rules and not entry.runs:
            names = ", ".join(flow for flow, _ in rules)
            entry.decisions = [
                _cancels(names) if made.reason is Reason.UNMATCHED else made
                for made in entry.decisions
            ]


def _is_of(rule: Cancels, event: Event) -> bool:
    """Whether an event is one of a rule's trigger."""
    trigger = rule.trigger
    if event.trigger in EMITTERS:
        return isinstance(trigger, StartsOnType) and matches(trigger.event_type, event.type)
    return event.trigger == trigger.name


def _cancels(flows: str) -> Decision:
    return Decision("", Reason.UNMATCHED, f"no flow starts on it; it cancels runs of {flows}")
