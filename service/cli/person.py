"""The person at the terminal of `turnout run`: is told what it waits for, answers, and debugs."""

from __future__ import annotations

import asyncio
import functools
import json
import pdb
import sys
from collections.abc import Callable
from dataclasses import replace
from getpass import getuser
from typing import TYPE_CHECKING, Any, TextIO

import click

from turnout.service.domain.errors import SetupError
from turnout.service.domain.run import Fail, Retry, Skip

from .output import complain
from .times import with_local_times

if TYPE_CHECKING:
    from turnout.service.app.foreground_waits import Question
    from turnout.service.operate.verbs import Answer
    from turnout.service.project import AnyFlow


class Terminal:
    """Whoever typed the command."""

    @property
    def answers(self) -> bool:
        """Whether there is a terminal to ask at."""
        return sys.stdin.isatty()

    def tell(self, text: str) -> None:
        """Say what the run waits for."""
        complain(with_local_times(text))

    async def ask(self, question: Question, problem: str | None) -> Answer:
        """Return the answer to an approval; it is asked in a thread, so that the run goes on."""
        if problem is not None:
            complain(problem)
        return await asyncio.to_thread(_answer, question)


def _answer(question: Question) -> Answer:
    from turnout.service.operate.verbs import Answer

    said = functools.partial(
        Answer, question.run_id, by=getuser(), step=question.step, via="terminal"
    )
    for line in (
        *question.text.splitlines(),
        *(
            f"  {name}: {json.dumps(each, ensure_ascii=False)}"
            for name, each in question.data.items()
        ),
    ):
        complain(line)
    if not click.confirm(f"approve {question.approval}?", err=True):
        reason = click.prompt("reason", default="", show_default=False, err=True)
        return said(approved=False, reason=reason)
    if question.fields is None:
        return said(approved=True)
    name = question.fields.rpartition(":")[2]
    while True:
        text = click.prompt(f"{name}, as JSON", default="{}", err=True)
        try:
            return said(approved=True, fields=json.loads(text))
        except ValueError as error:
            complain(f"that is not JSON: {error}")


# ---------------------------------------------------------------- --pdb


def debugged(flow: AnyFlow) -> AnyFlow:
    """Return the flow with a debugger on every error that ends its function."""
    if not flow.is_async and flow.pool == "process":
        raise SetupError(
            f"flow {flow.name!r} runs in a worker process, which has no terminal: leave out "
            f'pool="process" to debug it', file=flow.file, line=flow.line,
        )  # fmt: skip
    return replace(flow, function=_debugged(flow.function, is_async=flow.is_async))


def _debugged(function: Callable[..., Any], *, is_async: bool) -> Callable[..., Any]:
    @functools.wraps(function)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        try:
            return await function(*args, **kwargs)
        except (Retry, Fail, Skip):
            raise
        except Exception as error:
            _debug(error)
            raise

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (Retry, Fail, Skip):
            raise
        except Exception as error:
            _debug(error)
            raise

    return awaited if is_async else called


def _debug(error: Exception) -> None:
    """Open a debugger where an error was raised; `print` of a run goes to its log, pdb does not."""
    stdout: TextIO | None = sys.__stdout__
    complain(f"{type(error).__name__}: {error}")
    debugger = pdb.Pdb(stdout=stdout)
    debugger.reset()
    debugger.interaction(None, error.__traceback__)
