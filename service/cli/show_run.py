"""What `turnout show` prints of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from . import tables
from .advice import advice_on
from .output import complain, heading, print_facts, safe, say, short
from .tables import Column, short_ids, table
from .times import stamp, with_local_times
from .tracebacks import folded
from .words import error_line, location_of, step_name, step_state, undo_words

_PAYLOAD_LINES = 40
_LOG_LINES = 40
_LABEL = 10
_ERROR_CHARACTERS = 2000


def print_run(run: dict[str, Any]) -> None:
    """Print a run: what matters most first."""
    name = short_ids([run["id"]], among=0)[run["id"]]
    heading(f"run {name}  {run['flow']}  {run['state']}{'  (a dead letter)' * run['dead']}")
    _print_error(run["error"])
    if run["waits_for"]:
        print_facts(("waits", with_local_times(run["waits_for"])))
    _print_advice(run, name)
    _print_facts(run)
    _print_event(run["event"])
    _print_members(run)
    _print_attempts(run["history"])
    _print_steps(run)
    _print_artefacts(run["artefacts"], name)
    _print_answers(run["answers"])
    if run["error"] is not None and run["error"]["traceback"]:
        heading("traceback")
        say(folded(run["error"]["traceback"]))
    print_logs(run, in_full=False)


def _print_error(error: dict[str, Any] | None) -> None:
    if error is None:
        return
    text = safe(short(f"{error['type']}: {error['message']}", _ERROR_CHARACTERS))
    for number, line in enumerate(_wrapped(text)):
        label = "error" if number == 0 else ""
        click.echo(click.style(f"{label:<9} ", dim=True) + click.style(line, fg="red"))
    step = f"in step {step_name(error['step'])}" if error["step"] else ""
    where = ", ".join(part for part in (step, location_of(error["traceback"])) if part)
    print_facts(("", where))


def _wrapped(text: str) -> list[str]:
    """Return a text in lines that fit beside their label."""
    from textwrap import wrap

    width = tables.terminal_width()
    return [text] if width is None else wrap(text, max(width - _LABEL, 20)) or [""]


def _print_advice(run: dict[str, Any], name: str) -> None:
    advice = advice_on(run, name)
    width = max((len(command) for command, _ in advice), default=0)
    for number, (command, what) in enumerate(advice):
        label = "next" if number == 0 else ""
        click.echo(f"{click.style(f'{label:<9} ', dim=True)}{safe(command):<{width}}  {safe(what)}")


def _print_facts(run: dict[str, Any]) -> None:
    say("")
    print_facts(
        ("id", run["id"]),
        ("flow", f"{run['flow']}  code {run['code_version'] or 'unknown'}"),
        ("about", run["description"]),
        ("owner", run["owner"]),
        ("tags", ", ".join(run["tags"])),
        ("reason", run["reason"]),
        ("forced", "past the mode of its flow" if run["forced"] else None),
        ("cancelled", f"by {run['cancelled_by']}" if run["cancelled_by"] else None),
        ("undo", undo_words(run["undo"], run["undo_failed"])),
        ("attempts", f"{run['attempts']}{_counted(', crashes ', run['crashes'])}"),
        ("replay", run["replay"] or None),
        ("queued", stamp(run["queued_at"])),
        ("due", stamp(run["due_at"]) if run["finished_at"] is None else None),
        ("started", stamp(run["started_at"])),
        ("finished", stamp(run["finished_at"])),
        ("key", run["order_key"]),
        ("result", compact(run["result"])),
    )


def _print_event(event: dict[str, Any] | None) -> None:
    heading("event")
    if event is None:
        say("deleted: its retention is over")
        return
    print_facts(
        ("id", event["id"]),
        ("trigger", event["trigger"]),
        ("type", event["type"]),
        ("source", event["source"]),
        ("subject", event["subject"]),
        ("time", stamp(event["time"])),
    )
    lines = _pretty(event.get("data", event.get("data_base64"))).splitlines()
    for line in lines[:_PAYLOAD_LINES]:
        say(f"  {line}")
    if len(lines) > _PAYLOAD_LINES:
        say(f"  … {len(lines) - _PAYLOAD_LINES} more lines; --json shows all")


def _print_members(run: dict[str, Any]) -> None:
    """Print the events of the window of a run, of which the one above is the first."""
    members = run["members"]
    if not members:
        return
    heading(f"events of the window: {run['events']}")
    table(
        [Column("#"), Column("event"), Column("trigger", 20), Column("accepted", time=True)],
        [(each["position"], each["event_id"], each["trigger"], each["at"]) for each in members],
        empty="",
    )
    if run["events"] > len(members):
        say(f"  … {run['events'] - len(members)} more")


def _print_attempts(history: list[dict[str, Any]]) -> None:
    if not history:
        return
    heading("attempts")
    table(
        (
            Column("attempt"), Column("state"), Column("started", time=True), Column("took"),
            Column("error", 12),
        ),
        (
            (
                numbered, attempt["state"], attempt["started_at"],
                _took(attempt["started_at"], attempt["finished_at"]), error_line(attempt["error"]),
            )
            for numbered, attempt in zip(_numbers(history), history, strict=True)
        ),
        empty="",
    )  # fmt: skip


def _numbers(history: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the number of each attempt; an operator's retry begins to count anew."""
    retries, last = 0, 0
    for attempt in history:
        retries += attempt["attempt"] <= last
        last = attempt["attempt"]
        yield f"{last}{f' of retry {retries}' if retries else ''}"


