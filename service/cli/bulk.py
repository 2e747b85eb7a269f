"""Acting on runs by their ids or on every run that matches filters, for the commands that do.

A bulk action asks first, with the count. A refusal for one run does not stop the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from turnout.service.domain.errors import NotFound, Refused

from .changes import ask, dry_run_option, yes_option
from .options import Command, chosen, run_async, with_filters, with_json, with_settings
from .output import complain, print_json, progress, say, told

if TYPE_CHECKING:
    from turnout.service.domain.run import Run, RunState
    from turnout.service.journal.records import Filter
    from turnout.service.operate.verbs import Verb
    from turnout.service.settings import Settings


def with_selection(command: Command) -> Command:
    """Give a command the runs to act on, as `selection`: ids or filters.

    Adds `--dry-run`, `--yes` and `--json`.
    """

    @click.argument("run_ids", nargs=-1, metavar="[RUN]...")
    @with_filters
    @dry_run_option
    @yes_option
    @with_json
    @with_settings
    @functools.wraps(command)
    def wrapped(
        *args: Any, settings: Settings, run_ids: tuple[str, ...], filters: dict[str, str],
        dry_run: bool, yes: bool, as_json: bool, **kwargs: Any,
    ) -> Any:  # fmt: skip
        selection = Selection(settings, run_ids, filters, dry_run=dry_run, yes=yes, as_json=as_json)
        return command(*args, selection=selection, **kwargs)

    return wrapped


class Selection:
    """The runs that a command acts on: the named ones, or those that match the filters."""

    def __init__(
        self, settings: Settings, run_ids: tuple[str, ...], filters: dict[str, str],
        *, dry_run: bool, yes: bool, as_json: bool,
    ) -> None:  # fmt: skip
        self._dry_run = dry_run
        self._settings = settings
        self._run_ids = run_ids
        self._filters = filters
        self._yes = yes
        self._as_json = as_json

    def ids(
        self, word: str, states: frozenset[RunState] | None, *, queues: bool = False
    ) -> list[str]:
        """Return the ids of the runs; asks first if filters select them.

        `word` is what will be done to them, `states` which of the matching ones are meant: None
        means dead letters. What `queues` runs again takes them in that order (`to_queue_again`), a
        cancel the newest first, so that none starts meanwhile.
        """
        if bool(self._run_ids) == bool(self._filters):
            raise click.UsageError(
                f"name the runs to {word}, or select them with filters such as --flow"
            )
        if not self._filters:
            return run_async(_full_ids(self._settings, self._run_ids))
        which = chosen(self._filters, dead=True if states is None else None)
        runs = run_async(_matching(self._settings, which, states))
        if queues:
            from turnout.service.operate.replays import to_queue_again

            runs = to_queue_again(runs)
        ids = [run.id for run in runs]
        if not ids:
            say("no runs match" if states is not None else "no dead letters match")
            return []
        noun = "run" if states is not None else "dead letter"
        ask(f"{word} {len(ids)} {noun}{'s' * (len(ids) != 1)}?", yes=self._yes or self._dry_run)
        return ids

    def accepts_not_undone(self, ids: Sequence[str]) -> bool:
        """Ask before runs are replayed that are not undone; returns whether there are any."""
        return accept_not_undone(self._settings, ids, yes=self._yes or self._dry_run)

    def act(self, word: str, ids: Sequence[str], verb: Callable[[str], Verb[Any]]) -> None:
        """Do the verb that `verb` makes of an id to each run; exits 1 if one is refused.

        With `--dry-run` it lists the runs to which it would be done.
        """
        if not ids:
            return
        act = _only_list if self._dry_run else _act
        refused = run_async(
            act(self._settings, word, ids, verb, as_json=self._as_json), prints=True
        )
        if refused:
            raise SystemExit(1)


async def _full_ids(settings: Settings, run_ids: Sequence[str]) -> list[str]:
    """Complete shortened run ids; an id that is not found stays as it is."""
    from .session import open_journal_reader

    async with open_journal_reader(settings) as reader:
        found = [await reader.run(run_id) for run_id in run_ids]
    return [run_id if run is None else run.id for run_id, run in zip(run_ids, found, strict=True)]


async def _matching(
    settings: Settings, which: Filter, states: frozenset[RunState] | None
) -> list[Run]:
    from dataclasses import replace

    from turnout.service.operate.filters import all_runs

    from .session import open_journal_reader

    selected = [which.state] if states is None or which.state else sorted(states)
    async with open_journal_reader(settings) as reader:
        return [
            run for state in selected async for run in all_runs(reader, replace(which, state=state))
        ]


def accept_not_undone(settings: Settings, run_ids: Sequence[str], *, yes: bool) -> bool:
    """Ask before runs are replayed that are not undone; returns whether there are any."""
    names = ", ".join(run_async(_not_undone(settings, run_ids))) if run_ids else ""
    if names:
        ask(
            f"These runs are not undone, and a replay repeats their effects with new idempotency "
            f"keys: {names}. `turnout retry` finishes their undo. Replay anyway?",
            yes=yes,
        )
    return bool(names)


async def _not_undone(settings: Settings, run_ids: Sequence[str]) -> list[str]:
    """Return the ids of the runs whose effects are not undone."""
    from turnout.service.operate.replays import is_not_undone

    from .session import open_journal_reader

    async with open_journal_reader(settings) as reader:
        runs = [await reader.run(run_id) for run_id in run_ids]
    return [run.id for run in runs if run is not None and is_not_undone(run)]


async def _act(
    settings: Settings, word: str, ids: Sequence[str], verb: Callable[[str], Verb[Any]],
    *, as_json: bool,
) -> int:  # fmt: skip
    """Do the verb to one run after the other; returns how many are refused."""
    from .session import open_session

    refused = 0
    async with open_session(settings) as session:
        with progress(ids, word) as turns:
            for run_id in turns:
                try:
                    done = await session.do(verb(run_id))
                except (NotFound, Refused) as error:
                    complain(told(error))
                    refused += 1
                    continue
                _report(word, run_id, done, as_json=as_json, terse=len(ids) > 1)
    if len(ids) > 1:
        complain(f"{word}: {len(ids) - refused} done, {refused} refused")
    return refused


async def _only_list(
    settings: Settings, word: str, ids: Sequence[str], verb: Callable[[str], Verb[Any]],
    *, as_json: bool,
) -> int:  # fmt: skip
    """List the runs to which the verb would be done; returns how many would be refused."""
    from .session import open_session

    refused = 0
    async with open_session(settings) as session:
        with progress(ids, word) as turns:
            for run_id in turns:
                try:
                    await session.plan(verb(run_id))
                except (NotFound, Refused) as error:
                    complain(told(error))
                    refused += 1
                    continue
                print_json({"run": run_id, "would": word}) if as_json else say(run_id)
    if not as_json:
        count = len(ids) - refused
        complain(f"would {word} {count} run{'s' * (count != 1)}; nothing was changed")
    return refused


def _report(word: str, run_id: str, done: dict[str, Any], *, as_json: bool, terse: bool) -> None:
    """Print the run that a verb answers with, or the new runs of a replay."""
    if "runs" in done:
        if as_json:
            print_json({"run": run_id, "runs": done["runs"]})
        else:
            say(f"run {run_id} replayed as {', '.join(done['runs'])}")
    elif as_json:
        print_json(done)
    elif not terse and word == "drop":
        say(f"run {done['id']} of {done['flow']} is no dead letter any more")
    elif not terse:
        say(f"run {done['id']} of {done['flow']} is now {_state_of(done)}")


def _state_of(run: dict[str, Any]) -> str:
    return f"{run['state']}, undo running" if run["undo"] == "running" else str(run["state"])
