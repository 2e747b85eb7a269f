"""One try of a command of the action `shell`: started, its pipes served, ended, and judged.

It blocks, in a thread of its own or in that of a `def` function, so that it is the same wherever
the author calls it. The command runs under a guardian (`shell_guardian`), which ends all its
processes, also when this process dies. Not here: further tries (the step), and what is kept of the
output (`shell_output`).
"""

from __future__ import annotations

import asyncio
import errno
import marshal
import os
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from turnout.service import pools
from turnout.service.governance import secrets
from turnout.service.governance.secrets import Secret
from turnout.service.steps.artefacts import Artefact, Attaching
from turnout.service.telemetry.logs import get_logger

from .shell_output import Allowance, Lines, Masked, Tail
from .shell_pipes import Pipes, Stop
from .shell_result import ShellError, ShellRefused, ShellResult, name_of_signal, not_started

INHERITED = ("PATH", "HOME", "LANG", "TZ")
"""What a command has of the environment of the service."""
STEP_KEY = "TURNOUT_STEP_KEY"

_GUARDIAN = Path(__file__).with_name("shell_guardian.py")
_STDERR_BYTES = 64 * 1024
_SHOWN_BYTES = 500
_LOOK_SECONDS = 0.1
"""How often a thread that nobody can wake looks whether its call was stopped."""
_PATIENCE_SECONDS = 15.0
"""How long a guardian may take beyond the grace time before it is ended itself."""
_DRAIN_SECONDS = 5.0
"""How long output may take to arrive when the command has ended."""

