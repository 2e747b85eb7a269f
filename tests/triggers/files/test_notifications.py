"""Where the kernel's notifications fail: nothing leaks, and walks see what they do not tell."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support import CHECKOUT
from tests.support.trigger_contract import RecordingEmitter, watch
from turnout.triggers.files import files
from turnout.triggers.files.notifications import UNWATCHED

pytestmark = pytest.mark.slow

LATIN = os.fsdecode(b"d\xe9p")


def instances() -> int:
    """Count the inotify instances of this process."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return links.count("anon_inode:inotify")


async def test_a_folder_whose_name_is_no_utf8_costs_one_instance_and_is_walked(
    tmp_path: Path,
) -> None:
    (tmp_path / "s").mkdir()
    emit, before = RecordingEmitter(), instances()
    async with watch(files(f"{tmp_path}/**/*.csv", settle="10ms", rescan="100ms"), emit):
        (tmp_path / LATIN).mkdir()
        for number in range(10):  # several walks, each of which opens the folder
            (tmp_path / LATIN / f"{number}.csv").write_text("x")
            await emit.stored(number + 1)
        await emit.until(lambda: emit.lags[UNWATCHED] == 2)
        assert instances() <= before + 1, "its parent and itself are walked, `s` is watched"
        (tmp_path / LATIN / "9.csv").unlink()
        shutil.rmtree(tmp_path / LATIN)
        await emit.until(lambda: emit.lags[UNWATCHED] == 0)
    await emit.until(lambda: instances() <= before)


async def test_file_names_that_are_no_utf8_cost_no_instances_and_hide_no_others(
    tmp_path: Path,
) -> None:
    emit, before = RecordingEmitter(), instances()
    async with watch(files(f"{tmp_path}/*.csv", settle="10ms", rescan="100ms"), emit):
        for number in range(12):
            (tmp_path / f"{LATIN}{number}.csv").write_text("x")
            await emit.stored(number + 1)
        assert instances() <= before + 1
        (tmp_path / "plain.csv").write_text("x")
        await emit.stored(13)
    await emit.until(lambda: instances() <= before)


async def test_a_stopped_trigger_gives_its_instance_back(tmp_path: Path) -> None:
    before = instances()
    for _ in range(3):
        emit = RecordingEmitter()
        async with watch(files(f"{tmp_path}/*.csv", settle="10ms"), emit):
            (tmp_path / LATIN).write_text("no match, and still an error to the watcher")
            (tmp_path / LATIN).unlink()
        await emit.until(lambda: instances() <= before)


def make_deep(parent: Path) -> None:
    """Make folders in each other until no path can name them, with a file in the last."""
    above = os.open(parent, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=above)
        folder = os.open("d" * 250, os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = folder
    os.close(os.open("a.csv", os.O_CREAT, dir_fd=above))
    os.close(above)


async def test_a_folder_too_deep_to_be_named_leaves_the_others_watched(tmp_path: Path) -> None:
    make_deep(tmp_path)
    emit = RecordingEmitter()
    try:
        async with watch(files(f"{tmp_path}/**/*.csv", settle="10ms"), emit):
            await emit.stored(1)
            (tmp_path / "b.csv").write_text("x")
            await emit.stored(2)
            assert 0 < emit.lags[UNWATCHED] < 10
    finally:
        removing = await asyncio.create_subprocess_exec("rm", "-rf", str(tmp_path / ("d" * 250)))
        await removing.wait()


# ---------------------------------------------------------------- no instance left

WATCHER = """
    import asyncio, sys
    from tests.support.trigger_contract import RecordingEmitter
    from turnout.triggers.files import files

    class Printing(RecordingEmitter):
        async def __call__(self, events, positions=None):
            receipts = await super().__call__(events, positions)
            for event in events:
                print(event.subject, flush=True)
            return receipts
        def up(self):
            print("up", flush=True)
        def down(self, reason):
            print("down", reason, flush=True)

    asyncio.run(files(sys.argv[1], settle="10ms", rescan="1h").run(Printing()))
"""

RELOADER = """
    import asyncio, sys
    from pathlib import Path
    from turnout.service.project.reload import changes

    async def main():
        print("up", flush=True)
        async for changed in changes([Path(sys.argv[1])], warn=lambda reason: None):
            print(*(path.name for path in changed), flush=True)

    asyncio.run(main())
"""


@asynccontextmanager
async def limited(
    script: str, argument: str, instances: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a script where the kernel gives so many inotify instances; it prints `up` first."""
    limit = f"echo {instances} >/proc/sys/user/max_inotify_instances"
    asked = await asyncio.create_subprocess_exec(
        "unshare", "-Ur", "sh", "-c", limit, stderr=subprocess.DEVNULL
    )
    if await asked.wait():
        pytest.skip("this machine gives no user namespaces to set the limit in")
    process = await asyncio.create_subprocess_exec(
        "unshare", "-Ur", "sh", "-c", f'{limit}; exec "$@"', "sh",
        sys.executable, "-c", textwrap.dedent(script), argument,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=CHECKOUT,
    )  # fmt: skip
    try:
        assert await line(process) == "up"
        yield process
    finally:
        process.kill()
        await process.communicate()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()


async def test_without_an_inotify_instance_a_trigger_walks(tmp_path: Path) -> None:
    async with limited(WATCHER, f"{tmp_path}/**/*.csv", 0) as process:
        (tmp_path / "a.csv").write_text("x")
        assert await line(process) == "a.csv"
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "b.csv").write_text("x")
        assert await line(process) == "s/b.csv"


async def test_the_last_instance_goes_from_the_old_folders_to_the_new(tmp_path: Path) -> None:
    async with limited(WATCHER, f"{tmp_path}/**/*.csv", 1) as process:
        for number in range(3):
            (tmp_path / f"{number}").mkdir()
            (tmp_path / f"{number}" / "a.csv").write_text("x")
            assert await line(process) == f"{number}/a.csv"


@pytest.mark.parametrize("instances", [0, 9])
async def test_reload_goes_on_where_notifications_fail(tmp_path: Path, instances: int) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text("# as loaded")
    async with limited(RELOADER, str(flows), instances) as process:
        (tmp_path / LATIN).write_text("an error to the watcher")
        async with asyncio.TaskGroup() as tasks:
            told = tasks.create_task(line(process))
            while not told.done():  # a change that is missed costs one more save
                flows.write_text(f"# saved at {asyncio.get_running_loop().time()}")
                await asyncio.wait([told], timeout=0.3)
        assert told.result() == "flows.py"
