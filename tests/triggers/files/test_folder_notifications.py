"""Notifications over real folders: nothing falls between two sets of folders, loss is admitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.trigger_contract import RecordingEmitter
from turnout.triggers.files import Notifier
from turnout.triggers.files.notifications import (
    UNWATCHED,
    Change,
    Disk,
    Notifications,
    NotificationsLost,
)


def notifications_of(root: Path, emit: RecordingEmitter) -> Notifications:
    return Notifications(str(root), emit, Disk(), Notifier)


async def changes_of(notifications: Notifications) -> set[tuple[Change, str]]:
    changes: set[tuple[Change, str]] = set()
    while more := await notifications.wait(0.1, 0.004):
        changes |= set(more)
    return changes


async def test_what_was_notified_while_the_folders_changed_is_not_lost(tmp_path: Path) -> None:
    for folder in ("s", "t"):
        (tmp_path / folder).mkdir()
    notifications = notifications_of(tmp_path, RecordingEmitter())
    try:
        await notifications.watch({""}, 0.0)
        (tmp_path / "one").write_text("1")
        await notifications.watch({"", "s"}, 0.0)
        (tmp_path / "two").write_text("2")
        (tmp_path / "s" / "three").write_text("3")
        await notifications.watch({"", "s", "t"}, 0.0)
        expected = {(Change.ADDED, str(tmp_path / name)) for name in ("one", "two", "s/three")}
        changes: set[tuple[Change, str]] = set()
        for _ in range(20):
            changes |= await changes_of(notifications)
            if expected <= changes:
                break
        assert expected <= changes
    finally:
        notifications.stop()


async def test_a_name_that_is_no_text_costs_the_notifications_and_is_admitted(
    tmp_path: Path,
) -> None:
    notifications = notifications_of(tmp_path, RecordingEmitter())
    try:
        await notifications.watch({""}, 0.0)
        (tmp_path / "bad\udcff").write_text("")
        with pytest.raises(NotificationsLost):
            for _ in range(20):
                await notifications.wait(0.1, 0.004)
        assert not notifications.works
        await notifications.watch({""}, 0.0)
        assert await notifications.wait(0.01, 0.004) == [], "and the next one starts afresh"
    finally:
        notifications.stop()


async def test_a_folder_that_cannot_be_watched_is_counted(tmp_path: Path) -> None:
    emit = RecordingEmitter()
    notifications = notifications_of(tmp_path, emit)
    try:
        await notifications.watch({"", "bad\udcff"}, 0.0)
        assert emit.lags[UNWATCHED] == 1
        await notifications.watch({"", "vanished"}, 5.0)
        assert notifications.works, "the walk will tell what is there"
        assert notifications.folders == {""}
        assert emit.lags[UNWATCHED] == 0
    finally:
        notifications.stop()


async def test_forgets_a_folder_with_all_below_it(tmp_path: Path) -> None:
    notifications = notifications_of(tmp_path, RecordingEmitter())
    for folder in ("s/t", "st"):
        (tmp_path / folder).mkdir(parents=True)
    try:
        await notifications.watch({"", "s", "s/t", "st"}, 0.0)
        assert not notifications.forget("u")
        assert notifications.forget("s")
        assert notifications.folders == {"", "st"}
        assert notifications.forget("")
        assert notifications.folders == set()
    finally:
        notifications.stop()
