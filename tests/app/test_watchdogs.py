"""What a service notices about its process and its clock, on the real program."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.program import Program, until
from tests.support.running import running
from turnout import flow
from turnout.service.domain.clock import JUMP, PATIENCE, WallClock

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

FLOWS = """
import asyncio, re, time
from turnout import flow, gather, sleep, task, webhook

@flow(on=webhook("/note"))
async def note(data: dict) -> int:
    return 1

@flow(on=webhook("/slow"))
async def slow(data: dict) -> int:
    await asyncio.sleep(3)
    return 1

@flow(on=webhook("/rest"))
async def rest(data: dict) -> int:
    await sleep("3s")
    return 1

@flow(on=webhook("/blocks"))
async def blocks(data: dict) -> None:
    time.sleep(100)

@task
async def holds() -> None:
    time.sleep(3)  # branch

@flow(on=webhook("/branch"))
async def splits(data: dict) -> None:
    await gather(holds(), asyncio.sleep(0))

def asks_slowly(event: object) -> bool:
    time.sleep(3)  # filter
    return True

@flow(on=webhook("/filter"), when=asks_slowly)
async def filtered(data: dict) -> None: ...

@flow(on=webhook("/pauses"))
async def pauses(data: dict) -> None:
    time.sleep(data["seconds"])

@flow(on=webhook("/sums"))
async def sums(data: dict) -> None:
    sum(range(data["upto"]))  # as above, and it ends

@flow(on=webhook("/keeps"))
async def keeps(data: dict) -> None:
    re.match(r"(a+)+b", "a" * 60)  # one call that never gives the interpreter's lock back
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    env = {"TURNOUT_BLOCKED_LOOP": "1s"}
    with Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log", env=env) as program:
        yield program


# ---------------------------------------------------------------- the loop


def test_a_process_that_stood_still_goes_on(program: Program) -> None:
    program.start().ready()
    run = program.post("slow", {})
    program.signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        program.child.wait(4)  # four times as long as a loop may be blocked
    program.signal(signal.SIGCONT)
    program.quiet(20)
    found = program.api(f"/runs/{run}")
    assert (found["state"], found["attempts"]) == ("succeeded", 1)
    assert program.stop() == 0


@pytest.mark.parametrize("path", ["blocks", "keeps"])
def test_a_blocked_loop_ends_the_process_and_says_where(program: Program, path: str) -> None:
    program.start().ready()
    program.ask(f"/hooks/{path}", method="POST", body=b"{}", timeout=2)
    assert program.ended(40) not in (0, 70, 74)
    assert f"in {path}" in program.log_text()


def test_the_last_line_of_a_blocked_service_names_flow_setting_and_fix(program: Program) -> None:
    program.start().ready()
    program.ask("/hooks/blocks", method="POST", body=b"{}", timeout=2)
    program.ended(40)
    line = FLOWS.splitlines().index("    time.sleep(100)") + 1
    assert program.log_text().splitlines()[-1] == (
        f"turnout ends: flow 'blocks', at {program.flows}:{line} (time.sleep(100)), blocked the "
        "event loop for 1s (setting blocked_loop, TURNOUT_BLOCKED_LOOP), so that nothing else "
        "could run; call what blocks in a `def` task, or raise the setting"
    )


@pytest.mark.parametrize("path", ["branch", "filter"])
def test_what_blocks_is_named_in_a_branch_and_outside_a_run(tmp_path: Path, path: str) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    with Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log") as program:
        program.start().ready()
        program.ask(f"/hooks/{path}", method="POST", body=b"{}", timeout=10)
        said = json.loads(program.said(r'\{.*"loop.blocked".*', 10)[0])
    line = next(n for n, text in enumerate(FLOWS.splitlines(), 1) if f"# {path}" in text)
    assert said["location"] == f"{flows}:{line}"
    assert said["flow"] == ("splits" if path == "branch" else None)


@pytest.fixture
def usual(tmp_path: Path) -> Iterator[Program]:
    """Serve as operators do: a loop may be blocked for half a minute."""
    (tmp_path / "flows.py").write_text(FLOWS)
    with Program(
        flows=tmp_path / "flows.py", data=tmp_path / "data", log=tmp_path / "log"
    ) as program:
        program.start().ready()
        yield program


@pytest.mark.full
def test_every_block_of_a_second_is_logged_and_no_short_one(usual: Program) -> None:
    for seconds in (1.0, 0.3) * 6:
        usual.post("pauses", {"seconds": seconds})
        usual.quiet(10)
    usual.post("pauses", {"seconds": 3})
    usual.quiet(10)
    found = [json.loads(line) for line in usual.log_text().splitlines() if "loop.blocked" in line]
    line = FLOWS.splitlines().index('    time.sleep(data["seconds"])') + 1
    assert [each["location"] for each in found] == [f"{usual.flows}:{line}"] * 7
    assert {each["flow"] for each in found} == {"pauses"}


def test_a_call_that_gives_no_other_thread_a_turn_is_logged_when_it_has_ended(
    usual: Program,
) -> None:
    began = time.process_time()
    sum(range(10**7))
    a_second = 10**7 / (time.process_time() - began)
    body = json.dumps({"upto": round(1.5 * a_second)}).encode()
    usual.ask("/hooks/sums", method="POST", body=body, timeout=30)
    said = json.loads(usual.said(r'\{.*"loop.blocked".*', 10)[0])
    assert (said["flow"], said["location"]) == (None, None)
    assert "interpreter's lock" in said["hint"]


# ---------------------------------------------------------------- the clock


