"""Notifications over real folders: nothing falls between two sets of folders, loss is admitted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
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


# ---------------------------------------------------------------- cancelled


class Opening:
    """Opens real notifiers while it may, and remembers them."""

    def __init__(self) -> None:
        self.begun, self.may_open = threading.Event(), threading.Event()
        self.opened: list[Notifier] = []
        self.may_open.set()

    def __call__(self, folders: Sequence[str]) -> Notifier:
        self.begun.set()
        assert self.may_open.wait(30)
        self.opened.append(Notifier(folders))
        return self.opened[-1]

    async def all_stopped(self, expected: int) -> None:
        await RecordingEmitter().until(
            lambda: len(self.opened) == expected and all(one.is_set() for one in self.opened)
        )


@pytest.mark.parametrize("before", [0, 1])
async def test_a_notifier_that_opens_after_a_cancel_is_stopped(tmp_path: Path, before: int) -> None:
    opening = Opening()
    notifications = Notifications(str(tmp_path), RecordingEmitter(), Disk(), opening)
    for _ in range(before):
        await notifications.watch({""}, 0.0)
    opening.may_open.clear()
    opening.begun.clear()
    watching = asyncio.get_running_loop().create_task(notifications.watch({""}, 0.0))
    await asyncio.to_thread(opening.begun.wait, 30)
    watching.cancel()
    await asyncio.wait([watching])
    notifications.stop()
    opening.may_open.set()
    await opening.all_stopped(before + 1)


async def test_old_notifiers_are_stopped_when_their_last_changes_are_not_waited_for(
    tmp_path: Path,
) -> None:
    opening, disk, may_end = Opening(), Disk(), threading.Event()
    notifications = Notifications(str(tmp_path), RecordingEmitter(), disk, opening)
    for _ in range(3):
        await notifications.watch({""}, 0.0)
    tasks = asyncio.get_running_loop()
    busy = tasks.create_task(disk(may_end.wait, 30))  # so that collecting them does not begin
    await asyncio.sleep(0)
    waiting = tasks.create_task(notifications.wait(1.0, 0.004))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    notifications.stop()
    may_end.set()
    await busy
    await opening.all_stopped(3)
