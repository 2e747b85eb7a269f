"""`kill -9` at every boundary of attaching a file: the run has one artefact, and no file more.

The boundaries are the calls by which content reaches the disk and the journal: the n-th of them
kills the process. The step runs again, and attaches the same once.
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Say
from tests.support.program import Program, until

pytestmark = pytest.mark.timeout(120)

FLOWS = """
from pathlib import Path
from turnout import artefact, current, flow, task, webhook

@task
def make(number: int) -> str:
    large = Path(f"{number}.bin")
    large.write_bytes(b"x" * 3_000_000 + b"%d" % number)
    return current().attach("large.bin", large)

@task
def read(name: str) -> int:
    return int(artefact(name).read()[3_000_000:])

@flow(on=webhook("/make"))
def export(data: dict[str, int]) -> int:
    return read(make(data["number"]))
"""

KILLING = """
import os, signal, tempfile
from pathlib import Path

left = None

def deadly(function, after):
    def called(*args, **named):
        global left
        if left is None and Path("kill-at").exists():
            left = int(Path("kill-at").read_text())
        if left is not None:
            left -= 1
        if left == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **named)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return called

from turnout.service.journal.sqlite import apply, blobs, staging

staging.StagedBlob.write = deadly(staging.StagedBlob.write, True)
staging.StagedBlob.close = deadly(staging.StagedBlob.close, False)
blobs.sync = deadly(blobs.sync, False)
apply.Batch.record_artefacts = deadly(apply.Batch.record_artefacts, True)

from turnout.service.journal.sqlite.journal import SqliteJournal
honest = SqliteJournal.record_artefacts

async def record_artefacts(self, *arguments):
    await honest(self, *arguments)
    deadly(lambda: None, True)()

SqliteJournal.record_artefacts = record_artefacts
"""
BOUNDARIES = (5, 9)
"""At small size: before the file is synced, and when it is durable and has no row."""

LEAST = 10
"""An undisturbed run passes at least so many; the last one lies behind the record of the step."""


def test_every_boundary_leaves_one_artefact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool, say: Say
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flows.py").write_text(FLOWS)
    program = Program(
        flows=tmp_path / "flows.py", data=tmp_path / "data", log=tmp_path / "log",
        sabotage=KILLING,
    )  # fmt: skip
    runs = 0
    with program.start():
        for boundary in count(1) if full else BOUNDARIES:
            program.ready()
            (tmp_path / "kill-at").write_text(str(boundary))
            run_id = post(program, runs)
            until(lambda: not program.alive or ended(program, run_id), 30, "a death, or the end")  # noqa: B023  called at once
            died = not program.alive
            (tmp_path / "kill-at").unlink()
            if died:
                assert program.ended(1) == -9
                program.start().ready()
            run = until(lambda run_id=run_id: ended(program, run_id), 20, f"{run_id} ends")  # type: ignore[misc]
            assert (run["state"], run["result"]) == ("succeeded", runs), run
            listed = [(each["name"], each["bytes"]) for each in run["artefacts"]]
            assert listed == [("large.bin", 3_000_000 + len(str(runs)))]
            runs += 1
            if not died:
                assert full and boundary > LEAST, "it was to be killed"
                break
        assert program.stop() == 0
        program.check_journal()
    files = [
        path for path in (tmp_path / "data" / "journal" / "results").rglob("*") if path.is_file()
    ]
    assert len(files) == runs, "what was cut off is gone, and nothing is there twice"
    say(f"killed at {runs - full} boundaries")


def post(program: Program, number: int) -> str:
    answer = program.ask(
        "/hooks/make", method="POST", body=json.dumps({"number": number}).encode(),
        headers={"content-type": "application/json"},
    )  # fmt: skip
    assert answer is not None and answer.status == 202, answer
    return str(answer.json["runs"][0])


def ended(program: Program, run_id: str) -> Any:
    token = (program.data / "api-token").read_text().strip()
    answer = program.ask(f"/api/runs/{run_id}", headers={"authorization": f"Bearer {token}"})
    return answer.json if answer is not None and answer.json["finished_at"] else None
