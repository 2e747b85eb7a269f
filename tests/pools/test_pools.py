"""Pools: work runs where it belongs, ends when it has ended, and fails alone."""

from __future__ import annotations

import asyncio
import ctypes
import io
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # no stubs among the project's dependencies
import pytest

from tests.support.attempts import attempts
from turnout import current, flow, task
from turnout.service.domain.errors import NotKept
from turnout.service.pools import Pools, caller, on_loop
from turnout.service.pools.worker import WorkerDied
from turnout.service.project.loader import load, load_file
from turnout.service.telemetry import logs

pytestmark = pytest.mark.slow

colour: ContextVar[str] = ContextVar("colour", default="none")


class Odd(Exception):
    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} {right}")


def double(value: int) -> int:
    print("doubling", value)  # noqa: T201  under test
    return 2 * value


def pid(_: int = 0) -> int:
    return os.getpid()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def complain(kind: str) -> None:
    raise Odd("left", "right") if kind == "odd" else KeyError("missing")


def a_lock() -> Any:
    return threading.Lock()


def shout() -> str:
    os.write(1, b"this is no answer\n")  # what a subprocess or a C library may do
    return "still fine"


@pytest.fixture
def pools() -> Pools:
    return Pools(2, 1)


async def process(pools: Pools, function: Any, *args: Any, **options: Any) -> Any:
    return await pools.call(function, args, {}, pool="process", name=function.__name__, **options)


# ---------------------------------------------------------------- loop and threads


async def test_async_runs_on_the_loop_and_def_in_a_bounded_pool_of_threads() -> None:
    pools = Pools(2, 1)
    running, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2, timeout=5)

    async def here() -> threading.Thread:
        return threading.current_thread()

    def there() -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait()
        with lock:
            running -= 1
        return colour.get()

    assert await pools.call(here, (), {}) is threading.current_thread()
    colour.set("red")
    calls = [pools.call(there, (), {}) for _ in range(6)]
    assert await asyncio.gather(*calls) == ["red"] * 6
    assert most == 2
    pools.close()


async def test_a_thread_acts_for_the_task_that_waits_for_it(pools: Pools) -> None:
    async def ask() -> str:
        return "from the loop"

    def work() -> tuple[Any, str]:
        return caller(), on_loop(ask())

    assert await pools.call(work, (), {}) == (asyncio.current_task(), "from the loop")
    pools.close()


async def test_a_cancelled_call_comes_back_when_its_thread_has(pools: Pools) -> None:
    started, release = threading.Event(), threading.Event()
    seen: list[str] = []

    def work() -> None:
        started.set()
        release.wait(5)
        try:
            on_loop(asyncio.sleep(60))
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(pools.call(work, (), {}))
        await asyncio.to_thread(started.wait, 5)
        call.cancel()
        call.cancel()
        await asyncio.wait([call], timeout=0.05)
        assert not call.done()
        release.set()
    assert call.cancelled() and seen == ["cancelled"]
    pools.close()


async def test_a_timeout_is_told_from_the_function_s_own(pools: Pools) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    async def own() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match=r"^slow did not end within its timeout of 0.01s$"):
        await pools.call(forever, (), {}, timeout_seconds=0.01, name="slow")
    with pytest.raises(TimeoutError, match=r"^mine$"):
        await pools.call(own, (), {}, timeout_seconds=5)
    pools.close()


async def test_stop_iteration_does_not_hang_the_call(pools: Pools) -> None:
    def stops() -> None:
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        await pools.call(stops, (), {})
    pools.close()


# ---------------------------------------------------------------- worker processes


async def test_workers_run_are_kept_and_are_replaced_when_they_die(pools: Pools) -> None:
    first = await process(pools, pid)
    assert first != os.getpid()
    assert await process(pools, pid) == first
    with pytest.raises(WorkerDied, match=r"die ended before it did: killed by SIGKILL"):
        await process(pools, die)
    assert await process(pools, pid) != first
    assert await process(pools, shout) == "still fine"
    pools.close()


async def test_what_cannot_travel_is_refused_by_name(pools: Pools) -> None:
    with pytest.raises(NotKept, match="double: an argument cannot go to a worker process"):
        await process(pools, double, threading.Lock())
    with pytest.raises(NotKept, match="a_lock: the result cannot come back"):
        await process(pools, a_lock)
    with pytest.raises(KeyError, match="missing") as caught:
        await process(pools, complain, "key")
    assert "in complain" in caught.value.__notes__[0]
    with pytest.raises(Exception, match="Odd: left right"):
        await process(pools, complain, "odd")
    pools.close()


async def test_a_timed_out_worker_is_killed(pools: Pools, tmp_path: Path) -> None:
    await process(pools, pid)
    file = tmp_path / "pid"
    with pytest.raises(TimeoutError, match=r"hang did not end within its timeout of 0.5s"):
        await process(pools, hang, str(file), timeout_seconds=0.5)
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)
    pools.close()


async def test_what_a_worker_prints_is_logged_here(pools: Pools) -> None:
    stream = io.StringIO()
    undo = logs.configure("json", "info", stream)
    assert await process(pools, double, 4) == 8
    undo()
    assert '"message":"doubling 4"' in stream.getvalue()
    pools.close()


def spread(folder: str) -> None:
    """Start a child process that outlives whoever is gentle, say who it is, and stay busy."""
    child = subprocess.Popen(["sleep", "60"])
    Path(folder, "child").write_text(str(child.pid))
    while True:
        pass


def spread_and_crash(folder: str) -> None:
    child = subprocess.Popen(["sleep", "60"])
    Path(folder, "child").write_text(str(child.pid))
    ctypes.string_at(0)  # a segmentation fault


