"""Make a journal of this version of turnout, for `test_old_journals` to open for ever.

Usage: python -m tests.data.journals.make. Writes `vN/`, N being the journal's version, beside this
file. Once it is committed it is never made again: what matters is the code that wrote it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.support.program import Program, turnout, until
from turnout.service.journal.sqlite.migrations import newest_version

HERE = Path(__file__).parent
TOKEN = "a-token-for-tests-alone"
SETTINGS = {"TURNOUT_API_TOKEN": TOKEN, "TURNOUT_MAX_RESULT_BYTES": "4096"}
WAITING = [
    "catches", "values", "parent", "calls", "asks", "rejected", "naps", "retries", "stores",
    "ordered", "books", "looks-up", "held", "tells", "breaks",
]  # fmt: skip


def post(program: Program, path: str, data: object, key: str | None = None) -> Any:
    """Call a webhook; returns what it answers once the event is accepted."""
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Idempotency-Key"] = key
    answer = program.ask(
        f"/hooks/{path}", method="POST", body=json.dumps(data).encode(), headers=headers
    )
    assert answer is not None and answer.status == 202, (path, answer)
    return answer.json


def main() -> None:
    """Serve the flows, leave runs in every state, and kill the process."""
    target = HERE / f"v{newest_version()}"
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        for name in ("flows.py", "kept_types.py"):
            shutil.copy(HERE / name, folder)
        program = Program(
            flows=Path(folder, "flows.py"), data=data, log=Path(folder, "log"), env=SETTINGS
        )
        with program.start():
            program.ready()
            turnout("pause", "held", "--data", data, env=SETTINGS)
            for n, path in enumerate(WAITING, 1):
                post(program, path, {"n": n}, key=f"{path}-{n}")
            for n in (101, 102):
                post(program, "ordered", {"n": n}, key=f"ordered-{n}")
            post(program, "went-on", {"n": -2})
            until(lambda: settled(program), 20, "all runs at rest")
            assert program.stop() == 0
            program.env = {**SETTINGS, "DIE": "1"}
            program.start().ready()
            post_and_die(program)
            program.ended(20)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(
            data, target, ignore=shutil.ignore_patterns("lock", "*-shm", "approval-key")
        )
    print(f"made {target}: {sum(f.stat().st_size for f in target.rglob('*') if f.is_file())} bytes")  # noqa: T201


def settled(program: Program) -> bool:
    """Whether every run has come to where it waits, and the first event has been heard."""
    states = [run["state"] for run in program.api("/runs?limit=100")["items"]]
    return not {"running", "scheduled"} & set(states) and states.count("queued") == 3


def post_and_die(program: Program) -> None:
    """Start the run that kills the process, which may be too late to answer."""
    program.ask(
        "/hooks/dies",
        method="POST",
        body=b'{"n": 200}',
        headers={"Content-Type": "application/json", "Idempotency-Key": "dies-200"},
    )


if __name__ == "__main__":
    os.umask(0o077)
    main()
