"""Peers under measurement: each in an environment of its own, with the versions pinned here.

`python_of("celery")` makes `.venvs/celery` from `requirements/celery.txt` when it is not there or
the file has changed, and returns its interpreter. What cannot be had raises `Unavailable`, which
says why; a table then names the peer as not measured, and the other rows are measured all the same.

The first line of such a file says what was asked for; `uv pip compile --python-version 3.11
--generate-hashes --no-header --no-annotate --no-emit-index-url` makes the rest. With a hash in the
file, uv and pip refuse what has none or another one.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path

from tests.bench.measure import Unavailable

REQUIREMENTS = Path(__file__).parent / "requirements"
SCRIPTS = Path(__file__).parent / "scripts"
ENVIRONMENTS = Path(__file__).parents[1] / ".venvs"


def python_of(peer: str) -> Path:
    """Return the interpreter of a peer's environment, made first if need be."""
    wanted = (REQUIREMENTS / f"{peer}.txt").read_text()
    place = ENVIRONMENTS / peer
    ENVIRONMENTS.mkdir(exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of a test run ask for it at once
        return _made(peer, place, wanted)


def _made(peer: str, place: Path, wanted: str) -> Path:
    python, stamp = place / "bin" / "python", place / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    try:
        venv.create(place, with_pip=peer == "uv", clear=True)
        command = [*_installer(peer, python), "--requirement", str(REQUIREMENTS / f"{peer}.txt")]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise Unavailable(f"{peer} could not be installed: {_end(said)}") from None
    stamp.write_text(wanted)
    return python


def _installer(peer: str, python: Path) -> list[str]:
    """uv asks an index for all packages at once: for Airflow's 130 seconds instead of minutes."""
    if peer == "uv":
        return [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    uv = [program_of("uv", "uv"), "--quiet", "pip", "install", "--python", str(python)]
    return [*uv, "--require-hashes", "--compile-bytecode"]


def program_of(peer: str, name: str) -> str:
    """Return a command that a peer's environment has."""
    return str(python_of(peer).parent / name)


def measured(
    peer: str,
    script: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> Mapping[str, float]:
    """Run `scripts/SCRIPT.py` in a peer's environment; returns the figures of its last line."""
    python = python_of(peer)
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as place:
        try:
            done = subprocess.run(
                [python, SCRIPTS / f"{script}.py", *arguments],
                cwd=place, env=os.environ | dict(env or {}), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=timeout, check=True,
            )  # fmt: skip
            figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"{peer} failed: {_end(error.stderr)}") from None
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{peer} had not ended after {timeout:g} s") from None
        except (IndexError, ValueError):
            raise Unavailable(f"{peer} gave no figures: {_end(done.stdout)}") from None
    return figures


def _end(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"
