"""Verbs on triggers: fire, seek, and events that come from outside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from turnout.service.domain.errors import (
    InvalidData,
    NotFound,
    PositionsMoved,
    Refused,
    RefusedByFlows,
)
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.guess import did_you_mean
from turnout.service.domain.trigger import Receipt, SeekPlan, parts_of
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.intake.router import route
from turnout.service.journal.records import Move
from turnout.service.telemetry.logs import get_logger

from .parts import Parts, handles, plans
from .verbs import Emit, Fire, SeekTrigger

log = get_logger("turnout.operator")

MOST_PLANS = 50
"""How often a seek is planned while something else moves the positions."""


@handles(Emit)
async def emit(parts: Parts, verb: Emit) -> Receipt:
    """Store the event through the emitter of the API."""
    return (await _api(parts)([verb.event]))[0]


@handles(Fire)
async def fire(parts: Parts, verb: Fire) -> Receipt:
    """Emit an event of the operator's through the trigger."""
    event, emitter = _fired(parts, verb)
    return (await (emitter.forced(event) if verb.force else emitter([event])))[0]


@plans(Emit)
async def plan_emit(parts: Parts, verb: Emit) -> list[str]:
    """Route the event and say what would become of it."""
    event = verb.event
    if await parts.journal.event(event.id, source=event.source):
        return [f"start nothing: event {event.id!r} from {event.source!r} is stored already"]
    return _would_start(event, _api(parts))


@plans(Fire)
async def plan_fire(parts: Parts, verb: Fire) -> list[str]:
    """Route the event and say what would become of it."""
    return _would_start(*_fired(parts, verb))


def _would_start(event: Event, emitter: TriggerEmitter) -> list[str]:
    """Say what each flow would do; what only the journal knows (`mode=`, pauses) is left open."""
    routed = route(event, emitter.flows(event))
    if routed.refused_by_all:
        raise RefusedByFlows("every flow refuses this data", routed.refusals)
    entry = routed.entry
    sentences = [
        f"start a run of flow {run.flow}"
        if run.error is None
        else f"make a dead letter of flow {run.flow}: {run.error.message}"
        for run in entry.runs
    ]
    sentences += [f"add it to a window of flow {member.flow}" for member in entry.members]
    sentences += [
        f"start nothing of flow {made.flow}: {made.reason}" for made in entry.decisions if made.flow
    ]
    return sentences or ["store it, and start nothing: no flow listens to it"]


def _api(parts: Parts) -> TriggerEmitter:
    if parts.api is None:
        raise Refused("emitting needs a running service: start `turnout serve`")
    return parts.api


def _fired(parts: Parts, verb: Fire) -> tuple[Event, TriggerEmitter]:
    """Return the event of a trigger that is fired; raises `NotFound`, `InvalidData`."""
    emitter = parts.emitters().get(verb.name)
    if emitter is None:
        known = ", ".join(sorted(parts.emitters())) or "none"
        hint = did_you_mean(verb.name, parts.project().triggers)
        raise NotFound(f"no trigger {verb.name!r}{hint}; triggers: {known}")
    event = Event(
        id=mint_id(),
        source="turnout:operator",
        type=f"turnout.{emitter.trigger.kind}.fired",
        time=parts.now(),
        body=verb.data,
        datacontenttype="application/json",
        trigger=verb.name,
        minted=True,
    )
    _refuse_unless_accepted(event, emitter)
    return event, emitter


def _refuse_unless_accepted(event: Event, emitter: TriggerEmitter) -> None:
    """Raise `InvalidData` if every flow would refuse the event.

    An operator made the event, so a dead letter of it would help no one.
    """
    runs = route(event, emitter.flows(event)).entry.runs
    reasons = [f"flow {run.flow}: {run.error.message}" for run in runs if run.error is not None]
    if not runs or len(reasons) < len(runs):
        return
    raise InvalidData(
        f"nothing was fired, because no flow accepts the event: {'; '.join(reasons)}; give the "
        "data with --input, or replay an earlier event of the trigger: turnout events "
        f"--trigger {emitter.trigger.name!r}, then turnout replay EVENT"
    )


@handles(SeekTrigger)
async def seek(parts: Parts, verb: SeekTrigger) -> SeekPlan:
    """Plan with the trigger, and store the plan's positions while the trigger is stopped."""
    name = verb.name
    trigger = parts.project().triggers.get(name)
    if trigger is None:
        known = ", ".join(sorted(parts.project().triggers)) or "none"
        hint = did_you_mean(name, parts.project().triggers)
        raise NotFound(f"no trigger {name!r}{hint}; triggers: {known}")
    seeker = parts_of(trigger).seeker
    if seeker is None or parts.connection is None:
        raise Refused(f"trigger {name!r} has no position to move; timers and kafka have")
    now, journal = parts.wall(), parts.journal
    to = now.isoformat() if verb.seek.to == "now" else verb.seek.to
    target = replace(verb.seek, to=to, asked_at=now)
    connection = parts.connection(trigger.kind)
    plan = await seeker.plan(target, await journal.positions(name), connection)
    if verb.dry_run:
        return plan
    async with parts.stopped(name):
        plan = await _move(parts, name, lambda stored: seeker.plan(target, stored, connection))
    log.warning("trigger.position_set", trigger=name, to=target.to, done=list(plan.sentences))
    return plan


@plans(SeekTrigger)
async def plan_seek(parts: Parts, verb: SeekTrigger) -> list[str]:
    """Plan with the trigger."""
    return list((await seek(parts, replace(verb, dry_run=True))).sentences)


async def _move(
    parts: Parts, name: str, plan_from: Callable[[Mapping[str, str]], Awaitable[SeekPlan]]
) -> SeekPlan:
    """Move a stopped trigger's positions by compare-and-set; returns the plan that was carried out.

    What the trigger was still writing when it stopped counts; what comes later is refused.
    """
    journal = parts.journal
    for _ in range(MOST_PLANS):
        await journal.append([], trigger=name, now=parts.now())  # behind what it was writing
        stored = await journal.positions(name)
        plan = await plan_from(stored)
        moves = {each: Move(stored.get(each), to) for each, to in plan.positions.items()}
        try:
            await journal.append([], trigger=name, positions=moves, now=parts.now())
        except PositionsMoved:  # by a task of the trigger that has outlived its stop
            continue
        return plan
    raise Refused(f"trigger {name!r} does not stop moving its positions; stop the service and seek")
