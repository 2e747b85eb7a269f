"""Artefacts over the API: a browser saves them, and executes nothing."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil  # type: ignore[import-untyped]  # no stubs
import pytest

from tests.http.desk import TOKEN, Desk, assert_problem, open_desk
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.contract import Attachment
from turnout.service.journal.records import StepRecord

HOSTILE = b"<script>alert(document.domain)</script>"
NAMES = {
    "a.html": "text/html",
    "a.svg": "image/svg+xml",
    "a.xml": "application/xml",
    "a.js": "text/javascript",
    'quote".html': "text/html",
    "semi;colon=x.html": "text/html",
    "\u00fcber \u65e5\u672c.html": "text/html",
    "%2e%2e": "application/octet-stream",
    "a.png.html": "text/html",
}


async def attach(desk: Desk, files: dict[str, str], content: bytes = HOSTILE) -> str:
    """Store a run with a step that has attached these files; returns the run's id."""
    run = await desk.journal.run(await desk.append(RunState.QUEUED))
    assert run is not None
    [claimed] = await desk.journal.claim([run.seq], now=utc_now())
    attached = []
    for name, type_ in files.items():
        file = desk.journal.stage_bytes(content)
        attached.append(Attachment(name, type_, file, file.close()))
    record = StepRecord(
        key="make#1", task="make", state="succeeded", tries=1, started_at=utc_now(),
        finished_at=utc_now(),
    )  # fmt: skip
    await desk.journal.record_artefacts(claimed.claim, record, attached)
    return run.id


async def fetch(desk: Desk, run_id: str, name: str) -> httpx.Response:
    return await desk.http.get(f"/api/runs/{run_id}/artefacts/{quote(name, safe='')}")


async def test_a_run_lists_its_artefacts(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run_id = await attach(desk, {"a.csv": "text/csv"})
        [listed] = (await desk.get(f"/api/runs/{run_id}"))["artefacts"]
        assert listed.pop("at").endswith("Z")
        assert listed == {
            "name": "a.csv", "type": "text/csv", "bytes": len(HOSTILE), "step": "make#1",
        }  # fmt: skip


async def test_one_beyond_those_that_are_listed_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnout.service.operate.artefacts.MAX_LISTED", 1)
    async with open_desk(tmp_path) as desk:
        run_id = await attach(desk, {"a.csv": "text/csv", "b.csv": "text/csv"})
        assert (await fetch(desk, run_id, "b.csv")).content == HOSTILE


async def test_whatever_it_is_called_it_is_saved_and_not_shown(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run_id = await attach(desk, NAMES)
        for name in NAMES:
            answer = await fetch(desk, run_id, name)
            assert answer.status_code == 200 and answer.content == HOSTILE, name
            headers = answer.headers
            assert headers["content-type"] == "application/octet-stream"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["content-security-policy"] == "sandbox; default-src 'none'"
            kind, plain, encoded = headers["content-disposition"].split("; ")
            assert kind == "attachment"
            assert plain.count('"') == 2 and plain.isascii()
            assert encoded == f"filename*=UTF-8''{quote(name, safe='')}"


@pytest.mark.parametrize(
    ("name", "type_", "shown"),
    [
        ("a.png", "image/png", "image/png"),
        ("a.jpg", "image/jpeg", "image/jpeg"),
        ("a.txt", "text/plain", "text/plain; charset=utf-8"),
    ],
)
async def test_images_and_plain_text_are_shown_in_place(
    tmp_path: Path, name: str, type_: str, shown: str
) -> None:
    async with open_desk(tmp_path) as desk:
        answer = await fetch(desk, await attach(desk, {name: type_}), name)
        assert answer.headers["content-type"] == shown
        assert answer.headers["content-disposition"].startswith("inline; ")
        assert answer.headers["content-length"] == str(len(HOSTILE))
        assert answer.headers["content-security-policy"].startswith("sandbox")
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_nothing_else_is_found_through_a_name(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run_id = await attach(desk, {"a.txt": "text/plain"})
        words = f"run {run_id} has no artefact"
        for name in ("b.txt", "A.TXT", "a.txt\0", "\x1b[2J", "x" * 300):
            assert_problem(await fetch(desk, run_id, name), 404, words, "it has 'a.txt'")
        for path in ("../journal.db", "..%2fjournal.db", "%2e%2e/%2e%2e/api-token", ""):
            answer = await desk.http.get(f"/api/runs/{run_id}/artefacts/{path}")
            assert answer.status_code in (404, 405), path
        assert_problem(await fetch(desk, "0" * 32, "a.txt"), 404, "no run")
        del desk.http.headers["Authorization"]
        assert_problem(await fetch(desk, run_id, "a.txt"), 401)


async def test_a_reader_that_goes_away_leaves_no_file_open(tmp_path: Path) -> None:
    def opened() -> list[str]:
        results = str(tmp_path / "journal" / "results")
        return [each.path for each in psutil.Process().open_files() if results in each.path]

    async with open_desk(tmp_path) as desk:
        run_id = await attach(desk, {"a.bin": "image/png"}, b"x" * 8 * 2**20)
        reads, gone = asyncio.Event(), asyncio.Event()
        asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> Any:
            if (message := next(asked, None)) is not None:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("body"):
                reads.set()
                await asyncio.Event().wait()  # nobody reads on

        scope = {
            "type": "http", "method": "GET", "path": f"/api/runs/{run_id}/artefacts/a.bin",
            "raw_path": b"", "query_string": b"", "root_path": "", "scheme": "http",
            "headers": [(b"authorization", f"Bearer {TOKEN}".encode())], "http_version": "1.1",
            "asgi": {"version": "3.0", "spec_version": "2.3"}, "server": ("desk", 80),
        }  # fmt: skip
        gc.disable()  # so that nothing but the end of the answer closes it
        try:
            async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
                tasks.create_task(desk.app(scope, receive, send))
                await reads.wait()
                assert len(opened()) == 1
                gone.set()
            assert opened() == []
        finally:
            gc.enable()


async def test_damaged_content_is_told_or_ends_before_it_is_whole(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run_id = await attach(desk, {"a.txt": "text/plain"})
        await damage(desk, "a.txt")
        assert_problem(await fetch(desk, run_id, "a.txt"), 503, "is damaged; restore it from a")
        run_id = await attach(desk, {"b.txt": "text/plain"}, b"x" * 3 * 2**20)
        assert (await fetch(desk, run_id, "b.txt")).content == b"x" * 3 * 2**20
        await damage(desk, "b.txt")
        with pytest.raises(OSError, match="is damaged"):
            await fetch(desk, run_id, "b.txt")


async def damage(desk: Desk, name: str) -> None:
    for seq in (1, 2):
        for each in await desk.journal.artefacts(seq, 1):
            if each.name == name:
                path = desk.journal.blob_path(each.blob)
                content = await asyncio.to_thread(path.read_bytes)
                await asyncio.to_thread(path.write_bytes, content[:-1] + b"?")
