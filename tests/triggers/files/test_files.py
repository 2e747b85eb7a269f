"""Which files become events, each version once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from threading import Event as Moment

import pytest

from tests.support.trigger_contract import RecordingEmitter, TriggerCase, TriggerContract, watch
from turnout.triggers import files as files_module
from turnout.triggers.files import files
from turnout.triggers.files.notifications import Change

from .reading import content, names, rows


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


@asynccontextmanager
async def watching_for_renames(folder: Path, emit: RecordingEmitter) -> AsyncIterator[None]:
    """Watch a folder whose first walk is over, which knows nothing of renames."""
    (folder / "link.csv").symlink_to("nowhere")
    async with watch(files(f"{folder}/*.csv", settle="1h"), emit):
        await emit.until(lambda: "refused" in emit.rejected)
        yield


async def test_rename_into_place_is_seen_at_once(tmp_path: Path) -> None:
    emit, loop = RecordingEmitter(), asyncio.get_running_loop()
    async with watching_for_renames(tmp_path, emit):
        write_and_rename(tmp_path / "a.csv")
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
    async with watching_for_renames(tmp_path, emit):
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


# ---------------------------------------------------------------- many


@pytest.mark.alone
@pytest.mark.timeout(300)
async def test_a_full_folder_is_emitted_once_each(tmp_path: Path, full: bool) -> None:
    count = 100_000 if full else 5000
    for number in range(count):
        (tmp_path / f"{number}.csv").touch()
    emit = RecordingEmitter()
    largest = 0
    turns: list[float] = []

    async def measure() -> None:
        nonlocal largest
        while True:
            began = time.thread_time()  # of the loop alone: what else runs here does not count
            await asyncio.sleep(0.001)
            turns.append(time.thread_time() - began)
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
    assert sorted(turns)[len(turns) * 99 // 100] < 0.1, "others on the loop get their turn"
