"""A project: the flows of all files, the triggers that feed them, and what is wrong with them.

A pure value. Equal triggers are merged; unequal ones under one name are a problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from turnout.service.domain.errors import FOREIGN, SetupError, words_of
from turnout.service.domain.event import Event
from turnout.service.domain.event_types import EMITTERS
from turnout.service.domain.flow import Flow, NamedRule, Need
from turnout.service.domain.task import Task
from turnout.service.domain.trigger import CalledTrigger, StartsOnType, Trigger

from .listeners import Listeners
from .windows import window_problems

AnyFlow = Flow[..., Any]

_WITHOUT_FILE = frozenset({"webhook", "kafka", "cron", "every", "at"})
"""Kinds of triggers whose events have no file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What `turnout serve` loads: flows and triggers by name, and which starts which."""

    flows: Mapping[str, AnyFlow] = field(default_factory=dict)
    triggers: Mapping[str, Trigger] = field(default_factory=dict)
    feeds: Mapping[str, tuple[AnyFlow, ...]] = field(default_factory=dict)
    by_type: Listeners = field(default_factory=Listeners)

    @classmethod
    def of(cls, flows: Iterable[AnyFlow]) -> Project:
        """Build a project from flows; raises the first of `problems` if there is any."""
        listed = list(flows)
        for problem in problems(listed):
            raise problem
        triggers: dict[str, Trigger] = {}
        feeds: dict[str, list[AnyFlow]] = {}
        heard: list[tuple[str, AnyFlow]] = []
        for flow in listed:
            for trigger in flow.watched:
                triggers.setdefault(trigger.name, trigger)
            for trigger in dict.fromkeys(flow.triggers):
                triggers.setdefault(trigger.name, trigger)
                feeds.setdefault(trigger.name, []).append(flow)
                if isinstance(trigger, StartsOnType):
                    heard.append((trigger.event_type, flow))
        return cls(
            flows={flow.name: flow for flow in listed},
            triggers=triggers,
            feeds={name: tuple(fed) for name, fed in feeds.items()},
            by_type=Listeners(heard),
        )

    @property
    def renamed(self) -> Mapping[str, str]:
        """The old names of flows (`was=`), each with that of the first flow that says it."""
        renamed: dict[str, str] = {}
        for flow in self.flows.values():
            if flow.was is not None:
                renamed.setdefault(flow.was, flow.name)
        return renamed

    def started_by(self, event: Event) -> tuple[AnyFlow, ...]:
        """Return the flows that listen to an event, by its trigger or, if emitted, by its type."""
        if event.trigger in EMITTERS:
            return self.by_type.of(event.type)
        return self.feeds.get(event.trigger, ())


def problems(flows: Sequence[AnyFlow], tasks: Iterable[Task[Any]] = ()) -> list[SetupError]:
    """Return every problem of these flows as one project, each with file and line.

    `tasks` are those of the files, which may take the limits that flows share.
    """
    found = shared_problems(flows, tasks)
    names: dict[str, AnyFlow] = {}
    triggers: dict[str, tuple[Trigger, AnyFlow]] = {}
    routes: dict[str, tuple[Trigger, AnyFlow]] = {}
    needs: dict[str, tuple[Need, AnyFlow]] = {}
    for flow in flows:
        first = names.setdefault(flow.name, flow)
        if first is not flow:
            found.append(
                _at(
                    flow,
                    f"flow name {flow.name!r} is taken by {first.file}:{first.line}; "
                    f'rename one, or give it a name: @flow(name="…")',
                )
            )
        found += [*_flow_problems(flow), *_respond_problems(flow, flows)]
        found += window_problems(flow, flows)
        if flow.was in {other.name for other in flows}:
            found.append(
                _at(
                    flow,
                    f"was={flow.was!r} takes over the runs of a flow that is still there; "
                    "remove that flow, or was=",
                )
            )
        found += _need_problems(flow, needs)
        for trigger in dict.fromkeys((*flow.triggers, *flow.watched)):
            found += _trigger_problems(flow, trigger, triggers, routes)
    return found


def shared_problems(flows: Iterable[AnyFlow], tasks: Iterable[Task[Any]]) -> list[SetupError]:
    """Return the rules with a name that say something else than in a flow or task before."""
    found: list[SetupError] = []
    known: dict[str, tuple[NamedRule, AnyFlow | Task[Any]]] = {}
    users: list[tuple[NamedRule, AnyFlow | Task[Any]]] = []
    for flow in flows:
        users += [(rule, flow) for rule in (*flow.concurrency, *flow.rate)]
    users += [(task.limit, task) for task in tasks if task.limit is not None]
    for rule, user in users:
        if rule.name is None:
            continue
        first, owner = known.setdefault(rule.rule_id, (rule, user))
        if first.words != rule.words:
            found.append(
                _at(
                    user,
                    f"{rule.words} is {first.words} in {owner.words} "
                    f"({owner.file}:{owner.line}); a name has one meaning: write the rule once "
                    f"and use it in both{' flows' if isinstance(user, Flow) else ''}",
                )
            )
    return found


def _at(where: AnyFlow | Task[Any], message: str) -> SetupError:
    return SetupError(message, file=where.file, line=where.line)


def _respond_problems(flow: AnyFlow, flows: Sequence[AnyFlow]) -> list[SetupError]:
    """Return triggers with `respond=True` that start more than one flow."""
    return [
        _at(
            flow,
            f"{trigger.name} answers with the result of its run (respond=True), so it feeds one "
            f"flow only, and {other.name!r} ({other.file}:{other.line}) is another",
        )
        for trigger in dict.fromkeys(flow.triggers)
        if getattr(trigger, "respond", False)
        for other in flows[: flows.index(flow)]
        if trigger in other.triggers
    ]


def _flow_problems(flow: AnyFlow) -> list[SetupError]:
    try:
        path = flow.binding.needs_path
    except SetupError as error:
        return [error]
    if path is None or not flow.triggers or {each.kind for each in flow.triggers} - _WITHOUT_FILE:
        return []
    return [
        _at(
            flow,
            f"flow {flow.name!r}: parameter {path!r} takes the path of a file, and no event of "
            f"{', '.join(each.name for each in flow.triggers)} has one; write on=files(…), or "
            "take `event: Event` or the data",
        )
    ]


def _need_problems(flow: AnyFlow, needs: dict[str, tuple[Need, AnyFlow]]) -> list[SetupError]:
    """Return the dependencies of a flow of which an earlier one says something else."""
    found = []
    for need in flow.needs:
        known, owner = needs.setdefault(need.name, (need, flow))
        if known != need:
            found.append(
                _at(
                    flow,
                    f"flow {flow.name!r} needs {need}, and flow {owner.name!r} "
                    f"({owner.file}:{owner.line}) needs {known}; say it once and give both flows "
                    f"the same value",
                )
            )
    return found


def _trigger_problems(
    flow: AnyFlow,
    trigger: Trigger,
    triggers: dict[str, tuple[Trigger, AnyFlow]],
    routes: dict[str, tuple[Trigger, AnyFlow]],
) -> list[SetupError]:
    try:
        trigger.check()
        known, owner = triggers.setdefault(trigger.name, (trigger, flow))
    except SetupError as error:
        return [_at(flow, error.message)]
    except FOREIGN as error:  # an author's own trigger, or an option of the wrong type
        return [_at(flow, f"{type(trigger).__name__} cannot be checked: {words_of(error)}")]
    if known != trigger:
        return [
            _at(
                flow,
                f"trigger {trigger.name!r} has other settings than in flow "
                f"{owner.name!r} ({owner.file}:{owner.line}); make them equal or give one name=",
            )
        ]
    if isinstance(trigger, CalledTrigger):
        shape = "/".join(
            "{}" if part.startswith("{") else part for part in trigger.route.split("/")
        )
        rival, owner = routes.setdefault(shape, (trigger, flow))
        if rival != trigger:
            return [
                _at(
                    flow,
                    f"webhook path {trigger.route!r} clashes with {rival.name!r} of flow "
                    f"{owner.name!r} ({owner.file}:{owner.line})",
                )
            ]
    return []
