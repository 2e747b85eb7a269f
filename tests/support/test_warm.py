"""What is forked from the warm interpreter is as a spawned program is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import warm
from tests.support.program import environment, turnout

TELLS = """
import json, os, sys
here = {
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "path": sys.path[0],
    "leads": os.getsid(0) == os.getpgid(0) == os.getpid(),
    "open": [fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/dev/fd/{fd}")],
    "terminal": sys.stdout.isatty(),
    "input": sys.stdin.read(),
}
print(json.dumps(here))
print("an error", file=sys.stderr)
"""

pytestmark = pytest.mark.slow


def ran(folder: Path, code: str, *words: str) -> tuple[int, str, str]:
    with (folder / "out").open("w+b") as out, (folder / "error").open("w+b") as error:
        forked = warm.start(
            words,
            env=environment({"OF_MY": "own"}),
            out=out.fileno(),
            error=error.fileno(),
            code=code,
        )
        code_of_exit = forked.wait(10)
    return code_of_exit, (folder / "out").read_text(), (folder / "error").read_text()


def told(folder: Path) -> dict[str, Any]:
    code, out, error = ran(folder, TELLS, "--version")
    assert (code, error) == (0, "an error\n")
    here, version = out.splitlines()
    assert version.startswith("turnout ")
    found: dict[str, Any] = json.loads(here)
    return found


def test_it_has_a_session_a_folder_and_an_environment_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = told(tmp_path)
    assert here["environment"] == environment({"OF_MY": "own"})
    assert here["folder"] == here["path"] == str(tmp_path)
    assert here["leads"] and not here["terminal"] and here["input"] == ""
    assert here["open"] == [0, 1, 2]


def test_it_ends_as_a_spawned_program_does(tmp_path: Path) -> None:
    assert ran(tmp_path, "raise SystemExit(7)")[0] == 7
    code, _, error = ran(tmp_path, "1 / 0")
    assert code == 1 and error.endswith("ZeroDivisionError: division by zero\n")
    code, out, _ = ran(tmp_path, "import atexit; atexit.register(print, 'bye')", "--version")
    assert code == 0 and out.endswith("bye\n")
    assert ran(tmp_path, "import os; os.kill(os.getpid(), 9)")[0] == -signal.SIGKILL


def test_it_may_be_killed_and_a_wait_has_a_bound(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+b") as out:
        forked = warm.start(
            [],
            env=os.environ,
            out=out.fileno(),
            error=out.fileno(),
            code="import signal; signal.pause()",
        )
        assert forked.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            forked.wait(0.01)
        forked.kill()
        assert forked.wait(10) == forked.returncode == -signal.SIGKILL
        forked.kill()  # nobody is there any more


def test_what_is_read_at_the_start_of_an_interpreter_has_its_own() -> None:
    assert warm.is_plain({**os.environ, "TURNOUT_PORT": "1"})
    for name in ("PYTHONHASHSEED", "LD_PRELOAD", "TZ", "LC_ALL"):
        assert not warm.is_plain({**os.environ, name: "1"})


def test_commands_print_what_they_print_when_they_are_spawned(tmp_path: Path) -> None:
    words = ["runs", "--json", "--data", str(tmp_path / "none")]
    spawned = subprocess.run(
        [sys.executable, "-m", warm.MODULE, *words],
        env=environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    forked = turnout(*words)
    assert spawned.returncode == forked.returncode
    assert (spawned.stdout, spawned.stderr) == (forked.stdout, forked.stderr)
