"""The event trigger: flows that start on events somebody emits, by CloudEvents type.

It watches nothing. `POST /api/events`, `turnout emit` and a flow's own `emit()` put the event into
the journal; the router starts every flow whose `event("type")` is the event's type, or a pattern of
types that it matches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Never

from turnout.service.domain.errors import SetupError
from turnout.service.domain.event_types import event_name, problem_of_event

from .identity import refuse_options


@dataclass(frozen=True, slots=True)
class EventTrigger:
    """Starts its flows for every emitted event of one type, or of each that a pattern matches."""

    event_type: str

    @property
    def kind(self) -> Literal["event"]:
        """The word for this kind of trigger."""
        return "event"

    @property
    def name(self) -> str:
        """`event:` and the type."""
        return event_name(self.event_type)

    def check(self) -> None:
        """Refuse a type that no flow emits."""
        if not isinstance(self.event_type, str):
            raise SetupError(f"event({self.event_type!r}): a type is a text")
        problem = problem_of_event(self.event_type)
        if problem is not None:
            raise SetupError(problem)


def event(type: str, **options: Never) -> EventTrigger:
    """Start a flow when an event of this type is emitted: `@flow(on=event("order.paid"))`.

    By `emit()` of another flow, by `turnout emit`, or by `POST /api/events`. A flow starts once for
    each event, however many of its triggers match.

    * `type`: the type; a `*` stands for characters of one part between dots, `**` for one or more
      parts: `event("order.*")`, `event("com.example.**")`

    Raises `SetupError` for what is no type, and for `id=` or `dedupe=`: whoever emits says the id.

    ```python
    from turnout import Event, event, flow


    @flow(on=event("order.*"))
    async def changed(event: Event) -> str:
        return event.type
    ```
    """
    refuse_options(
        "event",
        options,
        "whoever emits an event says its id: the CloudEvents attribute `id`, or emit(…, id=…)",
    )
    return EventTrigger(type)
