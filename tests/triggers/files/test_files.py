"""The file trigger on real folders with real notifications: one event a version, none lost."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from threading import Event as Moment

import pytest

from tests.support import CHECKOUT
from tests.support.trigger_contract import RecordingEmitter, TriggerCase, TriggerContract, watch
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.trigger import ReadTrigger, parts_of
from turnout.triggers import files as files_module
from turnout.triggers.files import FilesTrigger, delete, files, move, settle_timer
from turnout.triggers.files.notifications import UNWATCHED, Change, NotificationsLost
from turnout.triggers.files.positions import DEVICE, GENERATION


class FilesCase:
    """Files dropped into a folder; its stored position is the acknowledgement."""

    keeps_input = True

    def __init__(self, folder: Path, *, poll: bool) -> None:
        self._folder = folder
        self._emit = RecordingEmitter()
        self._made = 0
        self._poll = poll

    def emitter(self) -> RecordingEmitter:
        return self._emit

    def watching(self, emit: RecordingEmitter) -> AbstractAsyncContextManager[None]:
        rescan = "50ms" if self._poll else None
        return watch(
            files(f"{self._folder}/*.csv", settle="10ms", poll=self._poll, rescan=rescan), emit
        )

    async def make_input(self) -> None:
        self._made += 1
        (self._folder / f"{self._made}.csv").write_text("x")

    async def redeliver(self) -> None:
        self._emit.rewind()

    def acknowledged(self) -> int:
        return len(rows(self._emit))


class TestFilesKeepTheContract(TriggerContract):
    @pytest.fixture(params=[False, True], ids=["notified", "polled"])
    def case(self, request: pytest.FixtureRequest, tmp_path: Path) -> TriggerCase:
        return FilesCase(tmp_path, poll=request.param)


def rows(emit: RecordingEmitter) -> set[str]:
    return set(emit.stored_positions) - {GENERATION, DEVICE}


def names(emit: RecordingEmitter) -> list[str]:
    return sorted(str(event.subject) for event in emit.events)


def content(event: Event) -> bytes:
    assert event.path is not None
    return event.path.read_bytes()


# ---------------------------------------------------------------- the value


def test_equal_settings_are_one_trigger_and_the_name_is_the_pattern() -> None:
    one, two = files("/in/*.csv", then=move("done/")), files("/in/*.csv", then=move("done/"))
    assert one == two
    assert hash(one) == hash(two)
    assert one.name == "files:/in/*.csv"
    assert files("/in/*.csv", settle="9s").name == one.name
    assert files("/in/*.csv", name="drops").name == "drops"
    assert isinstance(one, ReadTrigger)
    assert parts_of(one).after_run is one
    assert parts_of(files("/in/*.csv")).after_run is None


@pytest.mark.parametrize(
    ("trigger", "hint"),
    [
        (files("/in/*", then=move(".")), "../done/"),
        (files("/in/**/*", on_failure=move("..")), "../done/"),
        (files("/in/*", rescan="1ms"), "50ms"),
        (files("/in/*", max_depth=-1), "max_depth"),
        (files("/in/*", then="done/"), 'move("folder/")'),  # type: ignore[arg-type]  # what users try
    ],
)
def test_check_refuses_what_cannot_work_and_names_the_fix(trigger: FilesTrigger, hint: str) -> None:
    with pytest.raises(SetupError) as refused:
        trigger.check()
    assert hint in refused.value.message


def test_check_takes_what_works_without_looking_at_the_disk() -> None:
    files("/no/such/folder/**/*.csv", then=move("done/"), on_failure=move("../failed")).check()
    files("/in/*.csv", then=move(".."), on_failure=delete()).check()


# ---------------------------------------------------------------- what becomes an event


async def test_files_from_before_the_start_come_at_once_and_only_once(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "c.txt", ".d.csv", "e.csv.part"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1_000_000_000, 1_000_000_000))
    emit, trigger = RecordingEmitter(), files(f"{tmp_path}/*.csv", settle="1s")
    async with watch(trigger, emit):
        await emit.stored(2)
    (tmp_path / "f.csv").write_text("f")
    async with watch(files(f"{tmp_path}/*.csv", settle="10ms"), emit):
        await emit.stored(3)
    assert names(emit) == ["a.csv", "b.csv", "f.csv"]
    assert len(emit.deliveries) == 3
    assert content(emit.events[0]) == b"a.csv"


async def test_a_rewritten_file_is_another_event(tmp_path: Path) -> None:
    emit, file = RecordingEmitter(), tmp_path / "a.csv"
    async with watch(files(f"{tmp_path}/*.csv", settle="10ms"), emit):
        file.write_text("one")
        await emit.stored(1)
        file.write_text("three")
        await emit.stored(2)
        file.chmod(0o600)  # no new version
        (tmp_path / "b.csv").write_text("b")
        await emit.stored(3)
    assert [event.type.rpartition(".")[2] for event in emit.events] == [
        "created",
        "changed",
        "created",
    ]
    assert len(rows(emit)) == 2


async def test_a_file_moved_away_and_back_by_hand_runs_again(tmp_path: Path) -> None:
    emit, file, away = RecordingEmitter(), tmp_path / "a.csv", tmp_path / "away"
    async with watch(files(f"{tmp_path}/*.csv", settle="10ms"), emit):
        file.write_text("one")
        await emit.stored(1)
        file.rename(away)
        await emit.until(lambda: not rows(emit))
        away.rename(file)
        await emit.stored(2)
    first, second = emit.events
    assert first.data == second.data, "the very same version"
    assert first.id != second.id
    file.rename(away)
    async with watch(files(f"{tmp_path}/*.csv", settle="10ms"), emit):
        await emit.until(lambda: not rows(emit))
        away.rename(file)
        await emit.stored(3)


async def test_a_file_removed_and_put_back_at_once_runs_again(tmp_path: Path) -> None:
    # The inode, the size and the mtime of the new file are those of the old one.
    emit, file, aside = RecordingEmitter(), tmp_path / "in" / "a.csv", tmp_path / "aside"
    file.parent.mkdir()
    async with watch(files(f"{file.parent}/*.csv", settle="10ms"), emit):
        file.write_text("v01")
        await emit.stored(1)
        for count in (2, 3):
            file.rename(aside)
            aside.rename(file)
            await emit.stored(count)
        file.chmod(0o600)
        (tmp_path / "in" / "b.csv").write_text("after")
        await emit.stored(4)
    assert names(emit) == ["a.csv"] * 3 + ["b.csv"], "a chmod is no new file"
    assert len(emit.deliveries) == 4


async def test_a_late_word_of_a_removal_is_none_of_the_file_that_is_there_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: list[tuple[Change, str]] = []

    class Slow:
        def __init__(self, folders: object) -> None:
            """Hear nothing but what the test says."""

        def wait(self, timeout_seconds: float, step_seconds: float) -> list[tuple[Change, str]]:
            Moment().wait(0.01)
            return [words.pop()] if words else []

        def stop(self) -> None:
            """There is nothing to stop."""

    monkeypatch.setattr(files_module, "Notifier", Slow)
    emit, file = RecordingEmitter(), tmp_path / "a.csv"
    async with watch(files(f"{tmp_path}/*.csv", settle="10ms", rescan="50ms"), emit):
        file.write_text("a")  # found by a walk, of what was there before nobody has told yet
        await emit.stored(1)
        words.append((Change.GONE, str(file)))
        await emit.until(lambda: not words)
        (tmp_path / "b.csv").write_text("b")
        await emit.stored(2)
        assert names(emit) == ["a.csv", "b.csv"]
        file.rename(tmp_path / "aside")
        (tmp_path / "aside").rename(file)
        words.append((Change.GONE, str(file)))
        await emit.stored(3)
    assert names(emit) == ["a.csv", "a.csv", "b.csv"]


@pytest.mark.parametrize("seconds", [-11_644_473_600, 253_402_214_400, 2**63 // 10**9 + 1])
async def test_a_file_with_an_extreme_time_stops_nobody(seconds: int) -> None:
    # The zero of NTFS and Samba, the year 9999, and just past 64 bits: tmpfs keeps them all.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        emit, folder = RecordingEmitter(), Path(name)
        (folder / "a.csv").write_text("a")
        os.utime(folder / "a.csv", (seconds, seconds))
        kept = (folder / "a.csv").stat().st_mtime_ns
        async with watch(files(f"{folder}/*.csv", settle="10ms"), emit):
            (folder / "b.csv").write_text("b")
            await emit.stored(2)
        async with watch(files(f"{folder}/*.csv", settle="10ms"), emit):
            (folder / "c.csv").write_text("c")
            await emit.stored(3)
    assert names(emit) == ["a.csv", "b.csv", "c.csv"]
    assert len(emit.deliveries) == 3
    assert kept in [event.data["mtime_ns"] for event in emit.events]


async def test_a_file_still_written_waits_until_it_rests(tmp_path: Path) -> None:
    emit, file = RecordingEmitter(), tmp_path / "a.csv"
    loop = asyncio.get_running_loop()
    async with watch(files(f"{tmp_path}/*.csv", settle="250ms"), emit):
        until = loop.time() + 1.0
        while loop.time() < until:
            with file.open("a") as writer:  # opened again: closing says nothing about the end
                writer.write("line\n")
            await asyncio.sleep(0.03)
            assert not emit.events
        final = file.read_bytes()
        await emit.stored(1)
        assert content(emit.events[0]) == final
    assert emit.events[0].data["size"] == len(final)
    assert len(emit.deliveries) == 1


@pytest.mark.timeout(300)
async def test_no_handler_ever_sees_half_a_file(tmp_path: Path, full: bool) -> None:
    count = 1000 if full else 60
    script = """
        import hashlib, os, random, sys, time
        folder, count = sys.argv[1], int(sys.argv[2])
        for number in range(count):
            name = f"{folder}/{number}.csv"
            parts = [os.urandom(random.randrange(1, 20000)) for _ in range(random.randrange(1, 5))]
            kind = number % 3
            path = f"{folder}/.{number}.tmp" if kind == 0 else name
            with open(path, "wb") as file:
                for part in parts:
                    file.write(part); file.flush(); time.sleep(random.random() * 0.01)
                    if kind == 2: os.fchmod(file.fileno(), 0o600)
            if kind == 0: os.rename(path, name)
            print(number, hashlib.sha256(b"".join(parts)).hexdigest(), flush=True)
    """
    seen: dict[str, set[str]] = {}

    class Reading(RecordingEmitter):
        async def __call__(self, events, positions=None, **_more):  # type: ignore[no-untyped-def]  # as above
            for event in events:
                digest = hashlib.sha256(await asyncio.to_thread(content, event)).hexdigest()
                seen.setdefault(str(event.subject), set()).add(digest)
            return await super().__call__(events, positions)

    emit = Reading()
    async with watch(files(f"{tmp_path}/*.csv", settle="500ms"), emit):
        writer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(count),
            stdout=subprocess.PIPE,
        )  # fmt: skip
        output, _ = await writer.communicate()
        await emit.until(lambda: len(emit.events) == count)
    final = dict(line.split() for line in output.decode().splitlines())
    assert seen == {f"{number}.csv": {digest} for number, digest in final.items()}


def write_and_rename(path: Path) -> None:
    """Put a whole file in place as a careful writer does, a moment after its last write.

    A rename within the kernel's clock tick of the write cannot be told from writing in place.
    """
    part = path.with_name(f"{path.name}.part")
    part.write_text("whole")
    written_ns = part.stat().st_mtime_ns - 50_000_000
    os.utime(part, ns=(written_ns, written_ns))
    part.rename(path)


async def test_rename_into_place_is_seen_at_once(tmp_path: Path) -> None:
    emit, loop = RecordingEmitter(), asyncio.get_running_loop()
    (tmp_path / "link.csv").symlink_to("nowhere")
    async with watch(files(f"{tmp_path}/*.csv", settle="1h"), emit):
        await emit.until(lambda: "refused" in emit.rejected)  # the first walk is over: it knows
        write_and_rename(tmp_path / "a.csv")  # nothing of renames
        began = loop.time()
        await emit.stored(1)
        assert loop.time() - began < 2.0
        # In-place writing is not a rename, whatever else happens to the file.
        (tmp_path / "b.csv").write_text("maybe more")
        write_and_rename(tmp_path / "c.csv")
        await emit.stored(2)
    assert names(emit) == ["a.csv", "c.csv"]


async def test_a_renamed_file_somebody_still_writes_to_waits(tmp_path: Path) -> None:
    emit = RecordingEmitter()
    async with watch(files(f"{tmp_path}/*.csv", settle="1h"), emit):
        with (tmp_path / "a.part").open("w") as writer:
            writer.write("half")
            writer.flush()
            (tmp_path / "a.part").rename(tmp_path / "a.csv")
            write_and_rename(tmp_path / "b.csv")
            await emit.stored(1)
    assert names(emit) == ["b.csv"]


async def test_odd_names_arrive_byte_exact(tmp_path: Path) -> None:
    odd = [
        b"\xff\xfe.csv", b"new\nline.csv", b"\x1b[31m.csv", "\U0001f600.csv".encode(),
        b"-rf.csv", b"n" * 251 + b".csv", "\u00e9.csv".encode(), "e\u0301.csv".encode(),
        b"<script>.csv", "\u202egpj.csv".encode(),
    ]  # fmt: skip
    emit = RecordingEmitter()
    async with watch(files(f"{tmp_path}/**/*.csv", settle="10ms"), emit):
        folder = tmp_path / os.fsdecode(b"sub\xff")
        folder.mkdir()
        for name in odd:
            (tmp_path / os.fsdecode(name)).write_bytes(name)
        (folder / "deep.csv").write_text("deep")
        await emit.stored(len(odd) + 1)
    paths = {os.fsencode(event.path) for event in emit.events if event.path is not None}
    root = os.fsencode(tmp_path)
    assert paths == {root + b"/" + name for name in odd} | {root + b"/sub\xff/deep.csv"}
    assert all(content(event) for event in emit.events)
    assert all(str(event.subject).isprintable() for event in emit.events)


async def test_links_pipes_and_sockets_are_counted_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "canary").write_text("secret")
    root = tmp_path / "in"
    root.mkdir()
    emit = RecordingEmitter()
    with socket.socket(socket.AF_UNIX) as server:
        async with watch(files(f"{root}/**/*.csv", settle="10ms", rescan="100ms"), emit):
            (root / "link.csv").symlink_to(tmp_path / "canary")
            os.mkfifo(root / "pipe.csv")
            server.bind(str(root / "socket.csv"))
            (root / "folder.csv").symlink_to(tmp_path)
            (root / "good.csv").write_text("good")
            await emit.until(lambda: emit.rejected["refused"] >= 4)
            await emit.stored(1)
            (root / "late.csv").write_text("late")
            await emit.stored(2)
    assert names(emit) == ["good.csv", "late.csv"]
    assert emit.rejected["refused"] == 4, "each is counted once, however often it is seen"
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    refusals = [line for line in said if line["message"] == "files.refused"]
    assert sum(line["count"] for line in refusals) == 4
    named = [name for line in refusals for name in line["names"]]  # at most three of a scan
    assert len(named) == len(set(named)) >= 3
    assert set(named) <= {"link.csv", "pipe.csv", "socket.csv", "folder.csv"}


@pytest.mark.timeout(300)
async def test_folders_made_and_filled_in_a_race(tmp_path: Path, full: bool) -> None:
    count = 2000 if full else 600
    emit = RecordingEmitter()
    async with watch(files(f"{tmp_path}/**/*.csv", settle="10ms", rescan="1h"), emit):
        for number in range(count):
            folder = tmp_path / f"d{number % 7}" / f"e{number}"
            folder.mkdir(parents=True)
            (folder / "a.csv").write_text("a")
            if number % 10 == 0:
                await asyncio.sleep(0)
        await emit.stored(count)
        (tmp_path / "d0" / "e0" / "later.csv").write_text("x")
        await emit.stored(count + 1)
    assert len(emit.deliveries) == count + 1


# ---------------------------------------------------------------- when things go wrong


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


# ---------------------------------------------------------------- many


@pytest.mark.alone
@pytest.mark.timeout(300)
async def test_a_full_folder_is_emitted_once_each(tmp_path: Path, full: bool) -> None:
    count = 100_000 if full else 5000
    for number in range(count):
        (tmp_path / f"{number}.csv").touch()
    emit = RecordingEmitter()
    largest = 0
    loop = asyncio.get_running_loop()
    waits: list[float] = []

    async def measure() -> None:
        nonlocal largest
        while True:
            began = loop.time()
            await asyncio.sleep(0.001)
            waits.append(loop.time() - began)
            largest = max(largest, int(emit.lags.get("waiting files", 0)))

    async with asyncio.TaskGroup() as group:
        task = group.create_task(measure())
        async with watch(files(f"{tmp_path}/*.csv", settle="10ms"), emit):
            await emit.until(lambda: len(emit.by_identity) == count, 60)
        async with watch(files(f"{tmp_path}/*.csv", settle="10ms", rescan="100ms"), emit):
            (tmp_path / "last.csv").touch()
            await emit.stored(count + 1)
        task.cancel()
    assert len(emit.deliveries) == count + 1
    assert len(rows(emit)) == count + 1
    assert largest <= 2000, "found files wait in the folder, not in memory"
    assert sorted(waits)[len(waits) * 99 // 100] < 0.1, "others on the loop get their turn"


# ---------------------------------------------------------------- after-run actions


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
