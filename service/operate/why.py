"""Why: what became of an event at each flow, and why a run is where it is.

The answer is read from the journal. Where flow files are loaded, a stored event is asked again with
their code: that shows the values a condition reads, and what the event would do now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from turnout.service.domain.event import Event
from turnout.service.domain.run import UNFINISHED, Run, RunState
from turnout.service.domain.waiting import Waiting
from turnout.service.intake.questions import values_read
from turnout.service.intake.router import route
from turnout.service.journal.contract import Reads
from turnout.service.journal.records import StoredEvent, StoredWindow
from turnout.service.project import AnyFlow, Project

from .documents import event_of, listed_run, waiting_of
from .names import no_event_or_run
from .waits import WaitsFor, waits_of
from .windows import window_of


async def why(
    reads: Reads,
    name: str,
    *,
    source: str | None = None,
    project: Project | None = None,
    waits_for: WaitsFor | None = None,
) -> list[dict[str, Any]]:
    """Explain the events of this id, one for each source, or a run; raises `NotFound`."""
    stored = await reads.event(name, source=source)
    if stored:
        return [await of_event(reads, each, project, waits_for) for each in stored]
    run = await reads.run(name)
    if run is None:
        raise no_event_or_run(name)
    return [await of_run(reads, run, waits_for)]


# ---------------------------------------------------------------- an event


async def of_event(
    reads: Reads, stored: StoredEvent, project: Project | None, waits_for: WaitsFor | None
) -> dict[str, Any]:
    """Return an event with its runs, and what each flow did with it and would do now."""
    found = [await reads.run(run_id) for run_id in stored.runs]
    runs = [run for run in found if run is not None]
    document = event_of(stored, payload=True)
    windows = await reads.windows_of_event(stored.seq)
    waits = await waits_of(reads, runs, waits_for)
    document["runs"] = [listed_run(run, waits) for run in runs]
    document["flows"] = _flows(stored, runs, windows, project)
    document["windows"] = [window_of(window) for window in windows]
    return document


def _flows(
    stored: StoredEvent,
    runs: Iterable[Run],
    windows: Iterable[StoredWindow],
    project: Project | None,
) -> list[dict[str, Any]]:
    """Return for each flow whether the event matched, why not, and what it would do now."""
    answers: dict[str, dict[str, Any]] = {}
    for window in windows:
        if window.state == "open":
            answers.setdefault(window.flow, _answer(window.flow, "held"))
    for run in runs:
        answers.setdefault(run.flow, _answer(run.flow, "started"))["runs"].append(run.id)
    for made in stored.decisions:
        if made["flow"]:
            answer = answers.setdefault(made["flow"], _answer(made["flow"], made["reason"]))
            answer["decisions"].append(dict(made))
    if project is not None:
        listening = project.started_by(stored.event)
        for listener in listening:
            answers.setdefault(listener.name, _answer(listener.name, "not_asked"))
        for name, answer in answers.items():
            flow = project.flows.get(name)
            if flow is not None:
                answer["now"] = _now(flow, stored.event, listens=flow in listening)
    return list(answers.values())


def _answer(flow: str, answer: str) -> dict[str, Any]:
    return {"flow": flow, "answer": answer, "runs": [], "decisions": [], "now": None}


def _now(flow: AnyFlow, event: Event, *, listens: bool) -> dict[str, Any]:
    """Return what a flow would do with a stored event, with the code that is loaded now."""
    routed = route(event, [flow])
    run = routed.entry.runs[0] if routed.entry.runs else None
    error = None if run is None else run.error
    would = "start" if error is None else "fail"
    if routed.entry.members:
        would = "join"
    elif run is None:
        would = routed.entry.decisions[0].reason
    asked = flow.condition
    return {
        "code_version": flow.code_version,
        "listens": listens,
        "would": would,
        "condition": None if asked is None else asked.words,
        "location": None if asked is None else asked.location,
        "read": {} if asked is None else dict(values_read(flow.wants, event)),
        "error": None if error is None else error.as_dict(),
    }


# ---------------------------------------------------------------- a run


async def of_run(reads: Reads, run: Run, waits_for: WaitsFor | None) -> dict[str, Any]:
    """Return a run with why it is in its state, and the decisions made about it."""
    stored = await reads.event_of(run.seq)
    made: list[Mapping[str, Any]] = [] if stored is None else list(stored.decisions)
    decisions = [dict(each) for each in made if each["facts"].get("run") == run.id]
    waiting = (await waits_of(reads, [run], waits_for)).get(run.id)
    return run.as_dict() | {
        "because": _because(run, decisions, waiting),
        "waiting": None if waiting is None else waiting_of(waiting),
        "decisions": decisions,
    }


def _because(run: Run, decisions: list[dict[str, Any]], waiting: Waiting | None) -> str:
    """Return why a run is in its state, as a sentence."""
    if waiting is not None:
        return f"it waits: {waiting.detail}"
    if run.state is RunState.RUNNING:
        return f"it runs, attempt {run.attempts + 1}"
    if run.state is RunState.SUCCEEDED:
        return "it succeeded"
    if run.state in UNFINISHED:
        return f"it is {run.state}"
    if run.error is not None:
        where = f" in step {run.error.step}" if run.error.step else ""
        return f"it {run.state}{where}: {run.error.type}: {run.error.message}"
    last = decisions[-1] if decisions else None
    words = [f"by {run.cancelled_by}" if run.cancelled_by else "", run.reason or ""]
    if last is not None:
        words += [last["reason"], last["detail"]]
    told = ", ".join(dict.fromkeys(word for word in words if word))
    was = "was skipped" if run.state is RunState.SKIPPED else f"was {run.state}"
    return f"it {was}{f': {told}' if told else ''}"
