"""From an event to runs: which flows an event starts, and why it does not start the others.

Routing writes nothing and waits for nothing. The author's `when=`, `per=` and `ordered_by=` are
foreign code and are called here, each once per event. What they and the runs change in the event or
its data is invisible to the journal and the other flows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from turnout.service.domain.decisions import Fact, Reason
from turnout.service.domain.errors import InvalidData, words_of
from turnout.service.domain.event import ID_ERROR, MAX_HOPS, Event, mint_id
from turnout.service.domain.event_columns import EventColumns
from turnout.service.domain.event_types import EMITTERS, matches
from turnout.service.domain.run import RunError, RunState
from turnout.service.domain.trigger import StartsOnType
from turnout.service.domain.windows.window import Window
from turnout.service.flowcontrol.keys import keys_of, with_order
from turnout.service.flowcontrol.priority import class_of
from turnout.service.governance import secrets
from turnout.service.journal.records import Decision, Entry, NewMember, NewRun
from turnout.service.project import AnyFlow

from .questions import failed

RoutedRun: TypeAlias = "tuple[NewRun, AnyFlow, Event, Mapping[str, Any] | None]"
"""A run with its flow, and what it is called with: its own event, and the bound arguments."""

RoutedMember: TypeAlias = "tuple[NewMember, Event, Mapping[str, Any]]"
"""A member that is offered to a window, its own event, and what it fills in.

