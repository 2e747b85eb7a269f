"""Notifications over real folders: nothing falls between two sets of folders, loss is admitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.trigger_contract import RecordingEmitter
from turnout.triggers.files import _Notifier
from turnout.triggers.files.notifications import UNWATCHED, Disk, Hearing, HintsLost, Sign


def hearing(root: Path, emit: RecordingEmitter) -> Hearing:
    return Hearing(str(root), emit, Disk(), _Notifier)


async def heard(ear: Hearing) -> set[tuple[Sign, str]]:
    signs: set[tuple[Sign, str]] = set()
    while more := await ear.wait(0.1, 0.004):
        signs |= set(more)
    return signs


async def test_what_was_heard_while_the_folders_changed_is_not_lost(tmp_path: Path) -> None:
    for folder in ("s", "t"):
        (tmp_path / folder).mkdir()
    ear = hearing(tmp_path, RecordingEmitter())
    try:
        await ear.listen({""}, 0.0)
        (tmp_path / "one").write_text("1")
        await ear.listen({"", "s"}, 0.0)
        (tmp_path / "two").write_text("2")
        (tmp_path / "s" / "three").write_text("3")
        await ear.listen({"", "s", "t"}, 0.0)
        expected = {(Sign.ADDED, str(tmp_path / name)) for name in ("one", "two", "s/three")}
        signs: set[tuple[Sign, str]] = set()
        for _ in range(20):
            signs |= await heard(ear)
            if expected <= signs:
                break
        assert expected <= signs
    finally:
        ear.stop()


async def test_a_name_that_is_no_text_costs_the_notifications_and_is_admitted(
    tmp_path: Path,
) -> None:
    ear = hearing(tmp_path, RecordingEmitter())
    try:
        await ear.listen({""}, 0.0)
        (tmp_path / "bad\udcff").write_text("")
        with pytest.raises(HintsLost):
            for _ in range(20):
                await ear.wait(0.1, 0.004)
        assert not ear.works
        await ear.listen({""}, 0.0)
        assert await ear.wait(0.01, 0.004) == [], "and the next one starts afresh"
    finally:
        ear.stop()


async def test_a_folder_that_cannot_be_watched_is_counted(tmp_path: Path) -> None:
    emit = RecordingEmitter()
    ear = hearing(tmp_path, emit)
    try:
        await ear.listen({"", "bad\udcff"}, 0.0)
        assert emit.lags[UNWATCHED] == 1
        await ear.listen({"", "vanished"}, 5.0)
        assert ear.works, "the walk will tell what is there"
        assert ear.folders == {""}
        assert emit.lags[UNWATCHED] == 0
    finally:
        ear.stop()


async def test_forgets_a_folder_with_all_below_it(tmp_path: Path) -> None:
    ear = hearing(tmp_path, RecordingEmitter())
    for folder in ("s/t", "st"):
        (tmp_path / folder).mkdir(parents=True)
    try:
        await ear.listen({"", "s", "s/t", "st"}, 0.0)
        assert not ear.forget("u")
        assert ear.forget("s")
        assert ear.folders == {"", "st"}
        assert ear.forget("")
        assert ear.folders == set()
    finally:
        ear.stop()
