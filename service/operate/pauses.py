"""Verbs that pause and resume flows, triggers and everything, and discard what waited."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from turnout.service.domain.decisions import Reason
from turnout.service.domain.errors import InvalidData, NotFound, Refused
from turnout.service.domain.guess import did_you_mean
from turnout.service.domain.units import format_duration
from turnout.service.intake.pauses import log_fields
from turnout.service.journal.records import EVERYTHING, DueCount, StoredPause
from turnout.service.telemetry.logs import get_logger

from .parts import Parts, handles, plans
from .verbs import Pause, Resume, Resumed

log = get_logger("turnout")


@handles(Pause)
async def pause(parts: Parts, verb: Pause) -> StoredPause:
    """Store the pause, and start nothing more."""
    made = _pause_of(parts, verb)
    full, now = made.name, made.since
    # A run whose claim is on its way is running on disk before the pause is.
    with parts.owner.changing(_loaded_flows(parts, full)):
        await parts.journal.pause(made)
        await parts.refresh_pauses()
    if parts.in_service:
        log.info("pause.began", **log_fields(made))
    return (await parts.journal.pauses(now=now)).get(full, made)


@handles(Resume)
async def resume(parts: Parts, verb: Resume) -> Resumed:
    """Delete the pause, and start what waited, or end it first."""
    now = parts.now()
    pauses = await parts.journal.pauses(now=now)
    full = _full_name(parts, verb.name, pauses)
    was_paused = pauses.pop(full, None) is not None
    if verb.discard:
        _check_discard(full, was_paused=was_paused)
    waiting = [] if not was_paused else await _waiting(parts, full, pauses, now)
    discarded = 0
    if verb.discard:
        for each in waiting:
            discarded += await _discard(parts, each.flow, verb, now)
    await parts.journal.resume(full)
    await parts.refresh_pauses()
    if was_paused and parts.in_service:
        log.info("pause.ended", name=full, by=verb.by)
    return Resumed(
        name=full,
        was_paused=was_paused,
        waiting=sum(each.due for each in waiting),
        oldest=min((each.oldest for each in waiting if each.oldest), default=None),
        discarded=discarded,
        still=_still_paused(full, pauses),
    )


def _pause_of(parts: Parts, verb: Pause) -> StoredPause:
    """Return what is to be stored; raises `InvalidData`, `NotFound`."""
    full, now = _full_name(parts, verb.name), parts.now()
    if verb.lasts is not None and verb.lasts <= timedelta(0):
        raise InvalidData("a pause lasts longer than 0s", field="for")
    until = None if verb.lasts is None else now + verb.lasts
    return StoredPause(name=full, since=now, until=until, note=verb.note, by=verb.by)


# ---------------------------------------------------------------- what would be done


@plans(Pause)
async def plan_pause(parts: Parts, verb: Pause) -> list[str]:
    """Say what would be paused, and for how long."""
    made = _pause_of(parts, verb)
    lasts = "" if verb.lasts is None else f" for {format_duration(verb.lasts)}"
    return [f"pause {_words(made.name)}{lasts}"]


@plans(Resume)
async def plan_resume(parts: Parts, verb: Resume) -> list[str]:
    """Say what waits behind the pause, and what would become of it."""
    now = parts.now()
    pauses = await parts.journal.pauses(now=now)
    full = _full_name(parts, verb.name, pauses)
    was_paused = pauses.pop(full, None) is not None
    if verb.discard:
        _check_discard(full, was_paused=was_paused)
    if not was_paused:
        return [f"do nothing: {_words(full)} is not paused"]
    waiting = await _waiting(parts, full, pauses, now)
    count = sum(each.due for each in waiting)
    runs = f"{count:,} run{'s' * (count != 1)}"
    if verb.discard:
        return [f"resume {_words(full)}, and end those of the {runs} behind it that have not begun"]
    return [f"resume {_words(full)}; {runs} waited and may start"]


def _words(full: str) -> str:
    kind, _, name = full.partition(":")
    return f"{kind} {name}" if name else "everything"


# ---------------------------------------------------------------- what waited


async def _waiting(
    parts: Parts, full: str, others: Mapping[str, StoredPause], now: datetime
) -> list[DueCount]:
    """Return the runs that a pause keeps waiting, by flow; those that another keeps are left out.

    Only the pause of everything does not count: under it `resume FLOW` says what waits all the
    same, and may discard it.
    """
    found = [each for each in await parts.journal.due_counts(now) if each.due]
    if full != EVERYTHING:
        return [each for each in found if f"flow:{each.flow}" == full]
    known = parts.project().flows if parts.in_service else [each.flow for each in found]
    return [each for each in found if each.flow in known and f"flow:{each.flow}" not in others]


def _still_paused(full: str, others: Mapping[str, StoredPause]) -> tuple[StoredPause, ...]:
    """Return the pauses under which something of what is resumed waits on."""
    if full == EVERYTHING:
        return tuple(others.values())
    everything = others.get(EVERYTHING) if full.startswith("flow:") else None
    return () if everything is None else (everything,)


def _check_discard(full: str, *, was_paused: bool) -> None:
    """Raise `Refused` where there is nothing that a discard could end."""
    kind, _, name = full.partition(":")
    if kind == "trigger":
        raise Refused(
            f"trigger {name!r} keeps nothing that could be discarded: what came while it was "
            "paused was refused, or its source keeps it; turnout trigger seek skips ticks of "
            "timers and records of Kafka"
        )
    if not was_paused:
        raise Refused(f"{_words(full)} is not paused, so nothing was discarded")


async def _discard(parts: Parts, flow: str, verb: Resume, now: datetime) -> int:
    """End the runs of a flow that have not begun, of those that there are now."""
    count, after, more = 0, 0, True
    up_to: int | None = None
    detail = f"dropped: {verb.by or 'an operator'} discarded what waited"
    with parts.owner.changing([flow]):
        while more:
            ended = await parts.journal.discard(
                flow, now=now, detail=detail, by=verb.by, after=after, up_to=up_to
            )
            parts.owner.skipped(ended.runs, Reason.DROPPED)
            count += len(ended.runs)
            after, up_to, more = ended.last, ended.up_to, ended.more
    if count and parts.in_service:
        log.warning("runs.discarded", flow=flow, count=count, by=verb.by)
    return count


# ---------------------------------------------------------------- names


def _loaded_flows(parts: Parts, full: str) -> Sequence[str]:
    """Return the flows that a full name is of, of those that are loaded."""
    flows = parts.project().flows
    if full == EVERYTHING:
        return list(flows)
    flow = full.removeprefix("flow:")
    return [flow] if flow != full and flow in flows else []


def _full_name(parts: Parts, name: str, paused: Collection[str] = ()) -> str:
    """Return `flow:NAME` or `trigger:NAME`; raises `NotFound` unless it is served or paused."""
    if name == EVERYTHING:
        return name
    if not parts.in_service:  # without a service neither flows nor triggers are known
        return _guess(name)
    project = parts.project()
    known = [f"flow:{flow}" for flow in project.flows]
    known += [f"trigger:{trigger}" for trigger in project.triggers]
    for full in (name, f"flow:{name}", f"trigger:{name}"):
        if full in known or full in paused:
            return full
    raise NotFound(
        f"no flow or trigger {name!r}{did_you_mean(name, (*project.flows, *project.triggers))}; "
        f"flows: {', '.join(sorted(project.flows)) or 'none'}; "
        f"triggers: {', '.join(sorted(project.triggers)) or 'none'}"
    )


def _guess(name: str) -> str:
    """Tell flows from triggers by the name alone: a trigger's begins with its kind."""
    if name.startswith(("flow:", "trigger:")):
        return name
    return f"trigger:{name}" if ":" in name else f"flow:{name}"
