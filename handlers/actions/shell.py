"""The action `shell`: a command of the machine, as a recorded step.

Not here: one try of it (`shell_command`), what ends it with the service (`shell_guardian`), and
what it comes to (`shell_result`).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from turnout.handlers.task import retry_policy
from turnout.service import pools
from turnout.service.domain.errors import MisplacedTask, SetupError
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.retry import retry as retry_of
from turnout.service.domain.task import Task
from turnout.service.domain.units import parse_duration, parse_size, parse_timeout
from turnout.service.domain.unknown import Unknown
from turnout.service.governance.secrets import Secret
from turnout.service.steps import in_thread
from turnout.service.steps.artefacts import Artefact
from turnout.service.steps.author_code import where
from turnout.service.steps.context import DIRECT, current
from turnout.service.steps.scope import here
from turnout.service.steps.step import StepCall, call_task
from turnout.service.steps.unawaited import to_await

from .shell_command import Command, run_beside, run_command
from .shell_result import ShellError, ShellResult

_USUAL = retry_of(3, delay="1s", max="30s", on=(ShellError, OSError))


def _call(
    command: Sequence[str | os.PathLike[str]] | str,
    *,
    timeout: str | timedelta | None = None,
    env: Mapping[str, str | Secret] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdin: bytes | str | Path | Secret | Artefact | None = None,
    stdout: Artefact | None = None,
    max_bytes: str | int = "1MiB",
    allow: Collection[int] = (),
    retry: RetryPolicy | int | None = None,
    grace: str | timedelta = "5s",
    reads: bool = False,
    shell: bool = False,
) -> Coroutine[object, None, ShellResult]:
    """Run a command, a recorded step: `await shell(["pg_dump", "shop"])`.

    Its result is recorded, and the command not run again, over retries and restarts. One that
    was cut off before that runs again, with the same `TURNOUT_STEP_KEY` in its environment. In
    a task it is a plain call, a part of the task's own step. All its processes end with it: on
    a cancel, a timeout, and the end of the service, also by `kill -9`. What it writes goes to
    the log of the run, line by line; of a flood the first and the last lines.

    * `command`: the program and its arguments, as they are: no shell reads them
    * `timeout`: how long one try may take; no bound by default
    * `env`: more variables; a value may be a secret. Of the environment of the service a
      command has `PATH`, `HOME`, `LANG` and `TZ`
    * `cwd`: the folder it runs in; by default that of the service
    * `stdin`: what it reads: bytes, text, a secret, or the file of a `Path` or an artefact
    * `stdout`: `artefact("dump.zst")` keeps its standard output as an artefact of the run, of
      any size, and not in the log
    * `max_bytes`: how many bytes of its standard output the result has, the last ones
    * `allow`: exit codes that are answers too, such as `{1}` of `grep`; usually only 0 is
    * `retry`: how often a command that failed is tried again, or a policy `retry(…)`; none by
      default, since turnout cannot know which command may run twice
    * `grace`: the time between SIGTERM and SIGKILL
    * `reads`: true for a command that changes nothing: `turnout run --dry-run` runs it
    * `shell`: true for a command that is one text, run by `/bin/sh`

    Raises `ShellError` when the command fails and no tries are left, `ShellRefused` at once for
    one that cannot be started, and `SetupError` for a text without `shell=True`.

    ```python
    from turnout import artefact, flow, secret, shell


    @flow
    async def backup(database: str) -> str | None:
        dump = await shell(
            ["pg_dump", "--format=custom", "--", database],
            env={"PGPASSWORD": secret("PGPASSWORD")},
            stdout=artefact(f"{database}.dump"),
            timeout="1h",
        )
        return dump.artefact
    ```
    """
    argv, task, call = _asked(
        _run, command, timeout, env, cwd, stdin, stdout, max_bytes, allow, retry, grace, reads,
        shell,
    )  # fmt: skip
    step = call_task(task, call, {})
    return to_await(_run_in_a_task(argv, call[-1]), task.words) if step is None else step


class Shell:
    """Call it in an `async def`, and `blocking` in a `def`."""

    __call__ = staticmethod(_call)

    def blocking(
        self,
        command: Sequence[str | os.PathLike[str]] | str,
        *,
        timeout: str | timedelta | None = None,
        env: Mapping[str, str | Secret] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdin: bytes | str | Path | Secret | Artefact | None = None,
        stdout: Artefact | None = None,
        max_bytes: str | int = "1MiB",
        allow: Collection[int] = (),
        retry: RetryPolicy | int | None = None,
        grace: str | timedelta = "5s",
        reads: bool = False,
        shell: bool = False,
    ) -> ShellResult:
        """Run a command from a `def` flow or task, also with `pool="process"`: returns its result.

        The options are those of `shell`. In an `async def` it raises `MisplacedTask`.
        """
        argv, task, call = _asked(
            _run_blocking, command, timeout, env, cwd, stdin, stdout, max_bytes, allow, retry,
            grace, reads, shell,
        )  # fmt: skip
        scope = here(task.name)
        result: ShellResult
        if scope is None:
            if current().services is not None and not pools.in_thread():
                raise _would_block()
            return run_command(argv, call[-1], _key_in_a_task(argv))
        if not pools.in_thread():
            raise _would_block()
        result = in_thread.run(StepCall(task, scope, scope.next_key(task.name), call, {}))
        return result


shell = Shell()


def _would_block() -> MisplacedTask:
    return MisplacedTask(
        f"shell.blocking(…), called at {where()}, would block the service: in an `async def` write "
        "`await shell(…)`"
    )


# ---------------------------------------------------------------- what is asked for


def _asked(
    function: Any,
    command: Sequence[str | os.PathLike[str]] | str,
    timeout: str | timedelta | None,
    env: Mapping[str, str | Secret] | None,
    cwd: str | os.PathLike[str] | None,
    stdin: bytes | str | Path | Secret | Artefact | None,
    stdout: Artefact | None,
    max_bytes: str | int,
    allow: Any,
    retry: RetryPolicy | int | None,
    grace: str | timedelta,
    reads: bool,
    shell: bool,
) -> tuple[list[str], Task[ShellResult], tuple[Any, ...]]:
    """Return the arguments of a command, its task, and what that is called with."""
    argv = _argv(command, shell)
    if stdout is not None and not isinstance(stdout, Artefact):
        raise SetupError(f"shell(stdout={stdout!r:.80}): write stdout=artefact('dump.zst')")
    if type(reads) is not bool:
        raise SetupError(f"shell(reads={reads!r:.80}): write reads=True for what changes nothing")
    if not isinstance(allow, Collection) or not all(type(each) is int for each in allow):
        raise SetupError(f"shell(allow={allow!r:.80}): write exit codes, such as allow={{1}}")
    seconds = parse_timeout(timeout)
    asked = Command(
        env=_env(env),
        cwd=_folder(cwd),
        seconds=None if seconds is None else seconds.total_seconds(),
        grace_seconds=max(0.0, parse_duration(grace).total_seconds()),
        stdin=_stdin(stdin),
        to=stdout,
        max_bytes=parse_size(max_bytes),
        allow=frozenset(allow),
    )
    policy = retry_policy(retry)
    if not isinstance(retry, RetryPolicy):
        policy = replace(_USUAL, count=policy.count)
    task: Task[ShellResult] = Task(function=function, name="shell", retry=policy, reads=reads)
    return argv, task, (*argv, asked)


def _argv(command: Any, shell: bool) -> list[str]:
    if type(shell) is not bool:
        raise SetupError(f"shell(…, shell={shell!r:.80}): write shell=True, or leave it out")
    if type(command) is Unknown:
        return [command]  # type: ignore[list-item]  # in a dry run, which only lists it
    if isinstance(command, str):
        if not shell:
            raise SetupError(
                f"shell({command[:80]!r}) is one text: write its words, shell([{_words(command)}]),"
                " or shell=True to have /bin/sh read it"
            )
        command = ["/bin/sh", "-c", command]
    elif shell:
        raise SetupError("shell([…], shell=True): a command for /bin/sh is one text")
    is_list = isinstance(command, Sequence) and not isinstance(command, bytes)
    if not is_list or not command or (type(command[0]) is str and not command[0]):
        raise SetupError(f"shell({command!r:.80}): write a list, such as ['ls', '--all']")
    return [_word(each) for each in command]


def _words(command: str) -> str:
    given = [repr(each) for each in command[:80].split()]
    return ", ".join(given[:3] + (["…"] if len(given) > 3 else []))


def _word(given: Any) -> str:
    if type(given) is Unknown:
        return given  # type: ignore[return-value]  # in a dry run, which only lists it
    if isinstance(given, Secret):
        raise SetupError(
            f"shell([…, {given!r}]): everybody on the machine can read the arguments of a command; "
            "pass it by env=, or by stdin="
        )
    if not isinstance(given, str | os.PathLike):
        raise SetupError(f"shell([…, {given!r:.80}]): an argument is text: write str(…)")
    return _text(os.fspath(given), "an argument")


def _text(given: Any, what: str) -> str:
    """Return what a command can be given; raises `SetupError` for what no system call takes."""
    try:
        if isinstance(given, str) and b"\0" not in os.fsencode(given):
            return given
    except UnicodeEncodeError:
        pass
    raise SetupError(f"shell(…): {what} is text without a NUL, not {given!r:.80}")


def _env(env: Any) -> dict[str, str | Secret]:
    if env is not None and not isinstance(env, Mapping):
        raise SetupError(f"shell(env={env!r:.80}): write a dict, such as {{'NAME': 'x'}}")
    for name, value in (env or {}).items():
        if not _text(name, "a name of env=") or "=" in name:
            raise SetupError(f"shell(env=…): {name!r:.80} is no name of a variable")
        if not isinstance(value, Secret) and type(value) is not Unknown:
            _text(value, f"env={{{name[:80]!r}: …}}")
    return dict(env or {})


def _folder(cwd: Any) -> str | None:
    if cwd is None or type(cwd) is Unknown:
        return None if cwd is None else repr(cwd)
    return _text(os.fspath(cwd) if isinstance(cwd, os.PathLike) else cwd, "cwd=")


def _stdin(stdin: Any) -> Any:
    if stdin is None or isinstance(stdin, bytes | Path | Secret | Artefact | Unknown):
        return stdin
    if isinstance(stdin, str):
        try:
            return stdin.encode()
        except UnicodeEncodeError as error:
            raise SetupError(f"shell(stdin=…) is no text that UTF-8 can write: {error}") from None
    raise SetupError(f"shell(stdin={stdin!r:.80}): write bytes, text, a Path or artefact('x')")


# ---------------------------------------------------------------- the step


async def _run(*given: Any) -> ShellResult:
    """Run the command of a step."""
    *argv, command = given
    return await run_beside(argv, command, current().key())


def _run_blocking(*given: Any) -> ShellResult:
    """Run the command of a step of a `def` flow."""
    *argv, command = given
    return run_command(argv, command, current().key())


async def _run_in_a_task(argv: Sequence[str], command: Command) -> ShellResult:
    """Run a command from within an author's task, which may run several, or from nowhere."""
    return await run_beside(argv, command, _key_in_a_task(argv))


def _key_in_a_task(argv: Sequence[str]) -> str:
    context = current()
    return uuid.uuid4().hex if context.run.id == DIRECT else context.key(f"shell {[*argv]!r}")
