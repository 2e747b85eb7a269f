"""A path is handed to a flow only while it is the file its event was about."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.running import eventually, running
from turnout import flow, retry
from turnout.service.domain.event import Event, file_url
from turnout.service.domain.run import Run, RunState
from turnout.service.journal.records import Filter
from turnout.service.operate.verbs import Pause, Resume
from turnout.service.project import AnyFlow
from turnout.triggers.files.file_version import FileVersion, file_event
from turnout.triggers.files.scan import Version

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
seen: list[str] = []


@flow
def reads(path: Path) -> None:
    seen.append(path.read_text())


@flow
def reads_if_any(path: Path | None = None) -> None:
    seen.append("nothing" if path is None else path.read_text())


@flow
async def takes_the_event(event: Event) -> None:
    seen.append(event.type)


@flow(retry=retry(2, delay="1ms"))
def rewrites(path: Path) -> None:
    text = path.read_text()
    path.write_text(f"{text} more")
    if "more" not in text:
        raise ValueError("the first attempt")
    seen.append(text)


async def run_of(
    folder: Path,
    which: AnyFlow,
    change: Callable[[Path], object],
    event: Event | None = None,
) -> Run:
    """Emit the event of a file, change what is at its name, and only then let the run start."""
    seen.clear()
    file = folder / "a.csv"
    event = event or file_event(
        str(folder), FileVersion("a.csv", Version.of(file.stat())), time=NOON
    )
    async with running(folder / "data", [which]) as service:
        operator, journal = service.process.operator, service.process.journal
        await operator.do(Pause(which.name))
        await service.process.emitters["test"]([event])
        change(file)
        await operator.do(Resume(which.name))

        async def ended() -> bool:
            [run] = await journal.runs(Filter())
            return run.state in (RunState.SUCCEEDED, RunState.FAILED)

        await eventually(ended)
        [run] = await journal.runs(Filter())
    return run


def link(file: Path) -> None:
    file.unlink()
    file.symlink_to("/etc/hostname")


def another_file(file: Path) -> None:
    (file.parent / "new").write_text("one")
    (file.parent / "new").rename(file)


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe_instead(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.csv").write_text("one")
    return tmp_path


@pytest.mark.parametrize("which", [reads, reads_if_any])
@pytest.mark.parametrize(
    "change",
    [
        link,
        another_file,
        lambda file: file.write_text("two"),
        lambda file: file.write_text("longer"),
        lambda file: os.utime(file, (1, 1)),
        folder_instead,
        pipe_instead,
    ],
)
async def test_another_file_under_the_name_is_a_dead_letter(
    folder: Path, which: AnyFlow, change: Callable[[Path], object]
) -> None:
    run = await run_of(folder, which, change)
    assert run.state is RunState.FAILED and run.dead
    assert run.error is not None and "the file changed" in run.error.message
    assert seen == []


@pytest.mark.parametrize("which", [reads, reads_if_any])
@pytest.mark.parametrize("change", [lambda file: None, lambda file: file.chmod(0o600)])
async def test_the_same_file_is_handed_out(
    folder: Path, which: AnyFlow, change: Callable[[Path], object]
) -> None:
    assert (await run_of(folder, which, change)).state is RunState.SUCCEEDED
    assert seen == ["one"]


async def test_a_flow_that_takes_no_path_is_not_asked_about(folder: Path) -> None:
    assert (await run_of(folder, takes_the_event, link)).state is RunState.SUCCEEDED


async def test_a_file_that_is_gone_is_the_flows_own_affair(folder: Path) -> None:
    run = await run_of(folder, reads, lambda file: file.unlink())
    assert run.error is not None and run.error.type == "FileNotFoundError"


async def test_a_run_may_change_its_own_file_and_go_on(folder: Path) -> None:
    assert (await run_of(folder, rewrites, lambda file: None)).state is RunState.SUCCEEDED
    assert seen == ["one more"]


async def test_a_file_its_trigger_has_moved_may_be_mended_there(folder: Path) -> None:
    made = file_event(
        str(folder), FileVersion("a.csv", Version.of((folder / "a.csv").stat())), time=NOON
    )
    (folder / "failed").mkdir()
    moved = folder / "failed" / "a.csv"
    (folder / "a.csv").rename(moved)
    moved.write_text("mended")
    event = replace(made, extensions={"fileurl": file_url(moved)})
    assert (await run_of(folder, reads, lambda file: None, event)).state is RunState.SUCCEEDED
    assert seen == ["mended"]
