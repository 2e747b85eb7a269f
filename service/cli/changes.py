"""What commands that change something have in common: `--dry-run`, the question, and `--yes`.

Each such command takes `--dry-run`, which says what would be done and changes nothing. One that
ends or deletes what cannot be had again asks first and takes `--yes`. What there is to say, and to
ask, comes from the plan of the verb (`operate.parts.plans`). `tests/cli/test_changes.py` walks all
commands, so that a new one cannot forget.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from turnout.service.domain.errors import NotFound, Refused

from .options import Command, with_json, with_settings
from .output import complain, print_json, say, told, working

if TYPE_CHECKING:
    from turnout.service.operate.verbs import Verb
    from turnout.service.project import Project
    from turnout.service.settings import Settings

    from .session import Session

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what would happen and change nothing."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")

_Told = dict[str, Any] | Exception


def with_change(*, asks: bool = False) -> Callable[[Command], Command]:
    """Give a command that does verbs its `change`, with `--dry-run`, `--json` and `--data`.

    One that `asks` first takes `--yes` too.
    """

    def decorate(command: Command) -> Command:
        @dry_run_option
        @with_json
        @with_settings
        @functools.wraps(command)
        def wrapped(
            *args: Any, settings: Settings, dry_run: bool, as_json: bool, yes: bool = True,
            **kwargs: Any,
        ) -> Any:  # fmt: skip
            change = Change(settings, dry_run=dry_run, yes=yes, as_json=as_json)
            return command(*args, change=change, **kwargs)

        return yes_option(wrapped) if asks else wrapped

    return decorate


def ask(question: str, *, yes: bool) -> None:
    """Ask before something is done; without a terminal `--yes` is required."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Add --yes to do it without a question.")
    click.confirm(question, abort=True, err=True)


class Change:
    """Does the verbs of a command, or says what they would do."""

    def __init__(self, settings: Settings, *, dry_run: bool, yes: bool, as_json: bool) -> None:
        self.settings = settings
        self.dry_run = dry_run
        self.yes = yes
        self.as_json = as_json

    def do(
        self,
        *verbs: Verb[Any],
        tell: Callable[[dict[str, Any]], None],
        project: Callable[[], Project] | None = None,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Do one verb after the other, and `tell` the document of each, or print it as JSON.

        `more` comes first in that. A verb that is refused does not stop the others; the command
        then exits 1.
        """
        if self.dry_run or not self.yes:
            plans = self._each(verbs, lambda session, verb: session.plan(verb), project)
            if self.dry_run:
                self._finish(plans, tell_plan, {})
                return
            self._ask(plans)
        found = self._each(verbs, lambda session, verb: session.do(verb), project)
        self._finish(found, tell, more)

    def _ask(self, plans: Sequence[_Told]) -> None:
        """Ask whether all that is planned is to be done; what is refused is told afterwards."""
        sentences = [each for plan in plans if isinstance(plan, dict) for each in plan["done"]]
        if not sentences:
            return
        if len(sentences) > 1:
            for sentence in sentences:
                complain(sentence)
        question = sentences[0] if len(sentences) == 1 else f"do these {len(sentences)} things"
        ask(f"{question[0].upper()}{question[1:]}?", yes=False)

    def _each(
        self,
        verbs: Sequence[Verb[Any]],
        act: Callable[[Session, Verb[Any]], Awaitable[dict[str, Any]]],
        project: Callable[[], Project] | None,
    ) -> list[_Told]:
        import asyncio

        from .session import open_session

        async def each() -> list[_Told]:
            found: list[_Told] = []
            needs_service = any(verb.needs_service for verb in verbs)
            async with open_session(
                self.settings, needs_service=needs_service, project=project
            ) as session:
                for verb in verbs:
                    try:
                        found.append(await act(session, verb))
                    except (NotFound, Refused) as error:
                        found.append(error)
            return found

        with working("waiting for the service"):
            return asyncio.run(each())

    def _finish(
        self,
        found: Sequence[_Told],
        tell: Callable[[dict[str, Any]], None],
        more: Mapping[str, Any],
    ) -> None:
        refused = False
        for each in found:
            if isinstance(each, Exception):
                complain(f"error: {told(each)}")
                refused = True
            elif self.as_json:
                print_json({**more, **each})
            else:
                tell(each)
        if refused:
            raise SystemExit(1)


def tell_plan(plan: dict[str, Any]) -> None:
    """Print what would be done."""
    for sentence in plan["done"]:
        say(f"would: {sentence}")
