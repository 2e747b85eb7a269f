"""Files with `id=`: the same bytes, or the same name, are one event; the second file stays."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.support.log_lines import logged
from tests.support.running import Running, eventually, running
from turnout import Event, files, flow, move
from turnout.service.domain.run import Run, RunState
from turnout.service.journal.records import StoredEvent
from turnout.service.operate.verbs import ReplayDead
from turnout.service.project import AnyFlow
from turnout.testing import file_event
from turnout.triggers.files import FilesTrigger, file_content
from turnout.triggers.files.file_content import ContentReader
from turnout.triggers.files.scan import Version


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def loads(folder: Path, **options: Any) -> AnyFlow:
    options = {"settle": "10ms", "rescan": "100ms", **options}

    @flow(on=files(f"{folder}/*.csv", **options), name="load")
    def load(path: Path) -> str:
        text = path.read_text()
        if text == "bad":
            raise ValueError("bad")
        return f"{path.name}: {text}"

    return load


def trigger_of(load: AnyFlow) -> FilesTrigger:
    (trigger,) = load.triggers
    assert isinstance(trigger, FilesTrigger)
    return trigger


@asynccontextmanager
async def watching(data: Path, load: AnyFlow) -> AsyncIterator[Running]:
    async with running(data, [load]) as service:
        await service.process.start_triggers()
        yield service


async def known(service: Running, count: int) -> None:
    """Wait until so many files have a position, and no run is unfinished."""
    (name,) = service.process.project.triggers

    async def enough() -> bool:
        rows = await service.process.journal.positions(name)
        return sum(not each.startswith("/") for each in rows) == count

    await eventually(enough)
    await service.all_finished()


async def known_runs(service: Running, count: int) -> list[Run]:
    """Wait until so many runs have ended."""

    async def enough() -> bool:
        return len(await service.all_finished()) == count

    await eventually(enough)
    return await service.all_finished()


async def event_of(service: Running, name: str) -> StoredEvent:
    (stored,) = await service.process.journal.event(name)
    return stored


def outcomes(runs: list[Run]) -> list[str]:
    return [(run.result or b"").decode().strip('"') for run in runs]


async def test_the_same_bytes_under_another_name_are_one_event_and_that_file_stays(
    tmp_path: Path,
) -> None:
    inbox, done = tmp_path / "in", tmp_path / "done"
    inbox.mkdir()
    load = loads(inbox, id="content", then=move("../done"))
    (inbox / "a.csv").write_text("x")
    with logged() as lines:
        async with watching(tmp_path / "data", load) as service:
            await eventually(lambda: is_there(done / "a.csv"))
            (inbox / "b.csv").write_text("x")
            (inbox / "c.csv").write_text("y")
            await eventually(lambda: is_there(done / "c.csv"))
            await known(service, 1)
            stored = await event_of(service, digest("x"))
        async with watching(tmp_path / "data", load) as service:  # nor after a restart
            (inbox / "d.csv").write_text("z")
            await eventually(lambda: is_there(done / "d.csv"))
            runs = await service.all_finished()
    assert outcomes(runs) == ["a.csv: x", "c.csv: y", "d.csv: z"]
    assert names(inbox) == ["b.csv"] and names(done) == ["a.csv", "c.csv", "d.csv"]
    ((reason, path),) = [(made["reason"], made["facts"]["path"]) for made in stored.decisions]
    assert (reason, path) == ("duplicate", str(inbox / "b.csv"))
    (line,) = [each for each in lines if each["message"] == "file.duplicate"]
    assert (line["path"], line["event"]) == ("b.csv", digest("x"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def is_there(path: Path) -> bool:
    return path.exists()  # noqa: ASYNC240  a test's own


async def test_a_batch_with_the_same_bytes_twice_is_one_event_each(tmp_path: Path) -> None:
    inbox = tmp_path / "in"
    inbox.mkdir()
    for number in range(40):
        (inbox / f"{number:02}.csv").write_text(str(number % 4))
    async with watching(tmp_path / "data", loads(inbox, id="content")) as service:
        await known(service, 40)
        runs = await service.all_finished()
    assert sorted(each[-1] for each in outcomes(runs)) == ["0", "1", "2", "3"]


async def test_new_bytes_under_an_old_name_are_a_new_event_and_old_bytes_are_none(
    tmp_path: Path,
) -> None:
    inbox = tmp_path / "in"
    inbox.mkdir()
    (inbox / "a.csv").write_text("1")
    async with watching(tmp_path / "data", loads(inbox, id="content")) as service:
        await known(service, 1)
        for text in ("2", "1"):
            (inbox / "new.tmp").write_text(text)
            (inbox / "new.tmp").rename(inbox / "a.csv")
            await eventually(lambda: counted(service, "accepted", 2))
            await service.all_finished()
        await eventually(lambda: counted(service, "duplicate", 1))
        assert outcomes(await service.all_finished()) == ["a.csv: 1", "a.csv: 2"]


async def counted(service: Running, result: str, count: int) -> bool:
    (trigger,) = service.process.project.triggers
    labels = {"trigger": trigger, "result": result}
    found = service.process.metrics.registry.get_sample_value("turnout_events_total", labels)
    return found == count


async def test_the_second_file_stays_too_when_the_run_of_the_first_fails(tmp_path: Path) -> None:
    inbox, failed = tmp_path / "in", tmp_path / "failed"
    inbox.mkdir()
    load = loads(inbox, id="content", then=move("../done"), on_failure=move("../failed"))
    (inbox / "a.csv").write_text("bad")
    async with watching(tmp_path / "data", load) as service:
        await eventually(lambda: is_there(failed / "a.csv"))
        (inbox / "b.csv").write_text("bad")
        await known(service, 1)
    assert names(inbox) == ["b.csv"]


async def test_a_function_names_files_and_another_size_under_a_name_is_a_conflict(
    tmp_path: Path,
) -> None:
    inbox, done = tmp_path / "in", tmp_path / "done"
    inbox.mkdir()
    load = loads(inbox, id=lambda event: f"../../{event.data['name']}", then=move("../done"))
    with logged() as lines:
        async with watching(tmp_path / "data", load) as service:
            for text, result in (("12", "accepted"), ("34", "duplicate"), ("567", "conflict")):
                (inbox / "new.tmp").write_text(text)
                (inbox / "new.tmp").rename(inbox / "a.csv")
                await eventually(lambda result=result: counted(service, result, 1))  # type: ignore[misc]
                if result == "accepted":
                    await eventually(lambda: is_there(done / "a.csv"))
            stored = await event_of(service, "../../a.csv")
            runs = await service.all_finished()
    assert outcomes(runs) == ["a.csv: 12"]
    assert (inbox / "a.csv").read_text() == "567" and names(done) == ["a.csv"]
    assert [made["reason"] for made in stored.decisions] == ["duplicate", "conflict"]
    (line,) = [each for each in lines if each["message"] == "event.conflict"]
    assert line["path"] == str(inbox / "a.csv")


async def test_an_id_that_fails_is_a_dead_letter_and_the_file_goes_where_failures_go(
    tmp_path: Path,
) -> None:
    inbox, failed = tmp_path / "in", tmp_path / "failed"
    inbox.mkdir()
    (inbox / "a.csv").write_text("x")
    load = loads(inbox, id=lambda event: event.data["nothing"], on_failure=move("../failed"))
    async with watching(tmp_path / "data", load) as service:
        (dead,) = await known_runs(service, 1)

        async def moved() -> bool:
            stored = await event_of(service, dead.event_id)
            return stored.event.path == failed / "a.csv"

        await eventually(moved)
    assert dead.dead and dead.error is not None and dead.error.type == "id_error"
    async with watching(tmp_path / "data", loads(inbox, id="content")) as service:
        (run_id,) = await service.process.operator.do(ReplayDead(dead.id))
        run = await service.finished(run_id)
    assert (run.state, outcomes([run])) == (RunState.SUCCEEDED, ["a.csv: x"])


def test_a_file_is_read_slice_by_slice_and_one_that_changes_meanwhile_is_left_out(
    tmp_path: Path,
) -> None:
    file = tmp_path / "big.csv"
    file.write_bytes(b"x" * (3 << 20))
    reader = ContentReader(str(tmp_path), "big.csv", Version.of(file.stat()))
    steps = 1
    while (content := reader.step()) is None:
        steps += 1
    assert content.digest == sha256(file.read_bytes()).hexdigest()

    reader = ContentReader(str(tmp_path), "big.csv", Version.of(file.stat()))
    file.write_bytes(b"y" * (3 << 20))
    os.utime(file, ns=(1, 1))
    assert reader.step() == file_content.Content()
    file.unlink()
    assert reader.step() == file_content.Content()
    file.symlink_to(__file__)
    told = reader.step()
    assert told is not None and told.digest is None


def test_the_event_of_a_test_has_the_id_that_a_service_would_give_it(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("x")
    assert file_event(loads(tmp_path, id="content"), file).id == digest("x")
    event: Event = file_event(loads(tmp_path, id=lambda event: event.data["size"]), file)
    assert (event.id, event.minted) == ("1", False)
    assert len(file_event(loads(tmp_path), file).id) == 32