def _print_steps(run: dict[str, Any]) -> None:
    if not run["steps"]:
        return
    heading("steps")
    table(
        (
            Column("step", 16), Column("state", 10), Column("tries"), Column("took"),
            Column("result or error", 12),
        ),
        (_step_row(step, run) for step in run["steps"]),
        empty="",
    )  # fmt: skip


def _print_artefacts(artefacts: list[dict[str, Any]], run: str) -> None:
    if not artefacts:
        return
    heading(f"artefacts: turnout artefact {run} NAME")
    table(
        (Column("name", 16), Column("type", 12), Column("bytes"), Column("step", 10)),
        (
            (each["name"], each["type"], f"{each['bytes']:,}", step_name(each["step"]))
            for each in artefacts
        ),
        empty="",
    )


def _print_answers(answers: list[dict[str, Any]]) -> None:
    if not answers:
        return
    heading("approvals")
    table(
        (
            Column("step", 10), Column("answer"), Column("at", time=True), Column("through"),
            Column("name, as typed", 8),
        ),
        (
            (
                each["step"], "yes" if each["approved"] else "no", each["at"], each["via"],
                each["by"],
            )
            for each in answers
        ),
        empty="",
    )  # fmt: skip


def _counted(words: str, count: int) -> str:
    return f"{words}{count}" if count else ""


def _step_row(step: dict[str, Any], run: dict[str, Any]) -> tuple[object, ...]:
    state = step_state(step, is_over=run["finished_at"] is not None)
    what = "(stored as a pickle)" if step["encoding"] == "pickle" else compact(step["result"])
    if step["left_out"]:
        what = "(left out: all results together are too large)"
    if step["file"] is not None:
        what = f"(stored in {step['file']})"
    if step["fallback"]:
        state = "fallback"
        what = f"{what} after {error_line(step['error'])}"
    elif step["error"] is not None:
        what = error_line(step["error"])
    if step["cached"]:
        state = "cached"
        what = f"{what} from run {step['origin']}"
    elif step["origin"] is not None:
        what = f"run {step['origin']}  {what}".rstrip()
    if step["state"] == "waiting" and isinstance(step["result"], dict):
        what = _asked(step["result"])
    took = _took(step["started_at"], step["finished_at"])
    return step_name(step["key"]), state, step["tries"], took, what


def _asked(note: dict[str, Any]) -> str:
    """Return what a waiting step waits for: a person, an event, a look, an instant."""
    if "poll" in note:
        looks = f"{note['looks']} looks, the next at {stamp(note['next'])}"
        return f"for {note['poll']}: {looks}{note['said'] and ': ' + note['said']}"
    what = note.get("approval") or note.get("event")
    until = f"until {stamp(note['until'])}" if note.get("until") else ""
    return ", ".join(part for part in (what and f"for {what}", until) if part)


def _took(started: str, finished: str | None) -> str:
    from datetime import datetime

    from .output import lasted

    if finished is None:
        return ""
    return lasted(datetime.fromisoformat(started), datetime.fromisoformat(finished))


# ---------------------------------------------------------------- log lines


def only_task(run: dict[str, Any], task: str) -> dict[str, Any]:
    """Return the document with only the steps and log lines of a task."""
    steps = [step for step in run["steps"] if task in (step["task"], step["key"])]
    if not steps:
        known = ", ".join(dict.fromkeys(step["task"] for step in run["steps"])) or "none"
        complain(f"no step of task {task!r} is recorded; recorded: {known}")
    keys = {step["key"] for step in steps} | {task}

    def is_of_task(line: Any) -> bool:
        key = line.get("step", "") if isinstance(line, dict) else ""
        return key in keys or key.rpartition("/")[2].partition("#")[0] == task

    history = [
        attempt | {"log": [line for line in attempt["log"] if is_of_task(line)]}
        for attempt in run["history"]
    ]
    return run | {"steps": steps, "history": history}


def logs_of(run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the log lines of a run, each with its attempt."""
    for attempt in run["history"]:
        for line in attempt["log"]:
            told = line if isinstance(line, dict) else {"message": line}
            yield {"run": run["id"], "attempt": attempt["attempt"], **told}


def print_logs(run: dict[str, Any], *, in_full: bool) -> None:
    """Print the log of each attempt, or its last lines."""
    for number, attempt in zip(_numbers(run["history"]), run["history"], strict=True):
        lines = attempt["log"]
        if not lines:
            continue
        heading(f"log of attempt {number}")
        shown = lines if in_full else lines[-_LOG_LINES:]
        if len(shown) < len(lines):
            say(f"… {len(lines) - len(shown)} lines before; turnout logs {run['id']} shows all")
        for line in shown:
            say(log_line(line))


def log_line(line: Any) -> str:
    """Return a stored log line as people read it."""
    if not isinstance(line, dict):
        return str(line)
    rest = dict(line)
    rest.pop("logger", None)  # that of turnout's own lines; an author's have none
    at, level = rest.pop("at", None), rest.pop("level", "")
    words, trace = rest.pop("message", ""), str(rest.pop("traceback", ""))
    fields = " ".join(f"{name}={compact(value)}" for name, value in rest.items())
    head = "  ".join(part for part in (stamp(at), f"{level:<7}", str(words), fields) if part)
    return f"{head}\n{trace.rstrip()}" if trace else head


def compact(value: Any) -> str:
    """Return a value as one short line of JSON."""
    from turnout.service.operate.documents import encode

    return "" if value is None else short(encode(value).decode("utf-8"))


def _pretty(value: Any) -> str:
    import json

    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, indent=2, ensure_ascii=False)
