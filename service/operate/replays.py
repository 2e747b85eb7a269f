"""Verbs that replay events and dead letters, or drop a dead letter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from turnout.service.domain.errors import NotFound, Refused, words_of
from turnout.service.domain.event import mint_id
from turnout.service.domain.run import Run, RunState
from turnout.service.flowcontrol.keys import keys_of, with_order
from turnout.service.flowcontrol.priority import class_of
from turnout.service.journal.records import NewRun, StoredEvent

from .names import no_event_or_run, no_run
from .parts import Parts, handles, plans, whole_id
from .verbs import Drop, Replay, ReplayDead


@handles(Drop)
async def drop(parts: Parts, verb: Drop) -> Run:
    """Take the dead letter off the list; the runs behind it on its ordering key may start."""
    run = await parts.journal.drop(await whole_id(parts, verb.run_id), now=parts.now())
    parts.owner.release_key(run)
    return run


@handles(ReplayDead)
async def replay_dead(parts: Parts, verb: ReplayDead) -> list[str]:
    """Add a run of the dead letter's flow and event."""
    run, stored = await _to_replay(parts, verb)
    runs = await _replay(parts, stored, {run.flow: run})
    if not is_not_undone(run):
        await drop(parts, Drop(run.id))
    return runs


@handles(Replay)
async def replay(parts: Parts, verb: Replay) -> list[str]:
    """Add a run of every flow that the event started or would start now."""
    stored, flows = await _flows_of(parts, verb)
    return await _replay(parts, stored, flows, force=verb.force)


# ---------------------------------------------------------------- what would be done


@plans(Drop)
async def plan_drop(parts: Parts, verb: Drop) -> list[str]:
    """Say which dead letter it is."""
    run = await _dead_letter(parts, verb.run_id)
    return [f"take run {run.id} of flow {run.flow} off the list of dead letters"]


@plans(ReplayDead)
async def plan_replay_dead(parts: Parts, verb: ReplayDead) -> list[str]:
    """Say which flow would run again."""
    run, stored = await _to_replay(parts, verb)
    return [_new_run_words(parts.current_name(run.flow), stored)]


@plans(Replay)
async def plan_replay(parts: Parts, verb: Replay) -> list[str]:
    """Say which flows would run again."""
    stored, flows = await _flows_of(parts, verb)
    names = dict.fromkeys(parts.current_name(name) for name in flows)
    return [_new_run_words(name, stored) for name in names]


def _new_run_words(flow: str, stored: StoredEvent) -> str:
    return f"start a new run of flow {flow} for event {stored.event.id}"


# ---------------------------------------------------------------- what it is done with


async def _dead_letter(parts: Parts, name: str) -> Run:
    """Return a dead letter; raises `NotFound`, `Refused`."""
    run = await parts.journal.run(name)
    if run is None:
        raise no_run(name)
    if not run.dead:
        raise Refused(f"run {run.id} is not a dead letter; it is {run.state}")
    return run


async def _to_replay(parts: Parts, verb: ReplayDead) -> tuple[Run, StoredEvent]:
    """Return the dead letter and its event; raises `NotFound`, `Refused`."""
    run = await _dead_letter(parts, verb.run_id)
    if not verb.not_undone:
        _refuse_not_undone([run])
    stored = await parts.journal.event_of(run.seq)
    if stored is None:
        raise NotFound(f"the event of run {run.id} has been deleted")
    return run, stored


async def _flows_of(parts: Parts, verb: Replay) -> tuple[StoredEvent, Mapping[str, Run | None]]:
    """Return the event, and its flows with their last runs; raises `NotFound`, `Refused`."""
    stored = await _event_of(parts, verb)
    if stored is None:
        return await _flow_of_run(parts, verb)
    found = [await parts.journal.run(run_id) for run_id in stored.runs]
    runs = [run for run in found if run is not None]
    if not verb.not_undone:
        _refuse_not_undone(runs)
    waiting = [run for run in runs if run.state is RunState.SCHEDULED]
    flows: dict[str, Run | None] = {run.flow: run for run in runs if run not in waiting}
    for flow in parts.project().started_by(stored.event):
        if not flow.shadow:
            flows.setdefault(flow.name, None)
    for run in waiting:  # its window has not fired: it will run with this event
        flows.pop(run.flow, None)
    if waiting and not flows:
        raise Refused(
            f"event {verb.event_id!r} waits in a window of flow {waiting[0].flow}, whose run "
            f"{waiting[0].id} has not begun; see turnout pending"
        )
    if not flows:
        raise Refused(f"event {verb.event_id!r} starts no flow")
    return stored, flows


