"""What a command of the action `shell` comes to: a result, or an error that says why not."""

from __future__ import annotations

import errno
import os
import signal as signals
from dataclasses import dataclass
from typing import Any

from turnout.service.domain.errors import TurnoutError
from turnout.service.domain.payload import read_json
from turnout.service.domain.run import Fail


class ShellError(TurnoutError):
    """Raised when a command fails: its exit code is not 0, a signal or its timeout ended it.

    A command that cannot be started is `ShellRefused`, which is one of these too.

    * `message`: the command, how it ended, and the end of its standard error
    * `exit_code`: its exit code, None where it has none: a signal ended it, or it never started
    * `signal`: the name of the signal that ended it, such as `"SIGKILL"`, None if none did
    * `timed_out`: whether it was ended because its time was up
    * `stderr`: the end of its standard error

    Raises nothing by itself; not caught, the run is retried as its flow says.

    ```python
    from turnout import Fail, ShellError, flow, shell


    @flow
    async def check(path: str) -> str:
        try:
            await shell(["gzip", "--test", "--", path])
        except ShellError as error:
            raise Fail(f"{path} is damaged: {error.stderr}") from error
        return "whole"
    ```
    """

    def __init__(
        self,
        message: str,
        *,
        exit_code: int | None = None,
        signal: str | None = None,
        timed_out: bool = False,
        stderr: str = "",
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.signal = signal
        self.timed_out = timed_out
        self.stderr = stderr


class ShellRefused(ShellError, Fail):
    """Raised at once for a command that cannot be started: another try would not change that.

    Its program or its folder is not there or may not be used, or its arguments are too long. It is
    a `Fail`.

    * `message`: the command, and why it cannot be started
    * `exit_code`: None
    * `signal`: None
    * `timed_out`: False
    * `stderr`: empty

    Raises nothing by itself; not caught, it fails the run for good.

    ```python
    from turnout import ShellRefused, flow, shell


    @flow
    async def pack(path: str) -> str:
        try:
            await shell(["zstd", "--rm", "--", path])
        except ShellRefused:
            await shell(["gzip", "--", path])
            return f"{path}.gz"
        return f"{path}.zst"
    ```
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellResult:
    """What a command has answered: recorded exactly, and the same when the run resumes.

    * `exit_code`: 0, or one of `allow=`
    * `stdout_bytes`: the end of its standard output, `max_bytes` at most, with secrets masked;
      empty if it went to an artefact
    * `stderr_bytes`: the end of its standard error, 64 KiB at most, with secrets masked
    * `left_out`: how many bytes of standard output came before `stdout_bytes` and are not kept
    * `artefact`: the name of the artefact that has its standard output, None if none has

    `stdout` and `stderr` are the same as text. Raises nothing: it is a value. `json()` raises
    `ValueError` where the output is no JSON, or not all of it is kept.

    ```python
    from turnout import ShellResult, flow, shell


    @flow
    async def version() -> str:
        result: ShellResult = await shell(["git", "--version"], reads=True)
        return result.stdout.strip()
    ```
    """

    exit_code: int
    stdout_bytes: bytes
    stderr_bytes: bytes
    left_out: int = 0
    artefact: str | None = None

    @property
    def stdout(self) -> str:
        """The standard output as text; bytes that are no UTF-8 are replaced."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """The standard error as text; bytes that are no UTF-8 are replaced."""
        return self.stderr_bytes.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the standard output, which is JSON; raises `ValueError` if it is not."""
        if self.left_out:
            raise ValueError(
                f"{self.left_out:,} bytes of the output are not kept: raise max_bytes="
            )
        return read_json(self.stdout_bytes)


_TEMPORARY = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY})


def not_started(command: str, folder: str | None, stage: str, code: int) -> ShellError:
    """Return why a command could not be started, with what to do."""
    kind = ShellError if code in _TEMPORARY else ShellRefused
    why = os.strerror(code)
    if stage == "folder":
        return kind(f"{command} cannot be started in cwd={str(folder)[:200]!a}: {why}")
    hints = {
        errno.ENOENT: "; the program, or the interpreter of its first line, is not there",
        errno.EACCES: "; it may not be executed: chmod +x",
        errno.ENOEXEC: "; it is no program: begin it with a line such as #!/bin/sh",
        errno.E2BIG: "; pass what is long by stdin=, or in a file",
    }
    return kind(f"{command} cannot be started: {why}{hints.get(code, '')}")


def name_of_signal(number: int) -> str:
    """Return the name of a signal."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"  # of real time
