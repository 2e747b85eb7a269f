"""Warnings about valid flows, told by `turnout check` and at a start."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from turnout.service.domain.errors import SetupError
from turnout.service.domain.flow import Flow
from turnout.service.domain.task import Task

from . import AnyFlow

_MUTABLE = (list, dict, set, bytearray)
_WITHOUT_KEYS = frozenset({"webhook", "files", "cron", "every", "at"})
"""Kinds of triggers whose events have no key or partition, or only one that a sender wrote."""


def cautions(flows: Sequence[AnyFlow]) -> Iterator[SetupError]:
    """Yield what may surprise, with file and line, though it is right."""
    seen: set[int] = set()
    for flow in flows:
        tasks = list(_tasks_of(flow))
        declared: list[AnyFlow | Task[Any]] = [flow, *tasks]
        for warning in (
            *_of_rules(flow),
            *_of_order(flow),
            *_of_retries(flow, tasks),
            *_of_paths(flow),
            *_of_lists(flow),
        ):
            yield SetupError(f"{flow.words}: {warning}", file=flow.file, line=flow.line)
        yield from _of_state(flow)
        for each in declared:
            if id(each) not in seen:
                seen.add(id(each))
                yield from _of_defaults(each)


def _tasks_of(flow: AnyFlow) -> Iterator[Task[Any]]:
    """Yield the tasks that the function of a flow names."""
    for name in flow.function.__code__.co_names:
        value: Any = flow.function.__globals__.get(name)
        if issubclass(type(value), Task):  # by type: other objects may raise on attribute access
            yield value


def _of_rules(flow: AnyFlow) -> Iterator[str]:
    for rule in (*flow.concurrency, *(() if flow.mode is None else (flow.mode,))):
        warning = rule.warning(flow)
        if warning is not None:
            yield warning


def _of_order(flow: AnyFlow) -> Iterator[str]:
    if flow.on_dead == "block" and flow.ordered_by is None:
        yield (
            'on_dead="block" holds the ordering key of a dead letter, and the flow has none; add '
            "ordered_by=, or leave it out"
        )
    is_by_source = getattr(flow.ordered_by, "__module__", "") == "turnout.handlers.flow"
    kinds = {trigger.kind for trigger in flow.triggers}
    if is_by_source and kinds and kinds <= _WITHOUT_KEYS:
        yield (
            "ordered_by= names the key or partition of a Kafka record, and events of "
            f"{', '.join(trigger.name for trigger in flow.triggers)} usually have none, so that "
            "nothing is ordered; write ordered_by=lambda event: …"
        )


def _of_state(flow: AnyFlow) -> Iterator[SetupError]:
    if flow.keeps_state and not _runs_in_turn(flow):
        yield SetupError(
            f"{flow.words} keeps state between runs, and several of them may run at once: a "
            "run whose state another one has changed starts over; write concurrency=1, or "
            "ordered_by= for a state of each key",
            file=flow.file,
            line=flow.line,
        )


def _runs_in_turn(flow: AnyFlow) -> bool:
    """Whether runs that share a state never run at once, but for those that wait."""
    alone = any(rule.count == 1 and rule.per is None for rule in flow.concurrency)
    return alone or flow.ordered_by is not None or flow.mode is not None


def _of_retries(flow: AnyFlow, tasks: Sequence[Task[Any]]) -> Iterator[str]:
    if not flow.retry.count:
        return
    for task in tasks:
        if task.retry.count and not task.function.__module__.startswith("turnout."):
            calls = (flow.retry.count + 1) * (task.retry.count + 1)
            yield (
                f"retry={flow.retry.count} and the retry={task.retry.count} of {task.words} "
                f"multiply: one call that keeps failing is made {calls} times; keep one of them"
            )


def _of_paths(flow: AnyFlow) -> Iterator[str]:
    for trigger in flow.triggers:
        route = trigger.route if trigger.kind == "webhook" and hasattr(trigger, "route") else ""
        if route.startswith("/hooks/"):
            yield (
                f"{trigger.name} is called at /hooks{route}; a path is what comes after /hooks: "
                f'write webhook("{route.removeprefix("/hooks")}")'
            )


def _of_lists(flow: AnyFlow) -> Iterator[str]:
    window = flow.window
    if window is None or window.kind != "debounce" or window.settings.gives_list:
        return
    for name, annotation in flow.function.__annotations__.items():
        if name != "return" and str(annotation).removeprefix("<class '").startswith("list"):
            yield (
                f"parameter {name!r} is a list, and debounce(…) calls the flow with its last "
                'event; for a list of all write keep="all"'
            )


def _of_defaults(declared: Flow[..., Any] | Task[Any]) -> Iterator[SetupError]:
    for name, parameter in inspect.signature(declared.function).parameters.items():
        if isinstance(parameter.default, _MUTABLE):
            kind = type(parameter.default).__name__
            yield SetupError(
                f"{declared.words}: all runs share the one {kind} that is the default of "
                f"{name!r}, and what one adds to it stays; write `{name}: {kind} | None = None`",
                file=declared.file,
                line=declared.line,
            )