class Times:
    """A wall clock and the time that passes, as a test sets them."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, tzinfo=UTC)
        self.passed = 0.0

    def passes(self, length: timedelta) -> None:
        self.now += length
        self.passed += length.total_seconds()

    def clock(self, known: datetime | None = None) -> WallClock:
        return WallClock(lambda: self.now, known=known, elapsed=lambda: self.passed)


def test_a_clock_that_jumps_ahead_is_trusted_after_an_hour() -> None:
    times = Times()
    clock = times.clock()
    for _ in range(90):
        times.passes(timedelta(days=1))
        assert clock.is_trusted(), "an idle service still prunes"
    times.now += timedelta(days=40)
    for _ in range(60):
        assert not clock.is_trusted()
        times.passes(timedelta(minutes=1) - timedelta(seconds=0.1))
    times.passes(timedelta(seconds=10))
    assert clock.is_trusted()
    assert clock.ahead == timedelta(0)


def test_a_jump_that_is_taken_back_never_was() -> None:
    times = Times()
    clock = times.clock()
    times.now += timedelta(days=40)
    assert not clock.is_trusted()
    times.now -= timedelta(days=40)
    assert clock.is_trusted()
    times.passes(timedelta(days=3))
    assert clock.is_trusted()


@pytest.mark.parametrize("shift", [-40, -1, 0, 1])
def test_a_smaller_jump_and_one_back_are_trusted(shift: int) -> None:
    times = Times()
    clock = times.clock()
    times.now += shift * JUMP
    assert clock.is_trusted()


def test_a_start_long_after_the_last_write_waits_too() -> None:
    times = Times()
    clock = times.clock(known=times.now - timedelta(days=3))
    assert not clock.is_trusted()
    times.passes(PATIENCE)
    assert clock.is_trusted()


def faked(program: Program, offset: Path) -> Program:
    """Serve under a clock that `offset` sets, while the time that passes stays true."""
    libraries = list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        pytest.skip("needs Debian's libfaketime")
    program.env = {
        **program.env,
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "TURNOUT_BLOCKED_LOOP": "30s",
        "TURNOUT_KEEP_FINISHED": "7d",
    }
    offset.write_text("+0")
    return program


def state(program: Program, run: str) -> str:
    """Return a run's state as the journal has it; a program that asks would take too long."""
    path = program.data / "journal" / "journal.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        row = journal.execute("SELECT state FROM runs WHERE id = ?", (run,)).fetchone()
    return "gone" if row is None else str(row[0])


@pytest.mark.full
def test_a_clock_forty_days_ahead_deletes_nothing(program: Program, tmp_path: Path) -> None:
    offset = tmp_path / "offset"
    faked(program, offset)
    program.sabotage = "import turnout.service.operate.maintenance as m\nm.INTERVAL_SECONDS = 0.2\n"
    program.start().ready()
    run = program.post("note", {})
    program.quiet(10)
    offset.write_text("+40d")
    program.said("pruning.deferred", 20)
    offset.write_text("+0")
    assert state(program, run) == "succeeded"
    program.stop()
    offset.write_text("+40d")  # and at a start
    program.start().ready()
    until(lambda: program.log_text().count("pruning.deferred") == 2, 20, "a second alarm")
    assert state(program, run) == "succeeded"


@pytest.mark.full
def test_what_is_due_when_the_clock_is_right_again_comes_at_once(
    program: Program, tmp_path: Path
) -> None:
    offset = tmp_path / "offset"
    faked(program, offset).start().ready()
    began = time.monotonic()
    run = program.post("rest", {})
    until(lambda: state(program, run) == "waiting", 20, "the run rests")
    offset.write_text("-1h")
    program.post("rest", {})  # the dispatcher looks, by the clock that is wrong
    until(lambda: time.monotonic() - began > 3, 5, "the time it was to rest")
    offset.write_text("+0")
    until(lambda: state(program, run) == "succeeded", 8, "the run goes on")


# ---------------------------------------------------------------- the disk


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
async def test_a_disk_that_is_nearly_full_is_a_reason_not_to_be_ready(tmp_path: Path) -> None:
    @flow
    async def works() -> None: ...

    async with running(tmp_path, [works], min_free_bytes=2**60) as service:
        reason, *_ = service.process.problems()
        assert "no new events are accepted: the disk has" in reason
        assert "min_free_bytes" in reason


def test_a_full_disk_is_said_once_and_so_is_its_end(program: Program, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    try:
        program.data = disk / "data"
        program.env = {**program.env, "TURNOUT_MIN_FREE_BYTES": "0"}
        program.start().ready()
        filler = disk / "filler"
        with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**20)) or file.write(bytes(1024))
        for _ in range(200):
            program.ask("/hooks/note", method="POST", body=b'{"x": "' + b"y" * 9000 + b'"}')
        program.said("journal.full", 10)
        filler.unlink()
        program.said("journal.writable", 10)
        assert program.log_text().count("journal.full") == 1
        assert program.stop() == 0
    finally:
        program.kill()
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_said_though_less_than_what_was_refused_still_fits(
    program: Program, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], check=True)
    try:
        program.data = disk / "data"
        program.env = {**program.env, "TURNOUT_MIN_FREE_BYTES": "0"}
        program.start().ready()
        body = b'{"x": "' + b"y" * 60_000 + b'"}'

        def is_refused() -> bool:
            answer = program.ask("/hooks/note", method="POST", body=body)
            return answer is not None and answer.status == 503

        until(is_refused, 20, "a refusal")
        program.said("journal.full", 10)
    finally:
        program.kill()
        subprocess.run(["umount", "-l", str(disk)], check=True)
