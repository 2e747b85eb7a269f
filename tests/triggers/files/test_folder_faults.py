"""Folders that are missing, replaced, unreadable or too busy, and a process that was paused."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from tests.support import CHECKOUT
from tests.support.trigger_contract import RecordingEmitter, watch
from turnout.triggers import files as files_module
from turnout.triggers.files import files, move, settle_timer
from turnout.triggers.files.notifications import UNWATCHED, NotificationsLost
from turnout.triggers.files.positions import DEVICE

from .reading import names, rows


async def test_a_missing_folder_is_reported_and_waited_for(tmp_path: Path) -> None:
    root = tmp_path / "in"
    emit = RecordingEmitter()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(files(f"{root}/*.csv", settle="10ms").run(emit))
        await emit.until(lambda: emit.down_reason is not None)
        assert str(root) in str(emit.down_reason)
        assert not emit.is_up
        root.mkdir()
        (root / "a.csv").write_text("a")
        await emit.stored(1)
        assert emit.is_up
        task.cancel()


@pytest.mark.parametrize("made_again", ["at once", "later"])
async def test_a_folder_removed_and_made_again(tmp_path: Path, made_again: str) -> None:
    root = tmp_path / "in"
    root.mkdir()
    emit = RecordingEmitter()
    async with watch(files(f"{root}/**/*.csv", settle="10ms", rescan="1h"), emit):
        (root / "s").mkdir()
        (root / "s" / "a.csv").write_text("a")
        await emit.stored(1)
        shutil.rmtree(root)
        if made_again == "later":
            await emit.until(lambda: not emit.is_up)
        (root / "s").mkdir(parents=True)
        (root / "s" / "a.csv").write_text("a")
        await emit.stored(2)
        await emit.until(lambda: len(rows(emit)) == 1)
        (root / "s" / "b.csv").write_text("b")  # notifications come from the new folder
        await emit.stored(3)
    assert names(emit) == ["s/a.csv", "s/a.csv", "s/b.csv"]


async def test_an_unmounted_volume_is_not_an_emptied_folder(tmp_path: Path) -> None:
    root, volume = tmp_path / "in", tmp_path / "volume"
    root.mkdir()
    (root / "a.csv").write_text("a")
    emit = RecordingEmitter()
    async with watch(files(f"{root}/*.csv", settle="10ms"), emit):
        await emit.stored(1)
    root.rename(volume)
    root.mkdir()  # what is below the mount point
    emit.stored_positions[DEVICE] = "1:another"
    async with asyncio.TaskGroup() as group:
        task = group.create_task(files(f"{root}/*.csv", settle="10ms").run(emit))
        await emit.until(lambda: emit.down_reason is not None)
        assert "is its volume mounted?" in str(emit.down_reason)
        assert len(rows(emit)) == 1
        root.rmdir()
        volume.rename(root)
        (root / "b.csv").write_text("b")
        await emit.stored(2)
        task.cancel()
    assert names(emit) == ["a.csv", "b.csv"], "nothing ran again"


@pytest.mark.slow
@pytest.mark.parametrize("replaced", ["a link", "a parent folder"])
async def test_a_root_that_is_another_folder_now_is_watched(tmp_path: Path, replaced: str) -> None:
    emit = RecordingEmitter()
    (tmp_path / "one" / "in").mkdir(parents=True)
    (tmp_path / "two" / "in").mkdir(parents=True)
    (tmp_path / "now").symlink_to("one")
    trigger = files(f"{tmp_path}/now/in/*.csv", settle="10ms", rescan="1s")
    async with watch(trigger, emit):
        (tmp_path / "now" / "in" / "a.csv").write_text("a")
        await emit.stored(1)
        if replaced == "a link":
            (tmp_path / "next").symlink_to("two")
            (tmp_path / "next").rename(tmp_path / "now")
        else:
            (tmp_path / "one").rename(tmp_path / "before")
            (tmp_path / "two").rename(tmp_path / "one")
        (tmp_path / "now" / "in" / "b.csv").write_text("b")
        await emit.stored(2)  # by a walk
        quickest = 1.0
        for number in range(5):
            began = asyncio.get_running_loop().time()
            (tmp_path / "now" / "in" / f"{number}.csv").write_text("x")
            await emit.stored(3 + number)
            quickest = min(quickest, asyncio.get_running_loop().time() - began)
            await asyncio.sleep(0.15)  # out of step with the walks
    assert quickest < 0.2


def make_data_folder(emit: RecordingEmitter, folder: Path) -> None:
    folder.mkdir()
    (folder / "journal.db-wal").write_text("x")
    emit.connections["files"] = {"data": str(folder)}


@pytest.mark.parametrize("by", ["name", "link to the root", "another way"])
async def test_the_own_data_folder_is_left_alone(tmp_path: Path, by: str) -> None:
    emit, root = RecordingEmitter(), tmp_path / "work"
    root.mkdir()
    make_data_folder(emit, root / "data")
    pattern = f"{root}/**/*"
    if by == "link to the root":
        (tmp_path / "link").symlink_to("work")
        pattern = f"{tmp_path}/link/**/*"
    elif by == "another way":
        pattern = f"{tmp_path}/nowhere/../work/*/*"
    async with watch(files(pattern, settle="10ms", rescan="50ms"), emit):
        (root / "s").mkdir()
        for number in range(3):
            (root / "data" / "journal.db-wal").write_text(f"{number}")
            (root / "data" / f"{number}").write_text("x")
            (root / "s" / f"{number}.csv").write_text("x")
            await emit.stored(number + 1)
    assert names(emit) == ["s/0.csv", "s/1.csv", "s/2.csv"]


@pytest.mark.parametrize("pattern", ["work/data/*", "work/data/deep/*", "link/*", "other/*"])
async def test_a_pattern_in_the_own_data_folder_is_refused(tmp_path: Path, pattern: str) -> None:
    emit = RecordingEmitter()
    (tmp_path / "work").mkdir()
    (tmp_path / "link").symlink_to("work/data")
    make_data_folder(emit, tmp_path / "work" / "data")
    for folder in ("work/data/deep", "other"):
        (tmp_path / folder).mkdir()
    async with asyncio.TaskGroup() as group:
        then = move("../work/data/done") if pattern == "other/*" else None
        task = group.create_task(files(f"{tmp_path}/{pattern}", then=then).run(emit))
        await emit.until(lambda: emit.down_reason is not None)
        task.cancel()
    assert "data folder" in str(emit.down_reason)
    assert not emit.events


async def test_without_notifications_it_polls_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folders: object) -> None:
        raise OSError(errno.ENOSPC, "OS file watch limit reached")

    monkeypatch.setattr(files_module, "Notifier", full)
    emit = RecordingEmitter()
    async with watch(files(f"{tmp_path}/*.csv", settle="10ms", rescan="100ms"), emit):
        assert emit.lags[UNWATCHED] == 1
        (tmp_path / "a.csv").write_text("a")
        await emit.stored(1)


def test_a_burst_that_may_have_filled_the_queue_is_not_trusted(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    notifier = files_module.Notifier([str(tmp_path)])
    for number in range(5):
        (tmp_path / f"{number}").touch()
    assert {path for _, path in notifier.wait(1, 0.01)} == {
        str(tmp_path / f"{number}") for number in range(5)
    }
    for number in range(limit // 2):
        (tmp_path / f"{number}.more").touch()
    with pytest.raises(NotificationsLost):
        for _ in range(limit // 2):  # however many batches the burst comes in
            notifier.wait(1, 0.001)
    notifier.stop()


SCRIPT = """
    import asyncio, os, sys
    from anyio import to_thread
    from tests.support.trigger_contract import RecordingEmitter
    from turnout.triggers.files import files

    class Printing(RecordingEmitter):
        async def __call__(self, events, positions=None):
            receipts = await super().__call__(events, positions)
            for event in events:
                print(event.subject, event.extensions.get("fileerror", ""), sep="|", flush=True)
            return receipts
        def up(self):
            print("up", flush=True)

    async def main():
        import watchfiles._rust_notify
        await to_thread.run_sync(os.getpid)
        if len(sys.argv) > 2:  # everything is imported: now somebody who may not read all
            os.setuid(int(sys.argv[2]))
        await files(sys.argv[1], settle="50ms", rescan="1h").run(Printing())

    asyncio.run(main())
