"""The real `turnout serve`, as an operator starts it: spawned, watched, signalled, restarted.

Everything here waits on a fact (an answer, a log line, an exit) with a timeout and says what it
waited for, with the end of the program's log, when the fact does not come. A test's negative
control passes `sabotage`: code run in the child before turnout's own, which breaks one promise.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import psutil  # type: ignore[import-untyped]  # no stubs among the project's dependencies

from . import warm
from .ports import free_port

T = TypeVar("T")

STEP_SECONDS = 0.01

_LAUNCH = "\nfrom turnout.service.cli import main\nmain()"


def until(fact: Callable[[], T | None], timeout: float, what: str) -> T:
    """Return the first truthy answer of `fact`; fails naming `what` after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        answer = fact()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(STEP_SECONDS)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an HTTP request came to."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The decoded body."""
        return json.loads(self.body)


def environment(chosen: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without its turnout settings, with `chosen`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TURNOUT_")}
    return kept | dict(chosen)


def turnout(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 30,
    spawned: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run one `turnout` command to its end."""
    words, chosen = [str(each) for each in arguments], environment(env or {})
    if spawned or not warm.is_plain(chosen):
        return subprocess.run(
            [sys.executable, "-m", warm.MODULE, *words],
            env=chosen,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    out, error = _Output(), _Output()
    try:
        command = warm.start(words, env=chosen, out=out.end, error=error.end)
    finally:
        os.close(out.end)
        os.close(error.end)
    try:
        code = command.wait(timeout)
        printed = [each.text(timeout) for each in (out, error)]
    finally:
        command.kill()
    return subprocess.CompletedProcess(words, code, *printed)


class _Output:
    """What a program and its children write into a pipe; `end` is theirs."""

    def __init__(self) -> None:
        self._begin, self.end = os.pipe()
        self._found = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with os.fdopen(self._begin, "rb") as pipe:
            self._found = pipe.read()

    def text(self, timeout: float) -> str:
        """Return everything, once nobody can write any more."""
        self._reader.join(timeout)
        assert not self._reader.is_alive(), "a child of the program still has its output"
        return self._found.decode()


@dataclass(kw_only=True)
class Program:
    """One `turnout serve` that may be started again and again on the same data and port."""

    flows: Path
    data: Path
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    sabotage: str = ""
    prefix: Sequence[str] = ()
    spawned: bool = False
    listener: socket.socket | None = None
    """The socket to hand over at each start, as a socket unit of systemd does."""

    _child: subprocess.Popen[bytes] | warm.Forked | None = None
    _started: float = 0.0

    # ---- life

    def start(self) -> Self:
        """Start it in a process group of its own; does not wait."""
        words = ["serve", str(self.flows), "--data", str(self.data), "--port", str(self.port)]
        env = environment(self.env)
        with self.log.open("ab") as out:
            self._started = time.monotonic()
            if self.spawned or self.prefix or self.listener is not None or not warm.is_plain(env):
                self._child = self._spawn(words, env, out)
            else:
                end = out.fileno()
                self._child = warm.start(words, env=env, out=end, error=end, code=self.sabotage)
        return self

    def _spawn(
        self, words: Sequence[str], env: Mapping[str, str], out: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        code = ["-c", self.sabotage + _LAUNCH] if self.sabotage else ["-m", warm.MODULE]
        prefix, handed = list(self.prefix), []
        if self.listener is not None:
            handed = [self.listener.fileno()]
            given = f'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&{handed[0]}'
            prefix = ["bash", "-c", given, "bash", *prefix]
        return subprocess.Popen(
            [*prefix, sys.executable, *code, *words],
            env=env,
            pass_fds=handed,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        if error is not None:
            error.add_note(f"the end of {self.log.name}:\n{self.log_tail()}")

    @property
    def child(self) -> subprocess.Popen[bytes] | warm.Forked:
        """The process; fails before `start`."""
        assert self._child is not None, "the program was not started"
        return self._child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.child.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._child is not None and self._child.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self.child.send_signal(number)

    def kill(self) -> None:
        """End the whole process group with SIGKILL and wait for it."""
        if self._child is None:
            return
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait(30)

    def ended(self, timeout: float) -> int:
        """Wait for its end; returns the exit code."""
        until(lambda: not self.alive, timeout, "the program's end")
        code = self.child.returncode
        assert code is not None
        return code

    def stop(self, timeout: float = 15) -> int:
        """Stop it as a supervisor would (SIGTERM); returns the exit code."""
        self.signal(signal.SIGTERM)
        return self.ended(timeout)

    def check_journal(self) -> None:
        """Have `turnout doctor` examine the journal with the program's own settings."""
        doctor = turnout("doctor", "--data", self.data, env=self.env)
        assert doctor.returncode == 0, doctor.stdout + doctor.stderr

    # ---- facts

    def ready(self, timeout: float = 20) -> float:
        """Wait for `/readyz` to say yes; returns the seconds since the start."""

        def answered() -> bool:
            if not self.alive:
                raise AssertionError(f"ended with {self.child.returncode} before it was ready")
            answer = self.ask("/readyz")
            return answer is not None and answer.status == 200

        until(answered, timeout, "/readyz 200")
        return time.monotonic() - self._started

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5,
    ) -> Answer | None:
        """Make one request on a connection of its own; None when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            response = connection.getresponse()
            lower = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, lower, response.read())
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def post(self, path: str, data: object) -> str:
        """Send JSON to a webhook; returns the run it starts, or the one it stands for."""
        answer = self.ask(f"/hooks/{path}", method="POST", body=json.dumps(data).encode())
        assert answer is not None and answer.status == 202, answer
        return str(answer.json["runs"][0])

    def api(self, path: str) -> Any:
        """Return what the operator's API answers (`/api` + path)."""
        token = self.env.get("TURNOUT_API_TOKEN")
        bearer = token or (self.data / "api-token").read_text().strip()
        answer = self.ask(f"/api{path}", headers={"Authorization": f"Bearer {bearer}"})
        assert answer is not None and answer.status == 200, answer
        return answer.json

    def metrics(self, name: str) -> dict[str, float]:
        """Return the samples of one metric by their label text."""
        answer = self.ask("/metrics")
        assert answer is not None and answer.status == 200, answer
        sample = re.compile(rf"^{re.escape(name)}(?:\{{(.*)\}})? (\S+)", re.MULTILINE)
        return {labels: float(value) for labels, value in sample.findall(answer.body.decode())}

    def unfinished(self) -> int:
        """Return how many runs have not ended."""
        return int(sum(self.metrics("turnout_runs").values()))

    def is_quiet(self) -> bool:
        """Whether it answers, and every run has ended."""
        try:
            return self.unfinished() == 0
        except AssertionError:  # it is down
            return False

    def quiet(self, timeout: float) -> None:
        """Wait until every run has ended."""
        until(lambda: self.unfinished() == 0, timeout, "no unfinished run")

    def log_text(self) -> str:
        """Return everything it has said, over all its lives."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def log_tail(self) -> str:
        """Return the end of the log."""
        return self.log_text()[-4000:]

    def said(self, pattern: str, timeout: float) -> re.Match[str]:
        """Wait for a log line that matches."""
        wanted = re.compile(pattern)
        try:
            return until(lambda: wanted.search(self.log_text()), timeout, f"a log line {pattern!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}; the log ends with\n{self.log_tail()}") from None

    def process(self) -> psutil.Process:
        """Return the process to measure (below a tracer, the traced one)."""
        found = psutil.Process(self.pid)
        return found.children()[0] if self.prefix else found

    def rss_mib(self) -> float:
        """Return its resident memory in MiB."""
        return float(self.process().memory_info().rss) / 2**20


def killed_once(code: str) -> str:
    """Return sabotage: `code` may call `die()`, which kills the process the first time only.

    The program's variable `MARKER` names the file that says that it has been killed.
    """
    return f"""
import os, signal
from pathlib import Path

def die():
    marker = Path(os.environ["MARKER"])
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)

{code}
"""


@contextmanager
def supervised(program: Program, *, most_restarts: int) -> Iterator[list[int]]:
    """Keep a started program running, as systemd would; yields the exit codes of its deaths.

    A death is listed once the program has been started again. It is given up after `most_restarts`,
    so that a test of an endless crash loop ends.
    """
    deaths: list[int] = []
    leaving = threading.Event()

    def watch() -> None:
        while not leaving.is_set():
            if program.alive:
                leaving.wait(STEP_SECONDS)
                continue
            code = program.child.returncode
            assert code is not None
            if len(deaths) < most_restarts:
                program.start()
            deaths.append(code)
            if len(deaths) > most_restarts:
                return

    watcher = threading.Thread(target=watch, name="supervisor", daemon=True)
    watcher.start()
    try:
        yield deaths
    finally:
        leaving.set()
        watcher.join(10)
