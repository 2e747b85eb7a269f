"""`turnout show`: everything the journal knows about one run."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .options import run_async, with_json, with_settings
from .output import heading, print_facts, print_json, say, short, table

if TYPE_CHECKING:
    from turnout.service.settings import Settings


_PAYLOAD_LINES = 40


@click.command()
@click.argument("run_id", metavar="RUN")
@with_json
@with_settings
def show(settings: Settings, run_id: str, as_json: bool) -> None:
    """Show a run: its event, attempts, steps, error and log lines.

    Reads the journal, so it works while the service is down; a running service adds what the run
    waits for. RUN may be shortened to 8 or more leading characters if they are unique.

    \b
    turnout show 0198c0de-…
    turnout show 0198c0de-… --json | jq .error.traceback
    """
    document = run_async(_post_mortem(settings, run_id))
    if as_json:
        print_json(document)
    else:
        _print_run(document)


async def _post_mortem(settings: Settings, run_id: str) -> dict[str, Any]:
    from turnout.service.operate.documents import post_mortem

    from .session import open_journal_reader, waits_from_service

    async with open_journal_reader(settings) as reader:
        document = await post_mortem(reader, run_id)
    if document["finished_at"] is None:
        waits = await waits_from_service(settings, [document["id"]])
        if waits is not None:
            document["waiting"] = waits.get(document["id"])
            document["waits_for"] = (document["waiting"] or {}).get("detail")
    return document


def _print_run(run: dict[str, Any]) -> None:
    heading(f"run {run['id']}")
    print_facts(
        ("flow", f"{run['flow']}   code {run['code_version'] or 'unknown'}"),
        ("state", f"{run['state']}{'   (a dead letter)' * run['dead']}"),
        ("waits", run["waits_for"]),
        ("reason", run["reason"]),
        ("forced", "past the mode of its flow" if run["forced"] else None),
        ("cancelled", f"by {run['cancelled_by']}" if run["cancelled_by"] else None),
        ("undo", undo_words(run["undo"], run["undo_failed"])),
        ("attempts", f"{run['attempts']}{_counted(', crashes ', run['crashes'])}"),
        ("replay", run["replay"] or None),
        ("queued", run["queued_at"]),
        ("due", run["due_at"]),
        ("started", run["started_at"]),
        ("finished", run["finished_at"]),
        ("key", run["order_key"]),
        ("result", _compact(run["result"])),
    )
    _print_event(run["event"])
    if run["history"]:
        heading("attempts")
        table(
            ("attempt", "state", "started", "finished", "error"),
            (
                (
                    attempt["attempt"], attempt["state"], attempt["started_at"],
                    attempt["finished_at"] or "", error_line(attempt["error"]),
                )
                for attempt in run["history"]
            ),
            empty="",
        )  # fmt: skip
    if run["steps"]:
        heading("steps")
        table(
            ("step", "state", "tries", "seconds", "result or error"),
            (_step_row(step, run) for step in run["steps"]),
            empty="",
        )
    if run["error"] is not None:
        heading("error")
        say(error_line(run["error"], limit=2000))
        if run["error"]["traceback"]:
            say(run["error"]["traceback"].rstrip())
    for attempt in run["history"]:
        if attempt["log"]:
            heading(f"log of attempt {attempt['attempt']}")
            for line in attempt["log"]:
                say(_log_line(line))


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
        ("time", event["time"]),
    )
    lines = _pretty(event.get("data", event.get("data_base64"))).splitlines()
    for line in lines[:_PAYLOAD_LINES]:
        say(f"  {line}")
    if len(lines) > _PAYLOAD_LINES:
        say(f"  … {len(lines) - _PAYLOAD_LINES} more lines; --json shows all")


def _counted(words: str, count: int) -> str:
    return f"{words}{count}" if count else ""


def undo_words(undo: str | None, failed: Sequence[str]) -> str:
    """Return the state of a run's undo and the steps that are not undone."""
    at = f" at {', '.join(failed)}" if failed and undo == "failed" else ""
    return "" if undo is None else f"{undo}{at}"


def _step_row(step: dict[str, Any], run: dict[str, Any]) -> tuple[object, ...]:
    again = step["superseded"] and run["finished_at"] is None
    state = f"{step['state']}{', runs again' * again}"
    what = "(stored as a pickle)" if step["encoding"] == "pickle" else _compact(step["result"])
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
        state = f"cached from {step['origin']}"
    elif step["origin"] is not None:
        state = f"{state} as run {step['origin']}"
    seconds = "" if step["seconds"] is None else f"{step['seconds']:.3f}"
    return step["key"], state, step["tries"], seconds, what


def error_line(error: dict[str, Any] | None, *, limit: int = 200) -> str:
    """Return an error as one line: type, message and step."""
    if error is None:
        return ""
    where = f" (in step {error['step']})" if error["step"] else ""
    return short(f"{error['type']}: {error['message']}", limit) + where


def _log_line(line: Any) -> str:
    if not isinstance(line, dict):
        return str(line)
    rest = dict(line)
    stamp, level = rest.pop("at", ""), rest.pop("level", "")
    words, trace = rest.pop("message", ""), str(rest.pop("traceback", ""))
    fields = " ".join(f"{name}={_compact(value)}" for name, value in rest.items())
    head = "  ".join(part for part in (stamp, f"{level:<7}", str(words), fields) if part)
    return f"{head}\n{trace.rstrip()}" if trace else head


def _compact(value: Any) -> str:
    from turnout.service.operate.documents import encode

    return "" if value is None else short(encode(value).decode("utf-8"))


def _pretty(value: Any) -> str:
    import json

    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, indent=2, ensure_ascii=False)
