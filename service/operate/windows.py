"""Open windows: what they wait for, as documents; fire one at once, or drop it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from turnout.service.domain.errors import NotFound, Refused
from turnout.service.domain.short_ids import Ambiguous, ends_of
from turnout.service.domain.windows.parts import length_words
from turnout.service.domain.windows.window import WindowSettings
from turnout.service.journal.contract import Reads
from turnout.service.journal.records import StoredWindow, WindowMember
from turnout.service.project import AnyFlow
from turnout.service.telemetry.logs import get_logger

from .documents import MEMBERS_SHOWN, instant, member_of
from .parts import Parts, handles, plans
from .verbs import DropWindow, FireWindow

log = get_logger("turnout")

MOST_LISTED = 10_000
"""How many open windows are looked through for a short form of an id."""


@handles(FireWindow)
async def fire_window(parts: Parts, verb: FireWindow) -> StoredWindow:
    """Let the window's run be queued now."""
    window, flow = await _to_fire(parts, verb)
    closed = await parts.journal.fire_window(window.id, flow.firing, now=parts.now(), by=verb.by)
    parts.closed(closed)
    log.info("window.fired", flow=window.flow, window=window.id, by=verb.by)
    return await _now(parts, window)


@handles(DropWindow)
async def drop_window(parts: Parts, verb: DropWindow) -> StoredWindow:
    """Close the window without a run; its events get the decision."""
    window = await _open_window(parts.journal, verb.window_id)
    closed = await parts.journal.drop_window(window.id, now=parts.now(), by=verb.by)
    parts.closed(closed)
    if parts.in_service:
        log.info("window.dropped", flow=window.flow, window=window.id, by=verb.by)
    return await _now(parts, window)


@plans(FireWindow)
async def plan_fire_window(parts: Parts, verb: FireWindow) -> list[str]:
    """Say which window it is."""
    window, _ = await _to_fire(parts, verb)
    return [f"start the run of a window of flow {window.flow}, with {_events(window)}"]


@plans(DropWindow)
async def plan_drop_window(parts: Parts, verb: DropWindow) -> list[str]:
    """Say which window it is."""
    window = await _open_window(parts.journal, verb.window_id)
    return [f"drop a window of flow {window.flow}, whose {_events(window)} then start nothing"]


def _events(window: StoredWindow) -> str:
    return f"{window.members:,} event{'s' * (window.members != 1)}"


async def _to_fire(parts: Parts, verb: FireWindow) -> tuple[StoredWindow, AnyFlow]:
    """Return an open window and its flow; raises `NotFound`, `Refused`."""
    window = await _open_window(parts.journal, verb.window_id)
    flow = parts.project().flows.get(window.flow)
    if flow is None:
        raise Refused(
            f"flow {window.flow!r} is not served, so its window starts nothing; serve it again, "
            "give its successor was=, or drop the window: turnout pending drop"
        )
    return window, flow


async def _open_window(reads: Reads, name: str) -> StoredWindow:
    """Return an open window by its id or a short form; raises `NotFound`, `Refused`."""
    window = await window_named(reads, name)
    if window.state != "open":
        raise Refused(f"window {window.id} is not open: it is {window.state}")
    return window


async def _now(parts: Parts, window: StoredWindow) -> StoredWindow:
    return await parts.journal.window(window.id) or window


async def window_named(reads: Reads, name: str) -> StoredWindow:
    """Return a window by its id, or an open one by a short form; raises `NotFound`."""
    window = await reads.window(name)
    if window is not None:
        return window
    ends = ends_of(name)
    if ends is not None:
        first, last = ends
        listed = await reads.windows(limit=MOST_LISTED)
        is_meant: Callable[[str], bool] = (
            (lambda each: each.startswith(first) or each.endswith(last))
            if first == last
            else (lambda each: each.startswith(first) and each.endswith(last))
        )
        found = [each for each in listed if is_meant(each.id)]
        if len(found) > 1:
            raise Ambiguous("window", name, [each.id for each in found])
        if found:
            return found[0]
    raise NotFound(f"no window {name!r}; `turnout pending` lists the open ones")


# ---------------------------------------------------------------- documents


async def window_documents(
    reads: Reads, flow: str | None, limit: int, suspended: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the documents of open windows, the first due first.

    `suspended` says of flows why their windows do not close now, as the running service knows it.
    """
    windows = await reads.windows(flow, limit=limit)
    return [window_of(each, suspended.get(each.flow)) for each in windows]


async def window_document(reads: Reads, name: str, suspended: Mapping[str, str]) -> dict[str, Any]:
    """Return the document of a window with its first members; raises `NotFound`."""
    window = await window_named(reads, name)
    members = await reads.window_members(window.seq, limit=MEMBERS_SHOWN)
    document = window_of(window, suspended.get(window.flow))
    names = window.settings.parts
    return document | {
        "missing": list(_missing(names, members)) if window.state == "open" else [],
        "members": [member_of(each, names) for each in members],
        "left_out": max(window.members - len(members), 0),
    }


def window_of(window: StoredWindow, suspended: str | None = None) -> dict[str, Any]:
    """Return what a window is, what it has, and what closes it.

    `run` is the id of the run that waits for it, or that it has started.
    """
    settings = window.settings
    return {
        "id": window.id,
        "flow": window.flow,
        "kind": settings.kind,
        "rule": rule_words(settings),
        "key": window.key or None,
        "state": window.state,
        "events": window.members,
        "bytes": window.bytes,
        "opened_at": instant(window.opened_at),
        "due_at": instant(window.due_at),
        "closed_at": instant(window.closed_at),
        "remaining_seconds": window.remaining_seconds,
        "suspended": suspended,
        "run": window.run,
    }


def _missing(names: Sequence[str], members: Sequence[WindowMember]) -> list[str]:
    """Return the triggers of a pattern of which no event is there yet."""
    present = {each.part for each in members}
    return [name for part, name in enumerate(names) if part not in present]


def rule_words(settings: WindowSettings) -> str:
    """Return a window's rule about as its author wrote it: `count(5, "10m")`."""
    match settings.kind:
        case "debounce":
            given = [_quoted(settings.period), f"max={_quoted(settings.longest)}"]
        case "batch":
            given = [str(settings.count), _quoted(settings.period)]
        case "count":
            given = [str(settings.count), _quoted(settings.within)]
        case "absent":
            after = [f"after={settings.parts[1]}"] if len(settings.parts) > 1 else []
            given = [settings.parts[0], _quoted(settings.within), *after]
        case _:
            given = [*settings.parts, f"within={_quoted(settings.within)}"]
    return f"{settings.kind}({', '.join(given)})"


def _quoted(microseconds: int) -> str:
    return f'"{length_words(microseconds)}"'
