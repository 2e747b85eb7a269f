"""Verbs on limits: set one for a while, and let what the flow file says hold again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from turnout.service.domain.errors import InvalidData, NotFound, Refused
from turnout.service.domain.guess import did_you_mean
from turnout.service.domain.units import format_duration
from turnout.service.flowcontrol.overrides import short_names
from turnout.service.flowcontrol.use import KeyUse, Use, with_accepted
from turnout.service.intake.overrides import log_fields
from turnout.service.journal.contract import Reads
from turnout.service.journal.records import StoredBudget, StoredOverride
from turnout.service.telemetry.logs import get_logger

from . import documents
from .parts import Parts, handles, plans
from .verbs import ResetLimit, SetLimit

log = get_logger("turnout")


@handles(SetLimit)
async def set_limit(parts: Parts, verb: SetLimit) -> StoredOverride:
    """Store the override, and start what it lets start."""
    made = await _override_of(parts, verb)
    await parts.journal.override(made)
    await parts.refresh_limits()
    if parts.in_service:
        log.info("limit.overridden", **log_fields(made))
    return made


@handles(ResetLimit)
async def reset_limit(parts: Parts, verb: ResetLimit) -> str:
    """Delete the override."""
    full = await _overridden(parts, verb)
    await parts.journal.reset_limit(full)
    await parts.refresh_limits()
    if parts.in_service:
        log.info("limit.restored", name=full, by=verb.by)
    return full


@plans(SetLimit)
async def plan_set_limit(parts: Parts, verb: SetLimit) -> list[str]:
    """Say what the limit would be."""
    made = await _override_of(parts, verb)
    return [f"let limit {short_name(made.name)} be {made.count} for {format_duration(verb.lasts)}"]


@plans(ResetLimit)
async def plan_reset_limit(parts: Parts, verb: ResetLimit) -> list[str]:
    """Say which limit it is."""
    name = short_name(await _overridden(parts, verb))
    return [f"let limit {name} be what the flow file says again"]


async def _override_of(parts: Parts, verb: SetLimit) -> StoredOverride:
    """Return what is to be stored; raises `InvalidData`, `NotFound`, `Refused`."""
    if verb.count < 1:
        raise InvalidData(
            "a limit is 1 or more; to start nothing, pause the flow: turnout pause", field="count"
        )
    if verb.lasts <= timedelta(0):
        raise InvalidData("an override lasts longer than 0s", field="for")
    now = parts.now()
    full = _full_name(parts, verb.name, await parts.journal.overrides(now=now))
    return StoredOverride(
        name=full, count=verb.count, since=now, until=now + verb.lasts, note=verb.note, by=verb.by
    )


async def _overridden(parts: Parts, verb: ResetLimit) -> str:
    """Return the full name of a limit that is overridden; raises `NotFound`, `Refused`."""
    overrides = await parts.journal.overrides(now=parts.now())
    full = _full_name(parts, verb.name, overrides)
    if full not in overrides:
        raise Refused(f"limit {verb.name!r} is not overridden")
    return full


# ---------------------------------------------------------------- names


def _full_name(parts: Parts, name: str, overrides: Mapping[str, StoredOverride]) -> str:
    """Return the full name of a limit; raises `NotFound` unless it is served or overridden."""
    known = {full: short_name(full) for full in overrides}
    for flow in parts.project().flows.values():
        known |= short_names(flow)
    if name in known:
        return name
    matching = [
        full
        for full, short in known.items()
        if name == short or (full.startswith("flow:") and name == f"flow:{short}")
    ]
    if len(matching) > 1:
        raise Refused(f"{name!r} is a named limit and a flow: write limit:{name} or flow:{name}")
    if matching:
        return matching[0]
    if not parts.in_service:  # without a service nobody knows which limits there are
        return _guess(name)
    names = sorted(set(known.values()))
    listed = ", ".join(names) or "none"
    kind = _other_rules(parts).get(name)
    if kind is not None:
        raise NotFound(
            f"{name!r} is a {kind}, which only flow files say; limits that can be set: {listed}"
        )
    raise NotFound(f"no limit {name!r}{did_you_mean(name, names)}; limits: {listed}")


def _other_rules(parts: Parts) -> dict[str, str]:
    """Return what else `turnout limits` shows, by name."""
    found: dict[str, str] = {}
    for flow in parts.project().flows.values():
        found |= {rule.name or flow.name: "rate" for rule in flow.rate}
        found |= {need.name: "breaker" for need in flow.needs}
    return found


def short_name(full: str) -> str:
    """Return how an operator may write a name, whatever the flow file says: `bill/limit.2`."""
    return full.partition(":")[2].removesuffix("/limit")


def _guess(name: str) -> str:
    """Return a full name, which must say what it is of where no flow file is loaded."""
    if name.startswith("limit:"):
        return name
    if name.startswith("flow:"):
        return name if "/" in name else f"{name}/limit"
    raise Refused(
        f"no service is running that knows what {name!r} is: write limit:{name} for a named limit, "
        f"or flow:{name} for the limit of a flow"
    )


# ---------------------------------------------------------------- what is in use


async def use_documents(journal: Reads, uses: Sequence[Use], now: datetime) -> list[dict[str, Any]]:
    """Return the documents of what is in use, with the due runs of the flows and what is set."""
    counts = {each.flow: each for each in await journal.due_counts(now)}
    overrides = await journal.overrides(now=now)
    classed = next((use.flows for use in uses if use.level is not None), ())
    classes = await journal.queued_by_class(classed) if classed else {}
    rows = []
    for use in [await _with_log(journal, use, now) for use in uses]:
        due = [counts[flow] for flow in use.flows if flow in counts]
        waiting = (sum(each.due for each in due), [each.oldest for each in due if each.oldest])
        if use.level is not None:
            count, oldest = classes.get(use.level, (0, None))
            waiting = (count, [] if oldest is None else [oldest])
        rows.append(_document(use, *waiting, overrides, now))
    budgets = [_use_of(each) for each in await journal.budgets(now=now)]
    return [*rows, *(_document(use, 0, (), overrides, now) for use in budgets)]


def _use_of(budget: StoredBudget) -> Use:
    """Return what is used of a budget, which flows declare in their code."""
    period = format_duration(budget.period)
    return Use(
        kind="budget",
        name=budget.name,
        rule=f'budget("{budget.name}", max_changes={budget.most}, per="{period}")',
        flows=(),
        used=budget.used,
        max=budget.most,
        next_free=budget.free_at if budget.used >= budget.most else None,
    )


async def _with_log(journal: Reads, use: Use, now: datetime) -> Use:
    """Return the use of a rate limit with what the journal says it has accepted."""
    if use.accepted is None or use.max is None:
        return use
    rule_id, period = use.accepted
    found = await journal.accepted_by_key(use.flows[0], rule_id, since=now - period, nth=use.max)
    return with_accepted(
        use,
        [KeyUse(key, used, None if nth is None else nth + period) for key, used, nth in found],
    )


def _document(
    use: Use,
    queued: int,
    since: Sequence[datetime],
    overrides: Mapping[str, StoredOverride],
    now: datetime,
) -> dict[str, Any]:
    seconds = max((max((now - at).total_seconds(), 0.0) for at in since), default=None)
    override = overrides.get(use.full_name) if use.kind == "limit" else None
    return {
        "name": use.name,
        "kind": use.kind,
        "rule": use.rule,
        "flows": list(use.flows),
        "used": use.used,
        "max": use.max,
        "declared": use.declared,
        "queued": queued,
        "oldest_due_seconds": seconds,
        "next_free": documents.instant(use.next_free),
        "keys": [
            {"key": key.key, "used": key.used, "next_free": documents.instant(key.next_free)}
            for key in use.keys
        ],
        "key_count": use.key_count,
        "state": use.state,
        "reason": use.reason,
        "override": None if override is None else documents.override_of(override),
    }
