"""Verbs that pause and resume flows and triggers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from turnout.service.domain.errors import NotFound

from .parts import Parts, handles
from .verbs import Pause, Resume


@handles(Pause)
async def pause(parts: Parts, verb: Pause) -> str:
    """Store the pause, and start nothing more."""
    full = _full_name(parts, verb.name)
    # A run whose claim is on its way is running on disk before the pause is.
    with parts.owner.changing(_loaded_flow(parts, full)):
        await parts.journal.pause(full, now=parts.now())
        _set_paused(parts, full, True)
    return full


@handles(Resume)
async def resume(parts: Parts, verb: Resume) -> str:
    """Delete the pause, and start what waited."""
    full = _full_name(parts, verb.name, await parts.journal.paused())
    await parts.journal.resume(full)
    _set_paused(parts, full, False)
    return full


def _set_paused(parts: Parts, full: str, paused: bool) -> None:
    """Pause or resume it in the running service, if it is loaded there."""
    for flow in _loaded_flow(parts, full):
        (parts.owner.pause if paused else parts.owner.resume)(flow)
    trigger = full.removeprefix("trigger:")
    if trigger != full and trigger in parts.emitters():
        parts.emitters()[trigger].status.pause(paused)


def _loaded_flow(parts: Parts, full: str) -> Sequence[str]:
    """Return the flow that a full name is of, if it is loaded."""
    flow = full.removeprefix("flow:")
    return [flow] if flow != full and flow in parts.project().flows else []


def _full_name(parts: Parts, name: str, paused: Collection[str] = ()) -> str:
    """Return `flow:NAME` or `trigger:NAME`; raises `NotFound` unless it is served or paused."""
    if parts.api is None:  # without a service neither flows nor triggers are known
        return _guess(name)
    project = parts.project()
    known = [f"flow:{flow}" for flow in project.flows]
    known += [f"trigger:{trigger}" for trigger in project.triggers]
    for full in (name, f"flow:{name}", f"trigger:{name}"):
        if full in known or full in paused:
            return full
    raise NotFound(
        f"no flow or trigger {name!r}; flows: {', '.join(sorted(project.flows)) or 'none'}; "
        f"triggers: {', '.join(sorted(project.triggers)) or 'none'}"
    )


def _guess(name: str) -> str:
    """Tell flows from triggers by the name alone: a trigger's begins with its kind."""
    if name.startswith(("flow:", "trigger:")):
        return name
    return f"trigger:{name}" if ":" in name else f"flow:{name}"
