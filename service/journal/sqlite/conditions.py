"""Decides the conditions of new runs, in the transaction that would store them.

In the order of arrival, each run is asked in this order: unique, mode, rate limits, the bound. All
is asked without effect; what a run that passes does to older ones happens then, together. What was
inserted before must be in the tables, so that a run sees those before it. Not here: what the
conditions mean (`domain.conditions`), and storing what is decided (`append`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import apsw

from turnout.service.domain.conditions import MODE_RULE, UNIQUE_RULE, Mode, Until
from turnout.service.domain.decisions import Fact, Reason
from turnout.service.domain.run import Keys, Run, RunState
from turnout.service.domain.units import MICROSECOND
from turnout.service.journal.records import Decision, NewRun

from . import rate_limits
from .bounds import Bounds
from .statements import load

_SQL = load("conditions")
_FIRST_UNFINISHED, _FIRST_WITHIN = _SQL["first_unfinished"], _SQL["first_within"]
_HOLD_UNIQUE, _OF_MODE, _WAITS_FOR = _SQL["hold_unique"], _SQL["of_mode"], _SQL["waits_for"]
_FORCE = _SQL["force"]


@dataclass(frozen=True, slots=True)
class OlderRun:
    """An unfinished run with the same key of its mode; `is_waiting`: for its first start."""

    seq: int
    id: str
    event_seq: int
    is_waiting: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a new run: it is `refused`, or it is stored and ends older ones.

    `replaces` are cancelled, `outdates` are skipped.
    """

    refused: Decision | None = None
    replaces: Sequence[OlderRun] = ()
    outdates: Sequence[OlderRun] = ()


class Newcomer(Protocol):
    """A run that is about to be queued: a new one, or one that an operator queues again."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def flow(self) -> str: ...  # noqa: D102
    @property
    def keys(self) -> Keys | None: ...  # noqa: D102


class Conditions:
    """Decides about new runs inside the transaction the writer opened."""

    def __init__(self, connection: apsw.Connection, bounds: Bounds) -> None:
        self._connection = connection
        self._bounds = bounds

    def decide(self, run: NewRun, at: int, *, caller: int | None) -> Verdict:
        """Decide about a run; `caller` is the seq of the run that awaits it.

        Raises `QueueFull`.
        """
        asked = run.conditions
        assert asked is not None
        refused = None
        if asked.unique is not None:
            refused = self._unique(run, asked.unique, at)
        verdict = Verdict(refused)
        if asked.mode is not None and refused is None:
            verdict = self._mode(run, asked.mode, caller)
        if asked.rate_limits and verdict.refused is None:
            over = rate_limits.refusal(self._connection, run, asked.rate_limits, at)
            verdict = verdict if over is None else Verdict(over)
        if verdict.refused is None and asked.max_queued is not None and _is_queued(run):
            ended = (*verdict.replaces, *verdict.outdates)
            freed = sum(each.is_waiting for each in ended)
            self._bounds.refuse_full(run.flow, asked.max_queued, at, freed=freed)
        return verdict

    def accepted(self, run: NewRun, at: int) -> None:
        """Note that a run is stored, its row included: later ones are asked about it."""
        asked = run.conditions
        assert asked is not None
        if isinstance(asked.unique, timedelta):
            self._hold_unique(run, asked.unique, at)
        elif asked.takes_key is not None and self._unique(run, asked.takes_key, at) is None:
            self._hold_unique(run, asked.takes_key, at)
        if asked.rate_limits:
            rate_limits.accept(self._connection, run, asked.rate_limits, at)
        if asked.forced:
            self._connection.execute(_FORCE, (run.seq,))

    # ---------------------------------------------------------------- unique

    def _unique(self, run: NewRun, until: Until, at: int) -> Decision | None:
        key = _key(run, UNIQUE_RULE)
        if key is None:
            return None
        if until == "done":
            row: Any = self._connection.execute(_FIRST_UNFINISHED, (run.flow, key)).fetchone()
        else:
            values = (run.flow, key, at, until // MICROSECOND)
            row = self._connection.execute(_FIRST_WITHIN, values).fetchone()
        if row is None:
            return None
        words = f"run {row[1]} was asked for the same first (unique={key!r})"
        return _decision(run, Reason.UNIQUE, words, key, "unique=", row[1])

    def _hold_unique(self, run: NewRun, lasts: timedelta, at: int) -> None:
        """Let a run have its unique key for so long."""
        key = _key(run, UNIQUE_RULE)
        if key is not None:
            values = (run.flow, key, run.seq, run.id, at, at + lasts // MICROSECOND)
            self._connection.execute(_HOLD_UNIQUE, values)

    # ---------------------------------------------------------------- mode

    def of_retry(self, run: Run, mode: Mode) -> Verdict:
        """Decide about an ended run that an operator queues again: the mode alone is asked."""
        return self._mode(run, mode, None)

    def _mode(self, run: Newcomer, mode: Mode, caller: int | None) -> Verdict:
        key = _key(run, MODE_RULE)
        if key is None:
            return Verdict()
        older = self.of_mode(run.flow, key)
        ancestor = next((each for each in older if self.awaits(each.id, caller)), None)
        if ancestor is not None:
            words = f"run {ancestor.id} has the key until this run has ended, since it awaits it"
            return Verdict(_decision(run, Reason.SKIP, words, key, f'mode="{mode}"', ancestor.id))
        if mode == "replace":
            return Verdict(replaces=older)
        if mode == "latest":
            return Verdict(outdates=[each for each in older if each.is_waiting])
        under_way = next((each for each in older if not each.is_waiting), None)
        if under_way is None:
            return Verdict()
        words = f"run {under_way.id} was under way"
        return Verdict(_decision(run, Reason.SKIP, words, key, 'mode="skip"', under_way.id))

    def of_mode(self, flow: str, key: str) -> list[OlderRun]:
        """Return the unfinished runs of a flow with this key of its mode, the oldest first."""
        rows: list[Any] = self._connection.execute(_OF_MODE, (flow, key)).fetchall()
        return [OlderRun(seq, run, event, bool(waits)) for seq, run, event, waits in rows]

    def awaits(self, run_id: str, caller: int | None) -> bool:
        """Whether a run is the caller of a new one, or awaits it: it cannot end before."""
        if caller is None:
            return False
        return self._connection.execute(_WAITS_FOR, (caller, run_id)).get is not None


def _decision(
    run: Newcomer, reason: Reason, words: str, key: str, rule: str, other: str
) -> Decision:
    facts: dict[str, Fact] = {"run": run.id, "other": other, "rule": rule, "key": key}
    return Decision(run.flow, reason, words, facts)


def _key(run: Newcomer, rule_id: str) -> str | None:
    return None if run.keys is None else run.keys.get(rule_id)


def _is_queued(run: NewRun) -> bool:
    return run.state is RunState.QUEUED
