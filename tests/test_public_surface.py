"""What users build on changes by decision only: the snapshots are rewritten by a command."""

from __future__ import annotations

import pytest

from tests.support import surface

SLOW = {"json_fields.txt", "log_events.txt"}  # they run the program, or read all of its code
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in surface.WRITERS
]


@pytest.mark.timeout(60)  # the JSON fields are those of a program that runs
@pytest.mark.parametrize("name", NAMES)
def test_the_public_surface_is_as_its_snapshot_says(name: str) -> None:
    snapshot = (surface.SNAPSHOTS / name).read_text("utf-8")
    now = surface.WRITERS[name]()
    assert now == snapshot, "if that is meant: python -m tests.support.surface"


@pytest.mark.slow
def test_every_event_in_the_log_is_a_noun_and_a_verb() -> None:
    events = {line.split(" ")[0] for line in surface.log_events().splitlines()}
    assert {"service.started", "kafka.log_cut"} <= events
    assert not [event for event in events if not surface.LOG_EVENT.fullmatch(event)]