async def _flow_of_run(parts: Parts, verb: Replay) -> tuple[StoredEvent, Mapping[str, Run]]:
    """Return the first event of the run that is named, and its flow; raises as `_flows_of`."""
    run = await parts.journal.run(verb.event_id)
    stored = None if run is None else await parts.journal.event_of(run.seq)
    if run is None or stored is None:
        raise no_event_or_run(verb.event_id)
    if not verb.not_undone:
        _refuse_not_undone([run])
    if run.state is RunState.SCHEDULED:
        raise Refused(
            f"run {run.id} of flow {run.flow} has not begun: it waits in a window; see turnout "
            f"pending"
        )
    return stored, {run.flow: run}


async def _event_of(parts: Parts, verb: Replay) -> StoredEvent | None:
    found = await parts.journal.event(verb.event_id, source=verb.source)
    if len(found) > 1:
        sources = ", ".join(sorted({stored.event.source for stored in found}))
        raise Refused(f"event id {verb.event_id!r} has several sources; name one of: {sources}")
    return found[0] if found else None


async def _replay(
    parts: Parts, stored: StoredEvent, flows: Mapping[str, Run | None], *, force: bool = False
) -> list[str]:
    """Add a run for each flow; `flows` maps each to its last run of the event.

    The run of a window is called with the same members again.
    """
    current: dict[str, Run | None] = {}
    for name, last in flows.items():
        current.setdefault(parts.current_name(name), last)
    made: dict[int, list[NewRun]] = {}
    for name, last in current.items():
        first = stored
        if last is not None and last.window_seq is not None:
            first = await parts.journal.event_of(last.seq) or stored
        made.setdefault(first.seq, []).append(_new_run(parts, first, name, last))
    ids: list[str] = []
    with parts.owner.changing(current):
        for seq, runs in made.items():
            for run in runs if force else ():
                run.start_past_mode()
            replayed = await parts.journal.replay(seq, runs, now=parts.now())
            parts.owner.ended_for(replayed)
            ids += replayed.runs
    return ids


def _new_run(parts: Parts, stored: StoredEvent, name: str, last: Run | None) -> NewRun:
    """Return a new run of a flow; of one that is not loaded, with the keys of its last run."""
    run = NewRun(id=mint_id(), flow=name, state=RunState.QUEUED)
    if last is not None:
        run.order_key, run.keys, run.window_seq = last.order_key, last.keys, last.window_seq
    flow = parts.project().flows.get(name)
    if flow is not None:
        if flow.shadow:
            raise Refused(f"flow {name!r} is a shadow (shadow=True): it starts no run")
        run.code_version = flow.code_version
        run.conditions = None if flow.conditions is None else flow.conditions.of_replay()
        try:
            run.order_key = flow.order_key(stored.event)
            run.priority = class_of(flow, stored.event)
            run.keys = with_order(keys_of(flow, stored.event), run.order_key, run.priority)
        except Exception as error:
            raise Refused(
                f"flow {name!r} cannot take the event: {words_of(error)} "
                f"(in ordered_by= or per=, {flow.file}:{flow.line})"
            ) from error
    return run


def is_not_undone(run: Run) -> bool:
    """Whether effects of a finished run may remain, because its undo is not done."""
    return run.undo in ("running", "failed")


def to_queue_again(newest_first: Sequence[Run]) -> list[Run]:
    """Order runs that are queued again: those of an ordering key keep their order, oldest first.

    An undo goes backwards: what is not undone goes before all others, the newest first, so that
    children are undone before their parent.
    """
    others = [run for run in newest_first if not is_not_undone(run)]
    return [*filter(is_not_undone, newest_first), *reversed(others)]


def _refuse_not_undone(runs: Sequence[Run]) -> None:
    """Raise `Refused` if effects of a run may remain, which a replay would repeat."""
    for run in runs:
        if is_not_undone(run):
            raise Refused(
                f"run {run.id} of flow {run.flow} is not undone (undo: {run.undo}), and a replay "
                f"would repeat its effects with new idempotency keys: finish the undo first with "
                f"turnout retry {run.id}, or confirm with --yes, over HTTP with the field "
                f'{{"not_undone": true}}'
            )