"""


async def watcher_process(*arguments: str) -> asyncio.subprocess.Process:
    """Start a process of its own that watches; prints `up`, then a line for each event."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(SCRIPT), *arguments,
        stdout=subprocess.PIPE, cwd=CHECKOUT,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    return process


@pytest.mark.timeout(300)
@pytest.mark.slow
async def test_files_dropped_while_the_process_was_paused(tmp_path: Path, full: bool) -> None:
    # More than the kernel's queue of notifications holds; an hour until the next rescan.
    count = 100_000 if full else 20_000
    (tmp_path / "s").mkdir()
    dropped = [f"{'s/' if number % 2 else ''}{number}.csv" for number in range(count)]
    process = await watcher_process(f"{tmp_path}/**/*.csv")
    assert process.stdout is not None
    try:
        process.send_signal(signal.SIGSTOP)
        for name in dropped:
            (tmp_path / name).touch()
        process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(120):
            seen = [(await process.stdout.readline()).decode() for _ in range(count)]
    finally:
        process.kill()
        await process.wait()
    assert sorted(seen) == sorted(f"{name}|\n" for name in dropped)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give root up")
@pytest.mark.slow
async def test_an_unreadable_file_is_tried_again_then_emitted_as_an_error() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.chmod(name, 0o777)  # noqa: PTH101  and Path.chmod is "blocking" here
        process = await watcher_process(f"{root}/*.csv", "65534")
        assert process.stdout is not None
        try:
            (root / "closed.csv").touch(mode=0)
            (root / "late.csv").touch(mode=0)
            (root / "open.csv").touch(mode=0o644)
            assert await process.stdout.readline() == b"open.csv|\n"
            (root / "late.csv").chmod(0o644)
            assert await process.stdout.readline() == b"late.csv|\n"
            assert await process.stdout.readline() == b"closed.csv|Permission denied\n"
        finally:
            process.kill()
            await process.wait()
    assert sum(settle_timer.READ_RETRY_SECONDS) < 10


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give root up")
async def test_a_folder_closed_to_the_service_hides_only_itself_until_it_is_open() -> None:
    # An hour between walks, so that only notifications bring files.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.chmod(name, 0o777)  # noqa: PTH101  and Path.chmod is "blocking" here
        process = await watcher_process(f"{root}/**/*.csv", "65534")
        assert process.stdout is not None
        try:
            (root / "closed").mkdir(mode=0)
            (root / "closed" / "a.csv").touch()
            for number in range(3):
                (root / f"{number}").mkdir()
                (root / f"{number}" / "a.csv").touch()
                line = await asyncio.wait_for(process.stdout.readline(), 20)
                assert line == f"{number}/a.csv|\n".encode()
            (root / "closed").chmod(0o755)
            assert await asyncio.wait_for(process.stdout.readline(), 20) == b"closed/a.csv|\n"
        finally:
            process.kill()
            await process.wait()
