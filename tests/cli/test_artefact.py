"""`turnout artefact` and what `turnout show` says of a run's files."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.http.desk import open_desk
from tests.http.test_artefacts import attach
from turnout.service.cli import main


async def make_run(folder: Path) -> str:
    async with open_desk(folder) as desk:
        files = {"report.html": "text/html", "raw.bin": "application/octet-stream"}
        return await attach(desk, files, bytes(range(256)))


def typed(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_it_is_listed_and_written_to_a_pipe_or_a_new_file(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_id, data = asyncio.run(make_run(tmp_path / "data")), str(tmp_path / "data")

    assert typed("show", run_id, "--data", data) == 0
    shown = capsysbinary.readouterr().out.decode()
    assert "artefacts: turnout artefact " in shown
    assert "report.html" in shown and "text/html" in shown and "make#1" in shown
    assert typed("show", run_id, "--json", "--data", data) == 0
    listed = json.loads(capsysbinary.readouterr().out)["artefacts"]
    assert [(each["name"], each["bytes"]) for each in listed] == [
        ("report.html", 256),
        ("raw.bin", 256),
    ]

    assert typed("artefact", run_id, "raw.bin", "--data", data) == 0
    assert capsysbinary.readouterr().out == bytes(range(256))
    assert typed("artefact", run_id, "report.html", "-o", "a.html", "--data", data) == 0
    assert Path("a.html").read_bytes() == bytes(range(256))
    assert typed("artefact", run_id, "report.html", "-o", "a.html", "--data", data) == 2
    assert b"a.html already exists; name a new file" in capsysbinary.readouterr().err

    assert typed("artefact", run_id, "../secret", "-o", "b", "--data", data) == 1
    told = capsysbinary.readouterr().err.decode()
    assert "has no artefact '../secret'; it has 'report.html', 'raw.bin'" in told
    assert not Path("b").exists()

    (blob,) = (
        path for path in (tmp_path / "data").rglob("*") if path.is_file() and is_report(path)
    )
    blob.write_bytes(bytes(256))
    assert typed("artefact", run_id, "report.html", "-o", "b", "--data", data) == 74
    assert b"is damaged; restore it from a backup" in capsysbinary.readouterr().err
    assert not Path("b").exists(), "a file is there only when it is whole"


def is_report(path: Path) -> bool:
    return path.read_bytes() == bytes(range(256))


def test_a_terminal_gets_no_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert typed("artefact", "x", "y", "--data", str(tmp_path)) == 2
    assert "refusing to print to a terminal: add -o FILE, or a pipe" in capsys.readouterr().err
