"""The `turnout` command.

Importing this package imports click and nothing heavy: each command imports what it needs when it
runs, so `turnout --help` and shell completion stay fast. `main` decides the exit code.
"""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import click

from turnout.service.domain.errors import (
    InvalidData,
    JournalBroken,
    JournalError,
    JournalFull,
    Overloaded,
    SetupError,
    TurnoutError,
)

from . import (
    alerts,
    artefact,
    backtest,
    backup,
    cache,
    check,
    dead_letters,
    doctor,
    events,
    exit_codes,
    explain,
    flows,
    graph,
    help,
    limits,
    logs,
    new,
    pauses,
    pending,
    run,
    runs,
    serve,
    show,
    state,
    triggers,
    upcoming,
    upgrade,
    why,
)
from .output import complain, told

_EXIT_CODES: tuple[tuple[type[TurnoutError], int], ...] = (
    (SetupError, exit_codes.CONFIG),
    (InvalidData, exit_codes.USAGE),
    (Overloaded, exit_codes.UNAVAILABLE),
    (JournalBroken, exit_codes.IO),
    (JournalFull, exit_codes.IO),
    (JournalError, exit_codes.IO),
)


class _OutputClosed(Exception):
    """Raised when the reader of the output (head, less) closes the pipe."""


class _Turnout(click.Group):
    """The root command; a closed pipe has its own exit code."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except BrokenPipeError:  # click would say 1, which is "problems found" here
            raise _OutputClosed from None


@click.group(
    cls=_Turnout,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="turnout", message="turnout %(version)s")
def cli() -> None:
    """Events in, flows run, nothing lost.

    \b
    turnout new orders                       make a project
    turnout check flows.py                   find mistakes before anything runs
    turnout run flows.py:bill --input '{}'   run one flow once
    turnout serve flows.py                   accept events and run flows
    turnout runs --state failed              list failed runs
    turnout show RUN                         see why a run failed
    turnout retry RUN                        run it again from where it stopped

    \b
    Settings: options, then TURNOUT_* in the environment, then turnout.toml; the first one wins.
    Exit codes:
      0  done                      69  the service is not running or too busy
      1  problems found, a run     70  unexpected: a bug in turnout
         failed, or a refusal      74  the journal's disk failed or is full
      2  wrong usage               78  wrong settings or flow files
    """


for _command in (
    serve.serve, check.check, run.run, doctor.doctor,
    runs.runs, show.show, artefact.artefact, why.why, events.events, flows.flows, triggers.triggers,
    runs.retry, runs.cancel, runs.approve, events.replay, dead_letters.dead,
    pauses.pause, pauses.resume, pending.pending, limits.limits, cache.cache, triggers.fire,
    alerts.alerts, events.emit, triggers.trigger, upcoming.next_, upcoming.approvals, logs.logs,
    graph.graph, help.help_, explain.explain, backtest.backtest, new.new, state.state,
    backup.backup, backup.restore, upgrade.upgrade,
):  # fmt: skip
    cli.add_command(_command)
exit_codes.add_to_help(cli)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with the code that the help documents."""
    _open_standard_streams()
    sys.exit(_run(arguments))


def _open_standard_streams() -> None:
    """Open closed standard streams on /dev/null.

    Otherwise the next file or socket gets a number from 0 to 2, and error messages are written to
    it, by child processes too.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            os.set_inheritable(opened, True)
    nothing = Path(os.devnull)
    sys.stdout = sys.stdout or nothing.open("w", encoding="utf-8")
    sys.stderr = sys.stderr or nothing.open("w", encoding="utf-8")
    own = sys.__stdout__
    if own is not None and sys.stdout is own:  # not replaced by a test
        sys.stdout = writing_all(own)


def writing_all(stream: TextIO) -> TextIO:
    """Return a stream that writes everything, line by line.

    With PYTHONUNBUFFERED Python's own stream drops the rest of a partial write to a full pipe.
    """
    raw: object = getattr(stream, "buffer", None)
    if not isinstance(raw, io.RawIOBase):
        return stream
    buffered = io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffered, encoding=stream.encoding, errors=stream.errors, line_buffering=True
    )


def _run(arguments: Sequence[str] | None) -> int:
    try:
        # Not standalone: click knows neither our errors nor our exit codes.
        cli.main(args=arguments, prog_name="turnout", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("stopped")
        return exit_codes.INTERRUPTED
    except (BrokenPipeError, _OutputClosed):
        return _discard_output(exit_codes.PIPE)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich ends like this
            return _discard_output(exit_codes.PIPE)
        return end.code if isinstance(end.code, int) else exit_codes.PROBLEM
    except Exception as error:  # noqa: BLE001  the outermost frame: it only chooses the exit code
        return _report_error(error, arguments or sys.argv)
    return 0


def _report_error(error: Exception, arguments: Sequence[str]) -> int:
    """Print an error for the user of the command; returns the exit code."""
    known = _single_cause(error)
    if isinstance(known.__cause__ or known, UnicodeEncodeError) and _is_undecodable(arguments):
        complain("error: an argument is not UTF-8")
        return exit_codes.USAGE
    if isinstance(known, click.Abort):  # at a question that a run asked
        complain("stopped")
        return exit_codes.INTERRUPTED
    if isinstance(known, TurnoutError):
        complain(f"error: {' '.join(told(known).split())}")
        return exit_code(known)
    if isinstance(known, PermissionError):
        complain(f"error: {known}; run this as the user the service runs as")
        return exit_codes.CONFIG
    if isinstance(known, OSError) and known.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        complain(f"error: cannot write the output: {known.strerror}")
        return _discard_output(exit_codes.IO)
    import traceback

    traceback.print_exception(error)
    complain("unexpected: this is a bug in turnout, please report the lines above")
    return exit_codes.UNEXPECTED


def _is_undecodable(arguments: Sequence[str]) -> bool:
    """Whether an argument is not UTF-8: possible for a file name, not for a run or a flow."""
    return any("\ud800" <= character <= "\udfff" for one in arguments for character in one)


def _discard_output(code: int) -> int:
    """Keep the interpreter from flushing stdout at exit; returns `code`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def exit_code(error: TurnoutError) -> int:
    """Return the exit code for an error."""
    from turnout.service.client import Unavailable  # not at the top: it imports much

    if isinstance(error, Unavailable):
        return exit_codes.UNAVAILABLE
    for kind, code in _EXIT_CODES:
        if isinstance(error, kind):
            return code
    return exit_codes.PROBLEM


def _single_cause(error: BaseException) -> BaseException:
    """Unwrap an error from exception groups in which it is the only one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
