"""`current().attach(…)` and `artefact(…)`: files that a run keeps, as an author meets them."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from turnout import Fail, artefact, by_input, current, flow, secret, task
from turnout.service.domain.errors import JournalFull, MisplacedTask, NotFound, NotKept
from turnout.service.journal.contract import Attachment
from turnout.service.journal.records import StoredArtefact
from turnout.service.journal.sqlite.staging import StagedBlob
from turnout.service.steps import artefacts
from turnout.testing import serve
from turnout.testing.service import Service

log: list[str] = []


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    log.clear()
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def kept(service: Service, run_id: str) -> Sequence[StoredArtefact]:
    run = await service.journal.run(run_id)
    assert run is not None
    return await service.journal.artefacts(run.seq, 1000)


async def contents(service: Service, run_id: str) -> dict[str, bytes]:
    return {
        each.name: await asyncio.to_thread(service.journal.blob_path(each.blob).read_bytes)
        for each in await kept(service, run_id)
    }


async def no_parts_left(service: Service) -> None:
    async with asyncio.timeout(10):
        while parts(service):  # noqa: ASYNC110  a thread deletes them
            await asyncio.sleep(0.001)


def parts(service: Service) -> list[Path]:
    return list(service.folder.glob("journal/results/*.part"))


def blobs(service: Service) -> list[Path]:
    return list(service.folder.glob("journal/results/*/*"))


async def test_what_a_thread_attaches_after_the_timeout_of_its_task_leaves_nothing() -> None:
    go, told = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def late() -> None:
        go.wait(10)
        try:
            current().attach("late", b"x" * 100)
        except MisplacedTask as error:
            log.append(str(error))
        loop.call_soon_threadsafe(told.set)

    @task(timeout="50ms")
    async def slow() -> None:
        await asyncio.to_thread(late)

    @flow
    async def made() -> None:
        await slow()

    async with serve(made) as service:
        result = await service.run(made)
        assert result.state == "failed"
        go.set()
        await asyncio.wait_for(told.wait(), 10)
        await no_parts_left(service)
        assert log[0].startswith("attach('late', …) came after its task had ended")
        assert await contents(service, result.id) == {} and not blobs(service)


async def test_content_is_held_while_its_record_waits_for_room_on_the_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("turnout.service.steps.recording.FULL_DISK_WAIT_SECONDS", 0.001)

    @task
    def makes() -> str:
        return current().attach("a", b"content")

    @flow
    async def made() -> None:
        await makes.run()

    async with serve(made) as service:
        journal: Any = service.journal
        record = journal.record_artefacts
        tries: list[str] = []

        async def full_at_first(claim: Any, step: Any, attached: Sequence[Attachment]) -> None:
            tries.append(step.key)
            if len(tries) == 1:
                for each in attached:
                    await asyncio.to_thread(each.file.keep)
                raise JournalFull("full")
            await journal.prune_blobs()  # what makes room
            await record(claim, step, attached)

        monkeypatch.setattr(journal, "record_artefacts", full_at_first)
        result = await service.run(made)
        assert await contents(service, result.id) == {"a": b"content"}
        assert len(tries) == 2


# ---------------------------------------------------------------- attaching and reading


@task
def export(day: str) -> str:
    Path("sales.csv").write_text(day)
    name = current().attach("sales.csv", Path("sales.csv"))
    Path("sales.csv").unlink()  # it was copied
    return name


@task
async def count(name: str) -> int:
    content = await asyncio.to_thread(artefact(name).read)
    assert await asyncio.to_thread(artefact(name).path.read_bytes) == content
    return len(content)


@flow
async def report(day: str) -> int:
    return await count(await export.run(day))


@flow
def report_in_a_thread(day: str) -> int:
    @task
    def count_here(name: str) -> int:
        return len(artefact(name).read())

    return count_here(export(day))


async def test_a_later_step_reads_it_by_its_name_also_after_a_crash() -> None:
    async with serve(report, report_in_a_thread) as service:
        for crash_at in (1, 2, None):
            result = await service.run(report, "monday", crash_at=crash_at)
            assert result.result == len("monday")
            assert await contents(service, result.id) == {"sales.csv": b"monday"}
        [found] = await kept(service, result.id)
        assert (found.key, found.type, found.size) == ("export#1", "text/csv", 6)
        assert (await service.run(report_in_a_thread, "tuesday")).result == 7
        await no_parts_left(service)
        assert len(blobs(service)) == 2, "equal content is stored once"


async def test_the_try_that_ends_a_step_counts() -> None:
    @task(retry=2)
    async def tries() -> None:
        log.append("try")
        current().attach("same.txt", b"%d" % len(log))
        current().attach(f"try-{len(log)}.txt", b"x")
        current().attach("same.txt", b"last of %d" % len(log))
        if len(log) < 3:
            raise OSError

    @flow(name="tried")
    async def tried() -> None:
        await tries()

    async with serve(tried) as service:
        result = await service.run(tried)
        assert await contents(service, result.id) == {
            "same.txt": b"last of 3",
            "try-3.txt": b"x",
        }
        await no_parts_left(service)
        assert len(blobs(service)) == 2


@pytest.mark.parametrize("kind", ["async", "thread", "sync flow"])
async def test_what_the_last_try_attached_is_kept_when_the_step_fails(kind: str) -> None:
    def shoot() -> None:
        log.append("try")
        current().attach("screen.png", b"png %d" % len(log))
        raise Fail("the page has no such button") if len(log) > 1 else OSError("timeout")

    @task(name="click", retry=1)
    async def click() -> None:
        shoot()

    @task(name="click", retry=1)
    def click_in_thread() -> None:
        shoot()

    @flow(name="browse")
    async def browse() -> None:
        await (click() if kind == "async" else click_in_thread.run())

    @flow(name="browse")
    def browse_in_thread() -> None:
        click_in_thread()

    chosen: Any = browse_in_thread if kind == "sync flow" else browse
    async with serve(chosen) as service:
        result = await service.run(chosen)
        assert result.error is not None and result.error.message == "the page has no such button"
        assert await contents(service, result.id) == {"screen.png": b"png 2"}
        await no_parts_left(service)


async def test_a_fallback_adds_to_what_the_failed_try_attached() -> None:
    def instead(_error: Exception) -> str:
        current().attach("instead.txt", b"2")
        return "instead"

    @task(fallback=instead)
    async def fails() -> str:
        current().attach("failed.txt", b"1")
        raise OSError

    @flow(name="falls")
    async def falls() -> str:
        return await fails()

    async with serve(falls) as service:
        result = await service.run(falls)
        assert result.result == "instead"
        assert await contents(service, result.id) == {"failed.txt": b"1", "instead.txt": b"2"}


async def test_a_run_that_is_tried_again_has_what_its_step_attached_at_last() -> None:
    @task
    async def shaky() -> None:
        log.append("try")
        if len(log) == 1:
            current().attach("trace.txt", b"of the failure")
            raise OSError
        current().attach("result.txt", b"all is well")

    @flow(name="again", retry=1)
    async def again() -> None:
        await shaky()

    async with serve(again) as service:
        result = await service.run(again)
        assert (result.state, result.attempts) == ("succeeded", 2)
        assert await contents(service, result.id) == {"result.txt": b"all is well"}


async def test_a_cancelled_step_leaves_no_file() -> None:
    @task(timeout="50ms")
    async def slow() -> None:
        current().attach("a.txt", b"x")
        await asyncio.Event().wait()

    @task
    async def fails() -> None:
        await asyncio.sleep(0.05)
        raise Fail("no")

    @task
    async def endless() -> None:
        current().attach("b.txt", b"x")
        await asyncio.Event().wait()

    @flow(name="both")
    async def both() -> None:
        from turnout import gather

        await gather(endless(), fails())

    @flow(name="late")
    async def late() -> None:
        await slow()

    async with serve(both, late) as service:
        result = await service.run(both)
        assert result.state == "failed" and await contents(service, result.id) == {}
        result = await service.run(late)
        assert result.state == "failed"
        assert await contents(service, result.id) == {"a.txt": b"x"}, "its try has ended the step"
        await no_parts_left(service)


async def test_a_large_result_and_an_artefact_are_recorded_together() -> None:
    @task
    async def large() -> str:
        current().attach("a.txt", b"x")
        return "x" * 2000

    @flow(name="both")
    async def both() -> int:
        return len(await large())

    async with serve(both, max_result_bytes=1000) as service:
        result = await service.run(both, crash_at=1)
        assert result.result == 2000
        assert await contents(service, result.id) == {"a.txt": b"x"}


async def test_a_cached_result_attaches_nothing() -> None:
    @task(cache=by_input(ttl="1d"))
    async def make() -> int:
        current().attach("a.txt", b"x")
        return 1

    @flow(name="cached")
    async def cached() -> int:
        return await make()

    async with serve(cached) as service:
        first, second = await service.run(cached), await service.run(cached)
        assert await contents(service, first.id) == {"a.txt": b"x"}
        assert await contents(service, second.id) == {}


# ---------------------------------------------------------------- what is refused


REFUSED: list[tuple[str, Any, dict[str, Any], str]] = [
    ("../a", b"", {}, "'../a' cannot be the name of an artefact: a name is one part of a path"),
    ("a\x1b[2J", b"", {}, "cannot be the name of an artefact: it has characters that cannot be"),
    ("a", "text", {}, r"attach\('a', …\) takes bytes or a Path, not str: write text.encode\(\)"),
    ("a", b"", {"type": "html"}, "type='html': write a media type such as text/csv"),
    ("a", b"x" * 1001, {}, r"artefact 'a' has more than 1,000 bytes \(max_artefact_bytes\)"),
    ("a", Path("big"), {}, r"artefact 'a' has more than 1,000 bytes \(max_artefact_bytes\)"),
    ("a", Path("none"), {}, "'none' cannot be attached: .*No such file"),
    ("a", Path("/etc/passwd"), {}, "'/etc/passwd' cannot be attached: it is not in the working fo"),
    ("a", Path("link"), {}, "'link' cannot be attached: it is not in the working folder"),
    ("a", Path("folder/../../x"), {}, "cannot be attached"),
    ("a", Path("folder"), {}, "'folder' cannot be attached: it is not a regular file"),
    ("a", Path("pipe"), {}, "'pipe' cannot be attached: it is not a regular file"),
    ("a", Path("loop"), {}, "'loop' cannot be attached"),
    ("a", Path("nul\0"), {}, "cannot be attached: "),
]  # fmt: skip


@pytest.fixture
def hostile_files(working_folder: Path) -> Path:
    (working_folder / "big").write_bytes(b"x" * 1001)
    (working_folder / "link").symlink_to("/etc/passwd")
    (working_folder / "loop").symlink_to("loop")
    (working_folder / "folder").mkdir()
    os.mkfifo(working_folder / "pipe")
    return working_folder


async def test_what_cannot_be_kept_is_refused_by_name(
    hostile_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, Any, dict[str, Any]]] = []

    @task
    def attaches() -> None:
        current().attach(given[-1][0], given[-1][1], **given[-1][2])

    @flow(name="refused")
    async def refused() -> None:
        await attaches.run()

    async with serve(refused, max_artefact_bytes=1000) as service:
        for name, content, more, words in REFUSED:
            given.append((name, content, more))
            error = (await service.run(refused)).error
            assert error is not None and error.type == "not_kept", (name, content)
            assert re.search(words, error.message), error.message
        monkeypatch.chdir(service.folder)
        given.append(("a", Path("journal/journal.db"), {}))
        error = (await service.run(refused)).error
        assert error is not None and error.message.endswith("is turnout's own"), error
        await no_parts_left(service)
        assert blobs(service) == []


async def test_a_file_that_changes_while_it_is_attached_is_bounded_and_leads_nowhere_else(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = StagedBlob.write
    source = working_folder / "source"

    def grown(staged: StagedBlob, data: bytes) -> None:
        write(staged, data)
        with source.open("ab") as more:
            more.write(b"x" * 1000)

    def replaced(staged: StagedBlob, data: bytes) -> None:
        write(staged, data)
        source.unlink(missing_ok=True)
        source.symlink_to("/etc/passwd")

    @task
    def attaches() -> None:
        source.write_bytes(b"inside")
        current().attach("a", Path("source"))

    @flow(name="changing")
    async def changing() -> None:
        await attaches.run()

    async with serve(changing, max_artefact_bytes=100_000) as service:
        monkeypatch.setattr(StagedBlob, "write", grown)
        error = (await service.run(changing)).error
        assert error is not None and "has more than 100,000 bytes" in error.message
        monkeypatch.setattr(StagedBlob, "write", replaced)
        result = await service.run(changing)
        assert await contents(service, result.id) == {"a": b"inside"}
        await no_parts_left(service)


@flow
async def in_the_body() -> None:
    current().attach("a", b"x")


@flow
async def read_in_the_body() -> None:
    await asyncio.to_thread(artefact("a").read)


@task
async def large() -> None:
    current().attach("a", b"x" * 11)


@flow
async def on_the_loop() -> None:
    await large()


@task
async def attaches_a_file() -> None:
    current().attach("a", Path("a"))


@flow
async def a_file_on_the_loop() -> None:
    await attaches_a_file()


@task
async def attaches_in_a_thread() -> None:
    await asyncio.to_thread(current().attach, "a", b"x" * 11)


@task
async def reads() -> None:
    artefact("a").read()


@flow
async def read_on_the_loop() -> None:
    await attaches_in_a_thread()
    await reads()


MISPLACED: list[tuple[Any, str]] = [
    (in_the_body, "is for tasks: the body of a flow runs again after each wait and retry"),
    (read_in_the_body, "is for tasks: the body of a flow runs again after each wait and retry"),
    (on_the_loop, "would hold up the service while it writes 11 bytes: write `await asyncio.to_th"),
    (a_file_on_the_loop, "would hold up the service while it writes a file: write `await asyncio"),
    (read_on_the_loop, "write `await asyncio.to_thread(artefact('a').read)`, or a `def` task"),
]


async def test_what_is_in_the_wrong_place_is_refused_with_the_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(artefacts, "MAX_ON_LOOP_BYTES", 10)
    async with serve(*(chosen for chosen, _ in MISPLACED)) as service:
        for chosen, words in MISPLACED:
            error = (await service.run(chosen)).error
            assert error is not None and error.type == "MisplacedTask", error
            assert words in error.message, error.message
            assert chosen is read_in_the_body or f"called at {__file__}:" in error.message


@task(pool="process")
def in_a_process() -> None:
    current().attach("a", b"x")


@flow
async def with_a_process() -> None:
    await in_a_process.run()


@pytest.mark.slow
async def test_a_worker_process_returns_what_another_task_attaches() -> None:
    async with serve(with_a_process) as service:
        error = (await service.run(with_a_process)).error
        assert error is not None
        assert 'attach() is not for pool="process": return the bytes' in error.message


async def test_a_name_nobody_attached_is_told() -> None:
    @task
    async def looks() -> Path:
        return artefact("a").path

    @flow(name="none")
    async def none() -> None:
        await looks()

    async with serve(none) as service:
        error = (await service.run(none)).error
        assert error is not None
        assert error.message.startswith("the run has no artefact 'a': a step that has ended attac")


async def test_one_step_attaches_a_hundred() -> None:
    @task
    async def many(number: int) -> None:
        for each in range(number):
            current().attach(f"{each}.txt", b"x")
        current().attach("0.txt", b"again")

    @flow(name="much")
    async def much(number: int) -> None:
        await many(number)

    async with serve(much) as service:
        assert len(await kept(service, (await service.run(much, 100)).id)) == 100
        error = (await service.run(much, 101)).error
        assert error is not None
        assert error.message.startswith("'100.txt' is one artefact too many: a step has 100")


async def test_content_with_a_secret_is_refused_wherever_it_is_cut(
    monkeypatch: pytest.MonkeyPatch, working_folder: Path
) -> None:
    monkeypatch.setenv("BANK", "correct-horse-battery")
    monkeypatch.setattr(artefacts, "_CHUNK_BYTES", 7)

    @task
    def leaks() -> None:
        Path("a.txt").write_text("x" * 100 + secret("BANK").reveal() + "y" * 100)
        current().attach("a.txt", Path("a.txt"))

    @flow(name="leaky")
    def leaky() -> None:
        leaks()

    async with serve(leaky) as service:
        error = (await service.run(leaky)).error
        assert error is not None
        assert error.message == "artefact 'a.txt' holds the value of secret 'BANK'"
        await no_parts_left(service)
        assert blobs(service) == []


def test_outside_a_run_it_is_checked_and_nothing_is_kept() -> None:
    assert current().attach("a.txt", b"x") == "a.txt"
    with pytest.raises(NotKept, match="cannot be the name"):
        current().attach("..", b"x")
    with pytest.raises(NotKept, match="not in the working folder"):
        current().attach("a", Path("/etc/passwd"))
    with pytest.raises(NotFound, match="there is no run here that could have it"):
        artefact("a.txt").read()
    with pytest.raises(NotKept, match="cannot be the name"):
        artefact("a/b")