Of an entry of columns it stands for all of them, and what each fills in is a list.
"""


@dataclass(slots=True)
class Routed:
    """The result of routing: the entry for the journal, and its runs and members with arguments.

    `refusals` says per flow why it cannot take the data; each refusal is also a dead letter among
    the runs.
    """

    entry: Entry
    runs: list[RoutedRun]
    refusals: dict[str, str]
    members: Sequence[RoutedMember] = ()

    @property
    def refused_by_all(self) -> bool:
        """Whether every flow refuses the data, so that the sender can be told instead."""
        if not self.refusals:
            return False
        return len(self.refusals) == len(self.runs) + len(self.entry.members)


def route(event: Event, flows: Sequence[AnyFlow], *, after_run_action: bool = False) -> Routed:
    """Ask every flow about the event; each one ends as a run, a dead letter or a decision."""
    decisions: list[Decision] = []
    entry = Entry(event, [], decisions, after_run_action)
    routed = Routed(entry, [], {})
    if event.hops > MAX_HOPS:
        decisions.append(_cycle(event.hops))
        return routed
    problem = _problem_of(event) if event.extensions else None
    for flow in flows:
        own = event.own()  # also for one flow: its trigger may share mappings among its events
        _ask(flow, event, own, problem, routed, decisions)
        if flow.window is not None and routed.runs and routed.runs[-1][1] is flow:
            _offer(flow, flow.window, event, routed)
    if not routed.runs and not entry.members:
        if not decisions:
            decisions.append(_UNMATCHED)
        elif entry.after_run_action and any(made.reason is Reason.SHADOW for made in decisions):
            entry.after_run_action = False  # what was to be done with it is not done
    return routed


def route_together(
    columns: EventColumns, flow: AnyFlow, *, after_run_action: bool = False
) -> Routed | None:
    """Route events that the flow collects as `route` does each; None where one does not fit."""
    window = flow.window
    assert window is not None and flow.collects
    try:
        arguments = flow.bind_columns(columns)
    except Exception:  # noqa: BLE001  the author's code: `route` tells which event it is
        return None
    first = columns[0]
    member = _member(flow, window, first, "")
    entry = Entry(first, after_run_action=after_run_action, members=(member,), columns=columns)
    return Routed(entry, [], {}, ((member, first, arguments),))


def _ask(
    flow: AnyFlow,
    event: Event,
    own: Event,
    unreadable: str | None,
    routed: Routed,
    decisions: list[Decision],
) -> None:
    """Ask one flow; its run gets `own`, the event or a copy of it."""
    run_id = mint_id() if flow.window is None else ""  # a window takes the run's place
    run = NewRun(run_id, flow.name, RunState.QUEUED)
    run.code_version, run.conditions = flow.code_version, flow.conditions
    asked = event.own() if flow.asks else event
    arguments: Mapping[str, Any] | None = None
    binds = False
    try:
        if unreadable is not None:
            raise InvalidData(unreadable)
        if flow.when is not None and not flow.wants(asked):
            decisions.append(_filtered(flow))
            return
        if event.extensions and ID_ERROR in event.extensions:
            raise _NoId(event.extensions[ID_ERROR])
        binds = True
        arguments = flow.bind(own) if flow.window is None else flow.bind_member(own)
        binds = False
        if flow.ordered_by is not None or flow.keyed or flow.priority is not None:
            _set_keys(run, flow, asked)
    except _NoId as error:
        run.state = RunState.FAILED
        run.error = RunError("id_error", str(error))
    except InvalidData as error:
        run.state = RunState.FAILED
        message = secrets.mask(str(error))
        run.error = RunError("invalid_data", message)
        routed.refusals[flow.name] = message
    except Exception as error:  # noqa: BLE001  the author's code: a dead letter, replayable after a fix
        run.state = RunState.FAILED
        run.error = _unbound(error) if binds else failed(flow, event, error)
    if flow.shadow:
        decisions.append(_shadowed(run, routed))
        return
    routed.entry.runs.append(run)
    routed.runs.append((run, flow, own, arguments))


def _set_keys(run: NewRun, flow: AnyFlow, asked: Event) -> None:
    """Ask a flow for the ordering key of a run, its keys and its class."""
    if flow.ordered_by is not None:
        run.order_key = secrets.refuse_live(flow.order_key(asked), "the ordering key")
    if flow.keyed:
        run.keys = keys_of(flow, asked)
    if flow.priority is not None:
        run.priority = class_of(flow, asked)
        run.keys = with_order(run.keys, run.order_key, run.priority)


def _offer(flow: AnyFlow, window: Window, event: Event, routed: Routed) -> None:
    """Offer an event to the window of a flow, in place of the run that it would start."""
    run, _, own, arguments = routed.runs[-1]
    if run.state is RunState.FAILED or arguments is None:
        run.id = mint_id()
        return  # it cannot be read: a dead letter of its own
    try:
        asked = event.own() if flow.asks else event
        key = secrets.refuse_live(flow.window_key(asked), "the key of per=")
    except Exception as error:  # noqa: BLE001  the author's code, as in `_ask`
        run.id, run.state, run.error = mint_id(), RunState.FAILED, failed(flow, event, error)
        return
    routed.runs.pop()
    routed.entry.runs.pop()
    member = _member(flow, window, event, key)
    member.order_key, member.keys, member.priority = run.order_key, run.keys, run.priority
    routed.entry.members = (*routed.entry.members, member)
    routed.members = (*routed.members, (member, own, arguments))


def _member(flow: AnyFlow, window: Window, event: Event, key: str | None) -> NewMember:
    timeout = window.on_timeout
    return NewMember(
        flow=flow.name,
        settings=window.settings,
        part=_part(window, event),
        key=key,
        firing=flow.firing,
        on_timeout=None if timeout is None else timeout.firing,
    )


def _part(window: Window, event: Event) -> str:
    """Return the name of the trigger of a window by which an event has come."""
    if event.trigger not in EMITTERS:
        return event.trigger
    for trigger in window.triggers:
        if isinstance(trigger, StartsOnType) and matches(trigger.event_type, event.type):
            return trigger.name
    return window.triggers[0].name  # one that was made by hand


class _NoId(Exception):
    """Raised for an event whose trigger could not ask for its id (`id=`); says why."""


_UNMATCHED = Decision("", Reason.UNMATCHED, "no flow listens to this event")


def _cycle(hops: int) -> Decision:
    facts = {"count": hops, "limit": MAX_HOPS}
    return Decision("", Reason.CYCLE, f"the event is {hops} hops from its origin", facts)


def _filtered(flow: AnyFlow) -> Decision:
    asked = flow.condition
    assert asked is not None  # it has said no
    facts: dict[str, Fact] = {"condition": asked.words, "file": asked.file, "line": asked.line}
    return Decision(flow.name, Reason.FILTERED, f"{asked.words} at {asked.location}", facts)


def _shadowed(run: NewRun, routed: Routed) -> Decision:
    """Return what would have become of a run of a flow that is a shadow."""
    words = "a run would have started"
    facts: dict[str, Fact] = {"rule": "shadow=True", "would": "start"}
    if run.order_key is not None:
        facts["key"] = run.order_key
    if run.error is not None:
        facts["would"] = "fail"
        words = f"a run would have failed at once: {run.error.type}: {run.error.message}"
        routed.refusals.pop(run.flow, None)
    return Decision(run.flow, Reason.SHADOW, words, facts)


def _unbound(error: Exception) -> RunError:
    message = f"{words_of(error)} (in the code of a parameter's type)"
    return RunError("binding_error", secrets.mask(message))


def _problem_of(event: Event) -> str | None:
    """Return why an event cannot be read, if its trigger says so."""
    if _UNREADABLE.isdisjoint(event.extensions):
        return None
    found = ((thing, event.extensions.get(name)) for name, thing in _UNREADABLE_THINGS)
    problems = (f"the {thing} cannot be read: {said}" for thing, said in found if said is not None)
    return next(problems, None)


_UNREADABLE_THINGS = (("fileerror", "file"), ("recorderror", "record"))
"""Extensions in which a trigger says that its event cannot be read, and of what."""

_UNREADABLE = frozenset(name for name, _ in _UNREADABLE_THINGS)
