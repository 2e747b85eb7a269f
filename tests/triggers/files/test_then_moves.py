"""Files that are moved once their runs have ended."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.support.trigger_contract import RecordingEmitter, watch
from turnout.service.domain.event import Event
from turnout.triggers.files import FilesTrigger, delete, files, move

from .reading import content, names, rows


async def ended(
    trigger: FilesTrigger, emit: RecordingEmitter, event: Event, failure: str | None = None
) -> Event:
    changed = await trigger.ended(event, failure, emit)
    assert changed is not None
    return changed


async def test_then_moves_closes_the_row_and_gives_the_new_path(tmp_path: Path) -> None:
    emit = RecordingEmitter()
    trigger = files(f"{tmp_path}/**/*.csv", settle="10ms", rescan="100ms", then=move("done/"))
    async with watch(trigger, emit):
        (tmp_path / "a.csv").write_text("a")
        await emit.stored(1)
        [event] = emit.events
        moved = await ended(trigger, emit, event)
        assert moved.path == tmp_path / "done" / "a.csv"
        assert content(moved) == b"a"
        assert moved.id == event.id
        assert rows(emit) == set()
        # done/ lies below the pattern, and what is in it makes no events
        (tmp_path / "b.csv").write_text("b")
        await emit.stored(2)
        assert await trigger.ended(moved, None, emit) is None, "a replay finds it in its place"
        # and by hand back again
        (tmp_path / "done" / "a.csv").rename(tmp_path / "a.csv")
        await emit.stored(3)
    assert names(emit) == ["a.csv", "a.csv", "b.csv"]


async def test_an_after_run_action_is_repeatable_after_a_crash_before_it_was_recorded(
    tmp_path: Path,
) -> None:
    emit = RecordingEmitter()
    (tmp_path / "a.csv").write_text("a")
    async with watch(files(f"{tmp_path}/*.csv", settle="10ms"), emit):
        await emit.stored(1)
    [event] = emit.events
    before = dict(emit.stored_positions)
    first = await ended(files(f"{tmp_path}/*.csv", then=move("done")), emit, event)
    emit.stored_positions = before  # the crash: moved on disk, not recorded
    again = files(f"{tmp_path}/*.csv", then=move("done"))
    assert await ended(again, emit, event) == first
    assert rows(emit) == set()
    assert [path.name for path in (tmp_path / "done").iterdir()] == ["a.csv"]


async def test_failure_and_success_go_their_own_ways(tmp_path: Path) -> None:
    emit = RecordingEmitter()
    trigger = files(
        f"{tmp_path}/in/*.csv", settle="10ms", then=delete(), on_failure=move("../failed")
    )
    (tmp_path / "in").mkdir()
    for name in ("good.csv", "bad.csv"):
        (tmp_path / "in" / name).write_text(name)
    async with watch(trigger, emit):
        await emit.stored(2)
        bad, good = sorted(emit.events, key=lambda event: str(event.subject))
        assert await trigger.ended(good, None, emit) is None
        moved = await ended(trigger, emit, bad, "bill: ValueError: no")
    assert moved.path == tmp_path / "failed" / "bad.csv"
    assert not list((tmp_path / "in").iterdir())
    assert rows(emit) == set()
    # the operator replays the dead letter, and now it succeeds
    assert await trigger.ended(moved, None, emit) is None
    assert not list((tmp_path / "failed").iterdir())


async def test_a_version_that_came_meanwhile_stays_and_has_its_own_event(tmp_path: Path) -> None:
    emit = RecordingEmitter()
    trigger = files(f"{tmp_path}/*.csv", settle="10ms", then=move("done"))
    async with watch(trigger, emit):
        (tmp_path / "a.csv").write_text("one")
        await emit.stored(1)
        (tmp_path / "a.csv").write_text("three")
        await emit.stored(2)
        first, second = emit.events
        assert await trigger.ended(first, None, emit) is None
        assert (tmp_path / "a.csv").read_text() == "three"
        assert len(rows(emit)) == 1
        moved = await ended(trigger, emit, second)
    assert content(moved) == b"three"
    assert rows(emit) == set()


async def test_a_new_file_that_takes_the_name_of_a_moved_one_is_one_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit = RecordingEmitter()
    trigger = files(f"{tmp_path}/*.csv", settle="10ms", rescan="100ms", then=move("done/"))
    real = os.path.lexists

    def slow(path: Path) -> bool:
        """Look, and let a new file come before the answer is used."""
        found = real(path)
        if not found:
            (tmp_path / "a.csv").write_text("second")
            until = time.monotonic() + 0.3
            while len(emit.deliveries) < 2 and time.monotonic() < until:
                time.sleep(0.005)
        return found

    async with watch(trigger, emit):
        (tmp_path / "a.csv").write_text("first")
        await emit.stored(1)
        monkeypatch.setattr(os.path, "lexists", slow)
        await ended(trigger, emit, emit.events[0])
        await emit.stored(2)
        assert rows(emit) == {"a.csv"}, "the next scan knows it"
    assert names(emit) == ["a.csv", "a.csv"]
    assert len(emit.deliveries) == 2
