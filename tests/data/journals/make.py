"""Make journals of this version of turnout, for the tests of old journals to open for ever.

Usage: python -m tests.data.journals.make. Writes `vN/`, `flow_control/vN/` and `windows/vN/`, N
being the journal's version, beside this file. Once they are committed they are never made again:
what matters is the code that wrote them. Run it in a clone in /opt/turnout: recorded tracebacks
name the folder of the code.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

STEERED = HERE / "flow_control"
PAUSED = ["picks", "expires", "trigger:webhook:/called-off"]
ORDERS = [
    ("accounts", "a", 1), ("accounts", "a", 2), ("accounts", "b", 3),
    ("ordered", "a", 4), ("ordered", "a", 5),
    ("reads", "a", 6),
    ("calls", "a", 7), ("calls", "a", 8),
    ("views", "a", 9), ("views", "a", 10),
    ("deploys", "a", 11), ("deploys", "a", 12), ("deploys", "a", 13),
    ("builds", "a", 14), ("builds", "a", 15),
    ("scans", "a", 16), ("scans", "a", 17),
    ("bills", "a", 18), ("bills", "a", 19),
    ("asks", "a", 20), ("asks", "a", 21),
    ("picks", "low", 22), ("picks", "normal", 23), ("picks", "high", 24),
    ("expires", "a", 25),
    ("ships", "a", 26), ("ships", "b", 27),
    ("books", "a", 28), ("books", "a", 29),
]  # fmt: skip
"""What is sent to the flows of flow control: the route, a key and a number."""

WINDOWED = HERE / "windows"
MEMBERS = [
    ("pages", "a", 1), ("pages", "a", 2), ("pages", "b", 3),
    ("alerts", "a", 4), ("alerts", "a", 5),
    ("rows", "a", 6), ("rows", "a", 7),
    ("failures", "a", 8), ("failures", "a", 9),
    ("opened", "a", 10), ("opened", "b", 11), ("shut", "b", 12),
    ("orders", "a", 13), ("payments", "b", 14),
    ("begun", "a", 15), ("begun", "b", 16), ("ended", "b", 17),
    ("lines", "a", 18), ("lines", "a", 19),
    ("items", "a", 20), ("items", "a", 21), ("items", "a", 22),
    ("races", "a", 23), ("races", "a", 24), ("races", "a", 25),
    ("asks", "a", 26),
    ("polls", "a", 27),
]  # fmt: skip
"""What is sent to the flows of windows and waits: the route, a key and a number."""


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
    with serving(HERE, "flows.py", "kept_types.py") as program:
        leave_runs_in_every_state(program)
    with serving(STEERED, "flows.py", env={"CRM_IS_DOWN": "1"}) as program:
        let_runs_wait_under_every_rule(program)
    with serving(WINDOWED, "flows.py", env={"THE_STORE_IS_FULL": "1"}) as program:
        leave_windows_of_every_kind_open(program)


@contextmanager
def serving(place: Path, *files: str, env: Mapping[str, str] = {}) -> Iterator[Program]:
    """Yield a program that serves these files, and keep what its journal holds in the end."""
    with tempfile.TemporaryDirectory() as folder:
        for name in files:
            shutil.copy(place / name, folder)
        program = Program(
            flows=Path(folder, "flows.py"),
            data=Path(folder, "data"),
            log=Path(folder, "log"),
            env={**SETTINGS, **env},
        )
        with program.start():
            program.ready()
            yield program
            program.kill()
        target = place / f"v{newest_version()}"
        shutil.rmtree(target, ignore_errors=True)
        left_out = shutil.ignore_patterns("lock", "*-shm", "approval-key")
        shutil.copytree(program.data, target, ignore=left_out)
    print(f"made {target}: {sum(f.stat().st_size for f in target.rglob('*') if f.is_file())} bytes")  # noqa: T201


def leave_runs_in_every_state(program: Program) -> None:
    """Leave runs that wait, of which one was running when the process died."""
    steer(program, "pause", "held", "--by", "ops")
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


def let_runs_wait_under_every_rule(program: Program) -> None:
    """Leave a run that waits, or was refused, under each rule, and what operators have set."""
    for name in PAUSED:
        steer(program, "pause", name, "--for", "1d", "--note", "a busy day", "--by", "ops")
    steer(program, "limits", "set", "db", "3", "--for", "1d", "--by", "ops")
    for path, key, n in ORDERS:
        post(program, path, {"key": key, "n": n}, key=str(n))
        until(lambda: is_at_rest(program), 20, f"run {n} at rest")
    steer(program, "pause", "--all", "--note", "a wrong deploy", "--by", "ops")
    assert program.stop() == 0  # which keeps the journal small


def leave_windows_of_every_kind_open(program: Program) -> None:
    """Leave open windows, runs of windows that wait, and an approval that was answered once."""
    for path, key, n in MEMBERS:
        post(program, path, {"key": key, "n": n}, key=str(n))
    until(lambda: is_at_rest(program), 20, "all runs at rest")
    (asked,) = program.api("/runs?flow=asks")["items"]
    steer(program, "approve", asked["id"], "--by", "ada")
    until(lambda: is_at_rest(program), 20, "the run that asks again at rest")
    assert program.stop() == 0


def steer(program: Program, *arguments: str) -> None:
    """Give an operator's command, which must succeed."""
    done = turnout(*arguments, "--data", program.data, env=program.env)
    assert done.returncode == 0, done.stderr


def is_at_rest(program: Program) -> bool:
    """Whether every run that has not ended waits for something else than its turn."""
    runs = program.api("/runs?limit=100")["items"]
    return not any(run["state"] == "running" or run["waits_for"] == "for its turn" for run in runs)


if __name__ == "__main__":
    os.umask(0o077)
    main()