def gone(file: Path) -> bool:
    process = int(file.read_text())
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


async def until_gone(file: Path) -> None:
    async with asyncio.timeout(5):
        while not gone(file):  # noqa: ASYNC110  another process's end has no event
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_an_endless_loop_ends_at_its_timeout_with_all_it_started(
    pools: Pools, tmp_path: Path
) -> None:
    await process(pools, pid)
    with pytest.raises(TimeoutError, match="spread did not end"):
        await process(pools, spread, str(tmp_path), timeout_seconds=1.0)
    await until_gone(tmp_path / "child")
    assert await process(pools, double, 2) == 4
    pools.close()


@pytest.mark.slow
async def test_a_segmentation_fault_is_named_and_leaves_nothing_behind(
    pools: Pools, tmp_path: Path
) -> None:
    with pytest.raises(WorkerDied, match="killed by SIGSEGV"):
        await process(pools, spread_and_crash, str(tmp_path))
    await until_gone(tmp_path / "child")
    assert await process(pools, double, 2) == 4
    pools.close()


def let_go() -> None:
    os.closerange(3, 50)


async def test_a_worker_that_breaks_off_says_how_it_ended(pools: Pools) -> None:
    with pytest.raises(WorkerDied, match="let_go ended before it did: exit code 1"):
        await process(pools, let_go)
    assert await process(pools, double, 2) == 4
    pools.close()


def take(mebibytes: int) -> int:
    return len(bytearray(mebibytes * 2**20))


def of_bytes(mebibytes: int) -> bytes:
    return bytes(mebibytes * 2**20)


@pytest.mark.slow
async def test_a_worker_has_so_much_memory_and_no_more() -> None:
    pools = Pools(1, 1, process_memory=256 * 2**20)
    first = await process(pools, pid)
    assert await process(pools, take, 100) == 100 * 2**20
    with pytest.raises(MemoryError, match=r"take needs more memory .* process_memory"):
        await process(pools, take, 300)
    assert await process(pools, pid) != first, "it may be short of memory from here on"
    with pytest.raises(MemoryError, match=r"of_bytes needs more memory"):
        await process(pools, of_bytes, 80)  # enough for the result, not for sending it too
    pools.close()


def is_taken_first() -> str:
    return Path("/proc/self/oom_score_adj").read_text().strip()


async def test_the_kernel_takes_a_worker_before_the_service(pools: Pools) -> None:
    assert await process(pools, is_taken_first) == "1000"
    pools.close()


@pytest.mark.slow
async def test_a_worker_is_replaced_after_so_many_calls() -> None:
    pools = Pools(1, 1, process_calls=2)
    seen = [await process(pools, pid) for _ in range(4)]
    assert seen[0] == seen[1] != seen[2] == seen[3]
    pools.close()


def term_is_heard_by_children() -> int:
    child = subprocess.Popen(["sleep", "60"])
    child.terminate()
    return child.wait(10)


def fork_and_die(folder: str) -> None:
    child = os.fork()
    if child == 0:
        time.sleep(60)
    Path(folder, "child").write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def uses_processes() -> list[int]:
    with multiprocessing.get_context("spawn").Pool(1) as inner:
        return inner.map(abs, [-1, -2])


async def test_processes_below_a_worker_are_ordinary_ones(pools: Pools, tmp_path: Path) -> None:
    assert await process(pools, term_is_heard_by_children) == -signal.SIGTERM
    assert await process(pools, uses_processes) == [1, 2]
    with pytest.raises(WorkerDied, match="SIGKILL"):
        await process(pools, fork_and_die, str(tmp_path))
    await until_gone(tmp_path / "child")
    pools.close()


FLOW_FILE = """
from turnout import current, flow, task

class Box:
    def __init__(self, value):
        self.value = value

@task(pool="process")
def weigh(box: Box) -> Box:
    return Box(box.value * FACTOR)

FACTOR = 2

@flow
async def boxes() -> int:
    return (await weigh.run(Box(21))).value

@flow(pool="process")
def alone() -> str:
    return current().run.id

@flow(pool="process")
def nests() -> None:
    weigh(Box(1))
"""


async def test_a_flow_file_is_found_by_path_in_the_worker(tmp_path: Path) -> None:
    file = tmp_path / "boxes.py"
    file.write_text(FLOW_FILE)
    module = await asyncio.to_thread(load_file, file)
    async with attempts(tmp_path) as run:
        assert (await run.first(module.boxes)).result == b"42"
        assert list(await run.steps()) == ["weigh#1"]
        assert (await run.first(module.alone, id="e2")).result == b'"run-of-e2"'
        outcome = await run.first(module.nests, id="e3")
        assert outcome.error is not None and 'pool="process"' in outcome.error.message
        file.write_text(FLOW_FILE.replace("FACTOR = 2", "FACTOR = 3"))
        assert (await run.first(module.boxes, id="e4")).result == b"42"  # as it was loaded
        await asyncio.to_thread(load, [file])
        changed = await asyncio.to_thread(load_file, file)
        assert (await run.first(changed.boxes, id="e5")).result == b"63"


@task(pool="process")
def keyed() -> str:
    return current().key("mail")


@flow
async def asks_for_keys() -> list[str]:
    return [await keyed.run(), await keyed.run(), current().run.flow]


async def test_a_process_step_has_its_run_s_key(tmp_path: Path) -> None:
    async with attempts(tmp_path) as run:
        outcome = await run.first(asks_for_keys)
    assert outcome.result is not None
    first, second, name = outcome.result.decode().strip("[]").replace('"', "").split(",")
    assert len(first) == 32 and first != second and name == "asks_for_keys"