_log = get_logger("turnout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command as its step is called with it, beside its arguments."""

    env: Mapping[str, str | Secret] = field(default_factory=dict)
    cwd: str | None = None
    seconds: float | None = None
    grace_seconds: float = 5.0
    stdin: bytes | str | Path | Secret | Artefact | None = None
    to: Artefact | None = None
    max_bytes: int = 2**20
    allow: frozenset[int] = frozenset()


async def run_beside(argv: Sequence[str], command: Command, key: str) -> ShellResult:
    """Run a command from the loop; ends when all of it has ended, also where it is cancelled.

    Its thread is its own: a command may take hours, and a pool has few.
    """
    stop, done, context = Stop(), Future[ShellResult](), copy_context()
    done.set_running_or_notify_cancel()

    def work() -> None:
        try:
            done.set_result(context.run(run_command, argv, command, key, stop.wakes))
        except BaseException as error:  # noqa: BLE001  whoever awaits it gets it
            done.set_exception(error)
        finally:
            stop.close()

    try:
        threading.Thread(target=work, name="turnout-shell", daemon=True).start()
    except BaseException:
        stop.close()
        raise
    try:
        return await pools.until_done(done, stop.ask)
    finally:
        stop.ask()  # its loop may have been closed


def run_command(
    argv: Sequence[str], command: Command, key: str, wakes: int | None = None
) -> ShellResult:
    """Run a command in this thread; raises `ShellError`, `ShellRefused`.

    It is ended, and `CancelledError` raised, once `wakes` is readable, or the call of this thread
    was stopped.
    """
    env = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env[STEP_KEY] = key
    for name, value in command.env.items():
        env[name] = value.reveal() if isinstance(value, Secret) else value
    _refuse_nul(argv, env)
    with ExitStack() as stack:
        running = _Running(argv, command, stack)
        running.start(env)
        running.serve(wakes)
        return running.result()


def _refuse_nul(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Raise `ShellRefused` for a secret that no environment can hold; the rest was checked."""
    for name, value in env.items():
        if "\0" in value:
            raise ShellRefused(f"{shown(argv)}: env={{{name!r}: …}} has a NUL byte")


def shown(argv: Sequence[str]) -> str:
    """Return a command for messages: as a shell takes it, cut, with secrets masked."""
    text = secrets.mask(shlex.join(map(secrets.mask, argv)))  # a quoted value has another form
    text = "".join(each if each.isprintable() else "?" for each in text[:201])
    return text if len(text) <= 200 else f"{text[:200]}…"


def _own_env() -> dict[str, str]:
    """Return what a guardian has of the environment: where the libraries of Python are."""
    names = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {name: os.environ[name] for name in names if name in os.environ}


class _CallOver(Exception):
    """Ends a command whose caller, in a pool thread, was stopped or has no time left."""


class _Running:
    """A command that runs: its guardian, its pipes, and what has come of them."""

    def __init__(self, argv: Sequence[str], command: Command, stack: ExitStack) -> None:
        self._argv = argv
        self._command = command
        self._stack = stack
        self._pipes = Pipes(stack)
        self._said = b""
        self._pid: int | None = None
        self._status: int | None = None
        self._failure: tuple[str, int] | None = None
        self._is_stuck = False
        self._leaves_processes = False
        self._ended_by: BaseException | None = None
        self._deadline: float | None = None
        self._stdout, self._stderr = Tail(command.max_bytes), Tail(_STDERR_BYTES)
        allowance, to = Allowance(), command.to
        stderr = Masked(self._stderr, Lines("stderr", allowance))
        self._attaching: Attaching | None = None
        self._finish: tuple[Callable[[], None], ...]
        if to is None:
            stdout = Masked(self._stdout, Lines("stdout", allowance))
            self._take, self._finish = (stdout.take, stderr.take), (stdout.done, stderr.done)
        else:
            self._attaching = Attaching(to.name, to.type)
            stack.callback(self._discard)
            self._take, self._finish = (self._attach, stderr.take), (stderr.done,)

    # ---- starting it

    def start(self, env: Mapping[str, str]) -> None:
        """Start the guardian, and send it the command."""
        reads, stdin, data = self._stdin()
        control_read, self._control = self._pipes.make()
        status, status_write = self._pipes.make()
        stdout, stdout_write = self._pipes.make()
        stderr, stderr_write = self._pipes.make()
        passed = (status_write.fileno(), reads.fileno())
        try:
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARDIAN), *map(str, passed)],
                stdin=control_read, stdout=stdout_write, stderr=stderr_write, env=_own_env(),
                pass_fds=passed, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise ShellError(f"{shown(self._argv)} cannot be started: {error}") from None
        self._stack.callback(self._reap)
        for each in (control_read, status_write, stdout_write, stderr_write, reads):
            each.close()
        argv = [os.fsencode(each) for each in self._argv]
        given = {os.fsencode(name): os.fsencode(value) for name, value in env.items()}
        folder = None if self._command.cwd is None else os.fsencode(self._command.cwd)
        asked = self._command
        request = marshal.dumps((argv, given, folder, asked.seconds, asked.grace_seconds))
        self._pipes.write(self._control, len(request).to_bytes(8, "big") + request)
        if stdin is not None:
            self._pipes.write(stdin, data, closes=True)
        self._pipes.read(stdout, self._take[0])
        self._pipes.read(stderr, self._take[1])
        self._pipes.read(status, self._hear)
        self._guarding = status

    def _stdin(self) -> tuple[IO[bytes], IO[bytes] | None, bytes]:
        """Return what the command reads, and what is to be written where for that."""
        given = self._command.stdin
        if isinstance(given, Artefact):
            given = given.path
        if given is None or isinstance(given, Path):
            return self._stack.enter_context(_opened(given, shown(self._argv))), None, b""
        if isinstance(given, Secret):
            given = given.reveal()
        data = given.encode() if isinstance(given, str) else given
        return *self._pipes.make(), data

    # ---- serving it

    def serve(self, wakes: int | None) -> None:
        """Serve the pipes until the guardian has said how the command ended."""
        seconds = self._command.seconds
        if seconds is not None:
            self._deadline = time.monotonic() + seconds
        if wakes is not None:
            self._pipes.wake(wakes, lambda: self._end(asyncio.CancelledError("it was stopped")))
        is_draining = False
        while self._pipes.are_open:
            self._pipes.serve(self._patience(wakes), self._end)
            if self._guarding.closed and not is_draining:
                self._kill_unguarded()
                is_draining, self._deadline = True, time.monotonic() + _DRAIN_SECONDS
            if self._deadline is not None and time.monotonic() >= self._deadline:
                if is_draining or self._ended_by is not None:
                    return
                self._end(TimeoutError())
            if wakes is None and pools.stopped():
                self._end(_CallOver())

    def _patience(self, wakes: int | None) -> float | None:
        """Return for how many seconds nothing but the pipes has to be looked at."""
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if wakes is not None:
            return left
        return _LOOK_SECONDS if left is None else min(left, _LOOK_SECONDS)

    def _end(self, why: BaseException) -> None:
        """End the command; the first reason counts, and what it writes is read on."""
        if self._ended_by is not None:
            return
        self._ended_by = why
        if not self._guarding.closed:
            self._pipes.write(self._control, b"t")
            patience = self._command.grace_seconds + _PATIENCE_SECONDS
            self._deadline = time.monotonic() + patience
        self._discard()

    def _attach(self, data: bytes) -> None:
        if self._attaching is not None:
            self._attaching.write(data)

    def _discard(self) -> None:
        attaching, self._attaching = self._attaching, None
        if attaching is not None:
            attaching.discard()

    def _hear(self, data: bytes) -> None:
        """Take what the guardian says."""
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines:
            word, *rest = line.decode().split()
            if word == "pid":
                self._pid = int(rest[0])
            elif word == "failed":
                self._failure = rest[0], int(rest[1])
            elif word == "timeout":
                self._end(TimeoutError())
            elif word == "exit":
                self._status, self._leaves_processes = int(rest[0]), rest[1] == "1"
            else:
                self._is_stuck = True

    def _reap(self) -> None:
        """Leave no process: the guardian has ended, or is ended with its command."""
        self._control.close()  # tells it to kill all there is
        try:
            self._guardian.wait(_DRAIN_SECONDS if self._status is None else 60)
        except subprocess.TimeoutExpired:
            self._guardian.kill()
            self._guardian.wait()
        self._kill_unguarded()

    def _kill_unguarded(self) -> None:
        """Kill the command's group, if its guardian has ended without ending it."""
        if self._status is None and self._pid is not None:
            with suppress(OSError):  # it has ended
                os.killpg(self._pid, signal.SIGKILL)

    # ---- judging it

    def result(self) -> ShellResult:
        """Return what the command has answered; raises why there is no answer."""
        for done in self._finish:
            done()
        if self._is_stuck:
            _log.warning("shell.processes_stuck", command=shown(self._argv))
        elif self._leaves_processes:
            _log.warning("shell.processes_ended", command=shown(self._argv))
        self._raise_why_ended()
        code = self._exit_code()
        if self._attaching is not None:
            self._attaching.done()
            self._attaching = None
        to = self._command.to
        return ShellResult(
            exit_code=code,
            stdout_bytes=bytes(self._stdout),
            stderr_bytes=bytes(self._stderr),
            left_out=self._stdout.left_out,
            artefact=None if to is None else to.name,
        )

    def _raise_why_ended(self) -> None:
        """Raise if the command was not started, or ended by this side."""
        why = self._ended_by
        if isinstance(why, _CallOver):
            pools.in_thread()  # raises if nobody waits for it
            raise self._error("was ended, since the time of its task is over", timed_out=True)
        if why is not None and not isinstance(why, TimeoutError):
            raise why
        if self._failure is not None:
            raise not_started(shown(self._argv), self._command.cwd, *self._failure)
        if why is not None:
            raise self._error(f"did not end within {self._command.seconds:g}s", timed_out=True)

    def _exit_code(self) -> int:
        """Return the exit code, if it is an answer; raises `ShellError` for any other end."""
        if self._status is None:
            raise self._error("was ended together with its guardian process")
        code = os.waitstatus_to_exitcode(self._status)
        if code < 0:
            name = name_of_signal(-code)
            raise self._error(f"was ended by {name}", ended_by=name)
        if code != 0 and code not in self._command.allow:
            raise self._error(f"exited with {code}", exit_code=code)
        return code

    def _error(
        self,
        how: str,
        *,
        exit_code: int | None = None,
        ended_by: str | None = None,
        timed_out: bool = False,
    ) -> ShellError:
        stderr = secrets.mask(bytes(self._stderr).decode("utf-8", "replace"))
        said = " ".join(stderr[-_SHOWN_BYTES:].split())
        said = "".join(each if each.isprintable() else "?" for each in said)
        return ShellError(
            f"{shown(self._argv)} {how}{f': {said}' if said else ''}",
            exit_code=exit_code,
            signal=ended_by,
            timed_out=timed_out,
            stderr=stderr,
        )


def _opened(path: Path | None, command: str) -> IO[bytes]:
    """Open what a command reads; raises `ShellRefused` for what is no file."""
    try:
        # Without waiting: a pipe that nobody writes to would hold this thread for ever.
        file = open(path or os.devnull, "rb", 0, opener=_at_once)  # noqa: SIM115
        if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(errno.EINVAL, "it is a pipe")
    except (OSError, ValueError) as error:
        raise ShellRefused(
            f"{command}: stdin={str(path)[:200]!a} cannot be read: {error}"
        ) from None
    os.set_blocking(file.fileno(), True)
    return file


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
