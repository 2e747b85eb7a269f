"""An assertion for tests: that an event was decided in a certain way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from turnout.service.domain.decisions import Reason
from turnout.service.journal.records import StoredEvent
from turnout.service.project import AnyFlow


def find_decided(
    stored: Sequence[StoredEvent],
    reason: str,
    flow: AnyFlow | str | None,
    facts: Mapping[str, Any],
) -> Mapping[str, Any]:
    """Return the decision asked for; raises `AssertionError` saying what was decided instead."""
    if reason not in list(Reason):
        raise ValueError(f"{reason!r} is no reason of a decision; they are {', '.join(Reason)}")
    name = flow if flow is None or isinstance(flow, str) else flow.name
    decisions = [made for each in stored for made in each.decisions]
    for made in decisions:
        is_about = name is None or made["flow"] == name
        if is_about and made["reason"] == reason and facts.items() <= made["facts"].items():
            return made
    about = "" if name is None else f" of flow {name!r}"
    asked = "".join(f", {fact} = {value!r}" for fact, value in facts.items())
    told = "\n".join(f"  {words_of(made)}" for made in decisions) or "  nothing"
    runs = sum(len(each.runs) for each in stored)
    raise AssertionError(
        f"no decision {reason}{about}{asked}; the event started {runs} runs, and decided was:\n"
        f"{told}"
    )


def words_of(made: Mapping[str, Any]) -> str:
    """Return a decision as a line."""
    detail = f" ({made['detail']})" if made["detail"] else ""
    return f"{made['flow'] or 'the event'}: {made['reason']}{detail} {made['facts']}"
