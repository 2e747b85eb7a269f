"""`turnout why`: what became of an event, and why a run is where it is."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from .options import run_async, with_json, with_settings
from .output import heading, print_facts, print_json, say
from .times import with_local_times
from .words import error_line

if TYPE_CHECKING:
    from turnout.service.project import Project
    from turnout.service.settings import Settings


@click.command()
@click.argument("name", metavar="EVENT|RUN")
@click.argument("paths", nargs=-1, metavar="[FLOWS...]", type=click.Path(path_type=Path))
@with_json
@with_settings
def why(settings: Settings, name: str, paths: tuple[Path, ...], as_json: bool) -> None:
    """Explain what an event started and what not, or why a run waits or has ended.

    A running service asks its flows about the event again, with the code it has loaded, and shows
    the values that their conditions read. FLOWS are asked instead if you name them, also while no
    service runs. Asking again starts nothing.

    \b
    turnout why 3f9a1c2b
    turnout why 3f9a1c2b flows.py
    """
    for document in run_async(_explained(settings, name, paths)):
        if as_json:
            print_json(document)
        elif "because" in document:
            _print_run(document)
        else:
            _print_event(document)


async def _explained(
    settings: Settings, name: str, paths: tuple[Path, ...]
) -> list[dict[str, Any]]:
    from turnout.service.operate.why import why

    from .session import open_journal_reader

    if not paths:
        answered = await _from_service(settings, name)
        if answered is not None:
            return answered
    project = _load(paths) if paths else None
    async with open_journal_reader(settings) as reader:
        return await why(reader, name, project=project)


async def _from_service(settings: Settings, name: str) -> list[dict[str, Any]] | None:
    """Return the answer of the running service, None without one, or if it does not know it."""
    from turnout.service.domain.errors import TurnoutError

    from .session import open_service

    try:
        async with open_service(settings) as client:
            return list((await client.call("GET", f"/api/why/{quote(name, safe='')}"))["items"])
    except TurnoutError:
        return None


def _load(paths: tuple[Path, ...]) -> Project:
    from turnout.service.project.loader import load

    return load(paths)


# ---------------------------------------------------------------- an event


def _print_event(event: dict[str, Any]) -> None:
    heading(f"event {event['id']}")
    print_facts(
        ("trigger", event["trigger"]),
        ("type", event["type"]),
        ("source", event["source"]),
        ("accepted", event["accepted_at"]),
    )
    runs = {run["id"]: run for run in event["runs"]}
    for flow in event["flows"]:
        _print_flow(flow, runs, event["windows"])
    for decision in event["decisions"]:
        if not decision["flow"]:
            _print_decision(decision)
    if not event["flows"] and not event["decisions"]:
        say("  no flow listens for it")


def _print_flow(
    flow: dict[str, Any], runs: dict[str, dict[str, Any]], windows: list[dict[str, Any]]
) -> None:
    """Print what became of an event at one flow."""
    for run_id in flow["runs"]:
        _print_started(runs[run_id])
    for decision in flow["decisions"]:
        _print_decision(decision)
    for window in windows:
        if window["flow"] == flow["flow"] and window["state"] == "open":
            _print_held(window)
    if flow["answer"] == "not_asked":
        say(f"  {flow['flow']}: not asked (it did not listen to the event when it came)")
    if flow["now"] is not None:
        _print_now(flow["now"])


def _print_started(run: dict[str, Any]) -> None:
    say(f"  {run['flow']}: run {run['id']} {run['state']}  {error_line(run['error'])}".rstrip())
    if run.get("waits_for"):  # an older service does not tell
        say(f"      it waits: {with_local_times(run['waits_for'])}")


def _print_held(window: dict[str, Any]) -> None:
    due = f", due at {window['due_at']}" if window["due_at"] else ", suspended"
    held = f"{window['events']} event{'s' * (window['events'] != 1)}"
    say(f"  {window['flow']}: waits in window {window['id']}: {window['rule']}, {held}{due}")


def _print_decision(decision: dict[str, Any]) -> None:
    subject = decision["flow"] or "the event"
    about = f" ({decision['detail']})" if decision["detail"] else ""
    at = f" at {decision['at']}" if decision["at"] else ""
    say(f"  {subject}: {decision['reason']}{about}{at}")
    facts = {name: value for name, value in decision["facts"].items() if name in _SHOWN_FACTS}
    if facts:
        told = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items())
        say(f"      {told}")


def _print_now(now: dict[str, Any]) -> None:
    """Print what a flow would do with the code that is loaded now, and the values that it reads."""
    read = "; ".join(f"{path} = {text}" for path, text in now["read"].items())
    words = {
        "start": "it would start",
        "join": "it would join a window",
        "fail": f"it would fail: {error_line(now['error'])}",
    }
    would = words.get(now["would"], f"it would be {now['would']}")
    if not now["listens"]:
        would = "it does not listen any more"
    asked = f", {now['condition']} reads {read}" if read else ""
    say(f"      asked again with the current code: {would}{asked}")


_SHOWN_FACTS = ("other", "rule", "key", "count", "limit", "period", "next_free")
"""The facts of a decision that its sentence may leave out."""


# ---------------------------------------------------------------- a run


def _print_run(run: dict[str, Any]) -> None:
    heading(f"run {run['id']}")
    print_facts(("flow", run["flow"]), ("state", run["state"]), ("event", run["event_id"]))
    say(f"  {with_local_times(run['because'])}")
    facts = {} if run["waiting"] is None else run["waiting"]["facts"]
    print_facts(*((f"    {name.replace('_', ' ')}", value) for name, value in facts.items()))
    for decision in run["decisions"]:
        _print_decision(decision)
