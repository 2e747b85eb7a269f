"""Rate limits on the way in: the log of accepted runs, and what it answers for one more.

Both write and read inside the transaction that stores the run, so that runs of one batch count for
each other. Not here: the order of the conditions (`conditions`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apsw
import orjson

from turnout.service.domain.conditions import RateLimitRule
from turnout.service.domain.decisions import Reason
from turnout.service.domain.units import MICROSECOND, format_duration
from turnout.service.journal.records import Decision, NewRun

from .statements import load
from .values import instant

_SQL = load("rates")


def refusal(
    connection: apsw.Connection, run: NewRun, rules: Sequence[RateLimitRule], at: int
) -> Decision | None:
    """Return why the first of these rules refuses a run now, None if all accept it; no effect."""
    for rule, key in _asked(run, rules):
        earlier = connection.execute(
            _SQL["nth_latest"], (run.flow, rule.rule_id, key, rule.count - 1)
        ).get
        # One further away than the period, before or after, is of a clock that was wrong.
        if earlier is not None and abs(at - earlier) < rule.period // MICROSECOND:
            return _decision(run, rule, key, earlier)
    return None


def accept(
    connection: apsw.Connection, run: NewRun, rules: Sequence[RateLimitRule], at: int
) -> None:
    """Count a run as accepted."""
    for rule, key in _asked(run, rules):
        until = at + rule.period // MICROSECOND
        connection.execute(_SQL["accept"], (run.flow, rule.rule_id, key, at, until))


def forget(connection: apsw.Connection, withdrawn: Iterable[tuple[str, str | None, int]]) -> None:
    """Count runs no more that have never been: their flow, their keys as stored, and when accepted.

    The numbers of a log stay without gaps: what was accepted later moves up.
    """
    gone: dict[tuple[str, str, str], Counter[int]] = defaultdict(Counter)
    logs: dict[str, Sequence[str]] = {}
    for flow, keys, at in withdrawn:
        if flow not in logs:
            logs[flow] = [rule_id for (rule_id,) in connection.execute(_SQL["logs"], (flow,))]
        own = {} if keys is None or not logs[flow] else orjson.loads(keys)
        for rule_id in logs[flow]:
            key = own.get(rule_id, "")  # a rule without keys counts under the empty one
            if key is not None:
                gone[flow, rule_id, key][at] += 1
    for log, instants in gone.items():
        _close_up(connection, log, instants)


def _close_up(connection: apsw.Connection, log: tuple[str, str, str], gone: Counter[int]) -> None:
    """Delete so many rows of each instant from a log, and number what is after them anew."""
    passed: list[tuple[int, int]] = []
    newer = 0  # how many of these come after the first that is deleted
    first, left = None, gone.total()
    rows: list[Any] = connection.execute(_SQL["newest_first"], log).fetchall()
    for n, at, until in rows:
        if not left:
            break
        if gone[at]:
            gone[at] -= 1
            left -= 1
            first, newer = n, len(passed)
        else:
            passed.append((at, until))
    if first is not None:
        connection.execute(_SQL["delete_from"], (*log, first))
        for at, until in reversed(passed[:newer]):
            connection.execute(_SQL["accept"], (*log, at, until))


def _asked(run: NewRun, rules: Sequence[RateLimitRule]) -> Iterator[tuple[RateLimitRule, str]]:
    """Yield the rules that count a run, with the key under which they do."""
    for rule in rules:
        key = (run.keys or {}).get(rule.rule_id) if rule.has_keys else ""
        if key is not None:
            yield rule, key


def _decision(run: NewRun, rule: RateLimitRule, key: str, earlier: int) -> Decision:
    next_free = instant(earlier) + rule.period
    whose = f" of the key {key!r}" if rule.has_keys else ""
    return Decision(
        run.flow,
        Reason.RATE_LIMIT,
        f"{rule.count} runs{whose} were accepted within {format_duration(rule.period)} "
        f"({rule.words}); the next is accepted from {next_free.isoformat()} on",
        {
            "run": run.id,
            "rule": rule.words,
            "key": key if rule.has_keys else None,
            "count": rule.count,
            "limit": rule.count,
            "period": rule.period.total_seconds(),
            "next_free": next_free,
        },
    )
