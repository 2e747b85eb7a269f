"""The log lines of attempts that are under way here; those of ended ones are in the journal."""

from __future__ import annotations

from typing import Any

from turnout.service.domain.payload import read_json
from turnout.service.telemetry.logs import logs_in_use


def live_lines(*, run_id: str | None = None, flow: str | None = None) -> list[dict[str, Any]]:
    """Return the lines so far of attempts under way: of a run, of a flow, or of all."""
    found: list[dict[str, Any]] = []
    for log in logs_in_use():
        fields = log.fields()
        if run_id not in (None, fields["run"]) or flow not in (None, fields["flow"]):
            continue
        attempt = {name: fields[name] for name in ("run", "flow", "attempt")}
        found += [{**attempt, **read_json(line)} for line in log.lines]
    found.sort(key=lambda line: str(line.get("at", "")))
    return found
