"""What runs that have not ended wait for: from the journal, and from the running service.

The journal tells what a run has asked for: an instant, an event, a person, a child run. What keeps
a run from starting that could start now, only the service knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeAlias

from turnout.service.domain.decisions import Fact
from turnout.service.domain.run import UNFINISHED, Run, RunState
from turnout.service.domain.units import format_duration, to_the_second
from turnout.service.domain.waiting import Cause, Waiting
from turnout.service.journal.contract import Reads
from turnout.service.journal.records import (
    EVERYTHING,
    MOST_COUNTED,
    ORDER_RULE,
    InLine,
    OpenStep,
    StoredPause,
    StoredWindow,
)

WaitsFor: TypeAlias = Callable[[Run], Waiting | None]
"""Tells what keeps a run from starting, or a running one from going on."""


async def waits_of(
    reads: Reads, runs: Iterable[Run], waits_for: WaitsFor | None
) -> Mapping[str, Waiting]:
    """Return what each of these runs waits for, by its id; nothing of those that wait for nothing.

    `waits_for` is the running service's; without it nothing starts.
    """
    unfinished = [run for run in runs if run.state in UNFINISHED]
    waiting = [run.seq for run in unfinished if run.state is RunState.WAITING]
    steps: dict[int, list[OpenStep]] = {}
    for step in await reads.open_steps(waiting) if waiting else ():
        steps.setdefault(step.run_seq, []).append(step)
    found: dict[str, Waiting] = {}
    lines: dict[str, InLine] = {}
    heads: dict[str, Run | None] = {}
    for run in unfinished:
        known = None if waits_for is None else waits_for(run)
        if run.state is RunState.SCHEDULED and run.due_at is None:
            known = _in_window(await reads.window_of_run(run.seq)) or known
        if known is None:
            known = _journaled(run, steps.get(run.seq, ()), is_served=waits_for is not None)
        if known is not None:
            if known.cause is Cause.ORDER:
                known = await _behind_head(known, reads, heads)
            found[run.id] = known
            if run.state is RunState.QUEUED and known.cause in _LINES:
                lines[run.id] = _line_of(run, known)
    if lines:
        positions = await reads.queue_positions(list(lines.values()))
        for run_id, position in zip(lines, positions, strict=True):
            found[run_id] = _in_line(found[run_id], position)
    return found


_LINES = frozenset({Cause.LIMIT, Cause.RATE, Cause.ORDER, Cause.MODE, Cause.BREAKER, Cause.SLOT})
"""What runs wait for in line."""


async def _behind_head(waiting: Waiting, reads: Reads, heads: dict[str, Run | None]) -> Waiting:
    """Say how a key goes on whose head has failed and blocks it (`on_dead="block"`).

    `heads` are those that were read; of a long list of runs the first heads are looked at only.
    """
    head = str(waiting.facts.get("other", ""))
    if head not in heads:
        heads[head] = await reads.run(head) if head and len(heads) < _MOST_HEADS else None
    known = heads[head]
    if known is None or known.state is not RunState.FAILED:
        return waiting
    words = (
        f"which has failed: `turnout retry {head}` tries it again, `turnout dead drop {head}` "
        "lets the key go on"
    )
    return replace(waiting, detail=f"{waiting.detail}, {words}")


_MOST_HEADS = 50


def _line_of(run: Run, waiting: Waiting) -> InLine:
    """Return the line of a queued run: of its key, where it waits for one, else of its flow."""
    key = waiting.facts.get("key")
    if waiting.cause is Cause.ORDER:
        return InLine(run.arrival, run.flow, ORDER_RULE, run.order_key)
    rule_ids = [
        rule_id for rule_id, text in (run.keys or {}).items() if text is not None and text == key
    ]
    if not rule_ids:
        return InLine(run.arrival, run.flow, None, None)
    return InLine(run.arrival, run.flow, rule_ids[0], str(key))


def _in_line(waiting: Waiting, position: int) -> Waiting:
    number = (
        f"number {position}" if position < MOST_COUNTED else f"beyond number {MOST_COUNTED - 1}"
    )
    words = f"{waiting.detail}; it is {number} in line"
    return replace(waiting, detail=words, facts={**waiting.facts, "place": position})


def _journaled(run: Run, steps: Sequence[OpenStep], *, is_served: bool) -> Waiting | None:
    """Return what a run has asked for itself."""
    if run.state is RunState.WAITING and steps:
        return _at_steps(steps)
    if run.state in (RunState.SCHEDULED, RunState.RETRYING, RunState.WAITING) and run.due_at:
        what = "its next try" if run.state is RunState.RETRYING else "its time"
        until = to_the_second(run.due_at)
        return Waiting(Cause.INSTANT, f"for {what}, at {until}", {"until": run.due_at})
    if is_served:
        return None
    return Waiting(Cause.SERVICE, "for a service: none is running")


def _in_window(window: StoredWindow | None) -> Waiting | None:
    """Return what a run waits for whose window is open."""
    if window is None or window.state != "open":
        return None
    facts: dict[str, Fact] = {"window": window.id, "count": window.members}
    words = f"for its {window.settings.kind}(…) to close"
    if window.due_at is not None:
        facts["until"] = window.due_at
        words += f", at {to_the_second(window.due_at)}"
    return Waiting(Cause.INSTANT, f"{words}; it has {window.members} events", facts)


def _at_steps(steps: Sequence[OpenStep]) -> Waiting:
    """Return what the first open step of a run waits for, or the first several awaited together."""
    together = [_at_step(step) for step in _awaited_together(steps)]
    others = len(steps) - 1 - len(together)
    waiting = together[0] if together else _at_step(steps[0])
    detail = waiting.detail
    if len(together) > 1:
        shown = [each.detail.removeprefix("for ") for each in together[:_MOST_SHOWN]]
        detail = f"for the first of {len(together)}: {' or '.join(shown)}"
        others += max(0, len(together) - _MOST_SHOWN)
    return replace(waiting, detail=f"{detail}{f' (and {others} more)' if others else ''}")


def _awaited_together(steps: Sequence[OpenStep]) -> list[OpenStep]:
    """Return the waits of the `first` that the first step is, or is one of."""
    for step in steps:
        keys = step.note.get("waits", ())
        if keys and (step is steps[0] or steps[0].key in keys):
            return [each for each in steps if each.key in keys]
    return []


_MOST_SHOWN = 3


def _at_step(step: OpenStep) -> Waiting:
    """Return what an open step of a run waits for."""
    if "poll" in step.note:
        return _polls(step)
    facts: dict[str, Fact] = {"step": step.key}
    until = step.note.get("until")
    if until is not None:
        facts["until"] = datetime.fromisoformat(until)
    if step.origin is not None:
        facts["other"] = step.origin
        cause, detail = Cause.CHILD, f"for its child run {step.origin} of {step.task}"
    elif "event" in step.note:
        fields = ", ".join(f"{name}={text}" for name, text in step.note.get("match", {}).items())
        facts["event"] = step.note["event"]
        cause = Cause.EVENT
        detail = f"for an event of {step.note['event']}{f' with {fields}' if fields else ''}"
    elif "approval" in step.note:
        cause, detail = Cause.APPROVAL, f"for the approval of {step.note['approval']}"
    elif step.state == "retrying":
        cause, detail = Cause.INSTANT, f"for the next try of {step.task}"
    else:
        cause, detail = Cause.INSTANT, "for its time"
    if until is not None:
        detail += f", until {to_the_second(datetime.fromisoformat(until))}"
    return Waiting(cause, detail, facts)


def _polls(step: OpenStep) -> Waiting:
    """Return what a run polls, how often it has looked, and when it looks next."""
    note = step.note
    since, due_at = datetime.fromisoformat(note["since"]), datetime.fromisoformat(note["next"])
    last, end = note.get("last"), note.get("until")
    taken = (datetime.fromisoformat(last) - since if last else timedelta(0)).total_seconds()
    lasts = format_duration(timedelta(seconds=round(taken) if taken > 1 else taken))
    if end is not None:
        lasts += f" of {format_duration(datetime.fromisoformat(end) - since)}"
    detail = f"polls {note['poll']}, look {note['looks'] + 1}, next at {to_the_second(due_at)}"
    facts: dict[str, Fact] = {"step": step.key, "until": due_at, "poll": note["poll"]}
    facts["looks"] = note["looks"]
    said = f"; the last one said: {note['said']}" if note["said"] else ""
    return Waiting(Cause.INSTANT, f"for a result: {detail}, for {lasts}{said}", facts)


def paused(flow: str, pause: StoredPause) -> Waiting:
    """Return what a run of a paused flow waits for."""
    facts: dict[str, Fact] = {"since": pause.since, "until": pause.until}
    facts |= {"by": pause.by or None, "note": pause.note or None}
    what = "everything" if pause.name == EVERYTHING else f"flow {flow!r}"
    words = f"for {what} to be resumed"
    if pause.until is not None:
        words += f", at {to_the_second(pause.until)} at the latest"
    told = ", ".join(text for text in (pause.by and f"by {pause.by}", pause.note) if text)
    given = {name: value for name, value in facts.items() if value is not None}
    return Waiting(Cause.PAUSE, f"{words} (paused {told})" if told else words, given)
