"""Large results: in files beside the journal, there as long as a row names them, and no longer."""

from __future__ import annotations

import errno
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from turnout import by_input, flow, sleep, task
from turnout.service.domain.clock import WallClock
from turnout.service.journal.records import Filter
from turnout.service.journal.sqlite.blobs import name_of
from turnout.service.journal.sqlite.examine import CHECKS
from turnout.service.operate.maintenance import Maintenance
from turnout.service.operate.verbs import Retry
from turnout.service.steps import recording
from turnout.testing import serve
from turnout.testing.service import Service

SMALL: dict[str, Any] = {"max_result_bytes": 1000, "max_blob_bytes": 100_000}
LETTERS = "abcdefghij" * 1000
made: list[str] = []


@pytest.fixture(autouse=True)
def nothing_made() -> None:
    made.clear()


@task
async def make(text: str) -> str:
    made.append(text)
    return text * 1000


@task(cache=by_input(ttl="1d"))
async def make_once(text: str) -> str:
    made.append(text)
    return text * 1000


@task
def make_odd() -> frozenset[int]:
    made.append("odd")
    return frozenset(range(2000))


@flow
async def over_a_night() -> int:
    letters = await make("abcdefghij")
    numbers = await make_odd.run()
    await sleep("1d")
    assert letters == LETTERS
    assert isinstance(numbers, frozenset)
    return len(letters) + len(numbers)


@flow
def in_a_thread() -> int:
    return len(make_odd())


@flow
async def shares() -> int:
    return len(await make_once("abcdefghij"))


def files(service: Service) -> list[Path]:
    return sorted(path for path in service.folder.glob("journal/results/**/*") if path.is_file())


async def maintain(service: Service) -> None:
    process = service.process
    await Maintenance(
        process.journal, process.after_run_actions, process.settings, process.metrics,
        now=service.clock.now,
        clock=WallClock(service.clock.now, elapsed=lambda: service.clock.now().timestamp()),
    ).run_once()  # fmt: skip


async def test_a_large_result_is_kept_in_a_file_and_comes_back_after_a_restart() -> None:
    async with serve(over_a_night, in_a_thread, **SMALL) as service:
        for crash_at in (1, 2, 3):
            result = await service.run(over_a_night, crash_at=crash_at)
            assert result.result == 12_000
        steps = result.steps
        assert steps["make#1"].result is None
        assert steps["make#1"].blob == name_of(b'"%s"' % LETTERS.encode())
        assert len(files(service)) == 2, "equal results share a file"
        assert all(path.stat().st_mode & 0o077 == 0 for path in files(service)[0].parents[:2])
        assert (await service.run(in_a_thread, crash_at=1)).result == 2000
    assert made.count("abcdefghij") == 4 and made.count("odd") == 4 + 2


async def test_a_def_flow_reads_it_back_too() -> None:
    attempt: list[int] = []

    @flow(name="twice", retry=1)
    def twice() -> int:
        numbers = make_odd()
        attempt.append(len(numbers))
        if len(attempt) == 1:
            raise OSError
        return len(numbers)

    async with serve(twice, **SMALL) as service:
        assert (await service.run(twice)).result == 2000
    assert made == ["odd"]


async def test_it_goes_with_the_last_run_and_cached_result_that_names_it() -> None:
    async with serve(shares, keep_finished=timedelta(days=1), **SMALL) as service:
        first = await service.run(shares)
        again = await service.run(shares)
        assert again.steps["make_once#1"].origin == first.id
        assert again.steps["make_once#1"].blob == first.steps["make_once#1"].blob
        assert made == ["abcdefghij"]
        (file,) = files(service)
        await maintain(service)
        assert file.exists()
        await service.advance("2d")
        await maintain(service)
        assert not file.exists(), "the runs are pruned and the cached result has expired"
        assert await service.process.journal.runs(Filter()) == []


async def test_the_file_of_a_result_that_is_on_its_way_is_not_swept() -> None:
    async with serve(shares, **SMALL) as service:
        size = service.journal.size_bytes()
        async with service.journal.store_blob(b"x" * 5000) as name:
            assert service.journal.size_bytes() == size + 5000
            await service.journal.prune_blobs()
            assert [path.name for path in files(service)] == [name]
        assert await service.journal.prune_blobs() == 5000
        assert files(service) == []
        assert service.journal.size_bytes() == size


async def test_what_a_crash_left_is_swept() -> None:
    async with serve(shares, **SMALL) as service:
        await service.run(shares)
        (service.folder / "journal" / "results" / "torn.part").write_bytes(b"half")
        orphan = service.folder / "journal" / "results" / "ab" / ("ab" + "0" * 38)
        orphan.parent.mkdir(exist_ok=True)
        orphan.write_bytes(b"nobody names me")
        await service.restart()
        await maintain(service)
        assert len(files(service)) == 1
        assert (await service.run(shares)).result == 10_000


async def test_a_file_that_is_gone_is_a_miss_for_the_cache_and_named_for_a_step() -> None:
    @task
    async def fails_first() -> None:
        if len(made) == 1:
            made.append("failed")
            raise OSError

    @flow(name="needs")
    async def needs() -> int:
        letters = await make("abcdefghij")
        await fails_first()
        return len(letters)

    async with serve(shares, needs, **SMALL) as service:
        await service.run(shares)
        os.truncate(files(service)[0], 7)
        assert (await service.run(shares)).result == 10_000
        assert made == ["abcdefghij"] * 2

        made.clear()
        failed = await service.run(needs)
        assert failed.error is not None and failed.error.step == "fails_first#1"
        for file in files(service):
            file.unlink()
        await service.process.operator.do(Retry(failed.id))
        lost = await service.ended(failed.id)
        assert lost.error is not None and "results/" in lost.error.message
        problem = await service.journal.read(dict(CHECKS)["every large result has its file"])
        assert problem is not None and "cannot be read" in problem
        await service.process.operator.do(Retry(failed.id, "make"))
        assert (await service.ended(failed.id)).result == 10_000


async def test_there_is_a_limit_and_it_is_named() -> None:
    @flow(name="huge")
    async def huge() -> None:
        await make("x" * 101)

    async with serve(huge, **SMALL) as service:
        error = (await service.run(huge)).error
        assert error is not None and error.type == "not_kept"
        assert "the limit is 100,000 (max_blob_bytes)" in error.message


async def test_a_full_disk_holds_the_step_until_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recording, "FULL_DISK_WAIT_SECONDS", 0.001)
    honest, refusals = tempfile.mkstemp, [errno.ENOSPC, errno.EDQUOT]

    def sometimes_full(*args: Any, **named: Any) -> tuple[int, str]:
        if refusals:
            raise OSError(refusals.pop(), "no room")
        return honest(*args, **named)

    async with serve(shares, **SMALL) as service:
        monkeypatch.setattr(tempfile, "mkstemp", sometimes_full)
        assert (await service.run(shares)).result == 10_000
        assert len(files(service)) == 1
    assert refusals == [] and made == ["abcdefghij"], "written again, not computed again"
