"""Verbs on triggers: fire, seek, and events that come from outside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from turnout.service.domain.errors import InvalidData, NotFound, PositionsMoved, Refused
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.guess import did_you_mean
from turnout.service.domain.trigger import Receipt, SeekPlan, parts_of
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.intake.router import route
from turnout.service.journal.records import Move
from turnout.service.telemetry.logs import get_logger

from .parts import Parts, handles
from .verbs import Emit, Fire, SeekTrigger

log = get_logger("turnout.operator")

MOST_PLANS = 50
"""How often a seek is planned while something else moves the positions."""


@handles(Emit)
async def emit(parts: Parts, verb: Emit) -> Receipt:
    """Store the event through the emitter of the API."""
    if parts.api is None:
        raise Refused("emitting needs a running service: start `turnout serve`")
    return (await parts.api([verb.event]))[0]


@handles(Fire)
async def fire(parts: Parts, verb: Fire) -> Receipt:
    """Emit an event of the operator's through the trigger."""
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
    return (await (emitter.forced(event) if verb.force else emitter([event])))[0]


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
    log.warning("trigger.sought", trigger=name, to=target.to, done=list(plan.sentences))
    return plan


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
