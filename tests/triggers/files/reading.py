"""File triggers in tests: what they have emitted, by name and content."""

from __future__ import annotations

from tests.support.trigger_contract import RecordingEmitter
from turnout.service.domain.event import Event
from turnout.triggers.files.positions import DEVICE, GENERATION


def rows(emit: RecordingEmitter) -> set[str]:
    return set(emit.stored_positions) - {GENERATION, DEVICE}


def names(emit: RecordingEmitter) -> list[str]:
    return sorted(str(event.subject) for event in emit.events)


def content(event: Event) -> bytes:
    assert event.path is not None
    return event.path.read_bytes()
