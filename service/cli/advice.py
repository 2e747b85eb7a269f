"""What to do next about a run, as commands; the likeliest first."""

from __future__ import annotations

from typing import Any

Advice = tuple[str, str]
"""A command, and what it does."""


def advice_on(run: dict[str, Any], name: str) -> list[Advice]:
    """Return what an operator may do about a run, called `name` in the commands."""
    state = run["state"]
    if state == "failed":
        return _failed(run, name)
    if run["undo"] == "failed":
        return [(f"turnout retry {name}", "finishes the undo")]
    if run["undo"] == "running":
        return [(f"turnout logs {name} --follow", "follows its undo")]
    if state == "waiting":
        return _waiting(run, name)
    if state == "retrying":
        return [(f"turnout retry {name}", "tries now"), _cancel(name)]
    if state in ("queued", "scheduled"):
        return [(f"turnout why {name}", "says what it waits for"), _cancel(name)]
    if state == "running":
        return [(f"turnout logs {name} --follow", "follows what it logs"), _cancel(name)]
    return []


def _failed(run: dict[str, Any], name: str) -> list[Advice]:
    drop = (f"turnout dead drop {name}", "takes it off the list of dead letters")
    replay = (f"turnout dead replay {name}", "runs its flow anew, from its event")
    if run["undo"] == "failed":
        return [(f"turnout retry {name}", "finishes the undo"), *([drop] if run["dead"] else [])]
    kind = "" if run["error"] is None else run["error"]["type"]
    if kind == "InvalidData" or not run["attempts"]:
        again = [
            (f"turnout dead replay {name}", "runs it, once the flow or the sender is corrected")
        ]
    elif kind == "code_changed" or run["undo"] == "done":
        again = [replay]
    else:
        step = (run["error"] or {}).get("step")
        how = f"runs it again from {step}" if step else "runs it again; recorded steps are kept"
        again = [(f"turnout retry {name}", how), replay]
        if not run["dead"]:
            again = again[:1]
    return [*again, *([drop] if run["dead"] else [])]


def _waiting(run: dict[str, Any], name: str) -> list[Advice]:
    cause = (run["waiting"] or {}).get("cause")
    if cause == "approval":
        return [
            (f"turnout approve {name}", "says yes"),
            (f"turnout approve {name} --reject WHY", "says no"),
            (f"turnout approvals {name}", "has the link of the page that asks"),
        ]
    return [(f"turnout why {name}", "says what it waits for"), _cancel(name)]


def _cancel(name: str) -> Advice:
    return (f"turnout cancel {name}", "ends it and undoes what it did")
