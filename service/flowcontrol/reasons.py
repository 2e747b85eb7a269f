"""What a run that a gate refuses waits for, in words and as facts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from turnout.service.domain.decisions import Fact
from turnout.service.domain.waiting import Cause, Waiting

from .gate import Candidate, Refusal


def waiting_at(refusal: Refusal, run: Candidate) -> Waiting:
    """Return what a run waits for that was refused."""
    gate, answer = refusal
    facts: dict[str, Fact] = {}
    key = gate.key(run)
    if key:
        facts["key"] = key
    facts |= {name: value for name, value in gate.facts(run).items() if value is not None}
    if isinstance(answer, datetime):
        facts["next_free"] = answer
    return Waiting(gate.cause, _words(gate.cause, facts), facts)


def _words(cause: Cause, facts: Mapping[str, Fact]) -> str:
    rule, other = facts.get("rule", "a rule of its flow"), facts.get("other")
    key = f" of key {facts['key']!r}" if "key" in facts else ""
    after = facts.get("next_free")
    at = f", asked again at {_instant(after)}" if isinstance(after, datetime) else ""
    used = f": {facts['count']} of {facts['limit']} in use" if "limit" in facts else ""
    words = {
        Cause.LIMIT: f"for a slot of {rule}{key}{used}",
        Cause.RATE: f"for {rule}{key}{at}",
        Cause.ORDER: f"for run {other}, the head{key}" if other else f"for the head{key}",
        Cause.MODE: f"for run {other}{key} to end" if other else f"for the run{key} to end",
        Cause.BREAKER: f"for dependency {rule}, whose breaker is {facts.get('state')}{at}",
        Cause.SLOT: f"for a slot{used}",
        Cause.ISOLATION: "for another isolated run to end",
    }
    return words.get(cause, f"for its turn{at}")


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
