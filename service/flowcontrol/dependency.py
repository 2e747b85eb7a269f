"""Dependencies: `needs=dependency("crm")`, and the breaker that leaves alone one that is down.

A breaker is closed, open or probing, and each change of that begins a new generation. Closed: runs
that need the dependency start, and the outcomes of the last attempts are counted. Open: they wait,
and spend no attempts. Probing: one goes alone; its success closes the breaker, its failure opens it
again and spends no attempt either. A probe that ends without saying which, or is silent for too
long, is followed by another.

Only attempts that started in the present generation count, so none that began before an outage
closes or opens it. A start whose run is taken back leaves the gate like one that says nothing.
"""

from __future__ import annotations

import re
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from turnout.service.domain.breaker import BreakerState, StoredBreaker
from turnout.service.domain.decisions import Fact
from turnout.service.domain.error_groups import is_final, leaves, problems
from turnout.service.domain.errors import SetupError
from turnout.service.domain.flow import Need
from turnout.service.domain.retry import ErrorTypes
from turnout.service.domain.run import Outcome, RunState
from turnout.service.domain.units import format_duration, parse_duration
from turnout.service.domain.waiting import Cause
from turnout.service.project import AnyFlow

from .gate import Answer, Candidate, Gate

LONGEST_PAUSE = timedelta(hours=1)
"""The longest time for which a run opens a breaker by `Retry(pause=…)`."""

RELEASE_INTERVAL = timedelta(seconds=0.1)
"""How far apart runs start that waited for a dependency: 10 in a second."""

FREE_PROBES = timedelta(days=1)
"""For how long a failed probe spends no attempt: a run that always fails must end some day."""

MOST_OUTCOMES = 1000
_OPEN_AFTER = re.compile(r"\s*(\d{1,3})\s*%\s*of\s*(\d{1,4})\s*", re.ASCII)


# ---------------------------------------------------------------- what a flow declares


@dataclass(frozen=True, slots=True)
class Dependency:
    """What a flow needs: its breaker opens once `share` percent of the last `of` attempts failed.

    An open one tries a run again after `probe`. `errors` are the types that count as failures of
    it; empty: all but those that say nothing about it.
    """

    name: str
    share: int
    of: int
    probe: timedelta
    errors: tuple[type[BaseException], ...] = ()

    def __str__(self) -> str:
        """Return the declaration as an author writes it."""
        options = f'open_after="{self.share}% of {self.of}", probe="{format_duration(self.probe)}"'
        if self.errors:
            names = ", ".join(each.__name__ for each in self.errors)
            options += f", errors=({names}{',' if len(self.errors) == 1 else ''})"
        return f'dependency("{self.name}", {options})'

    @property
    def failures(self) -> int:
        """How many of the last `of` attempts must have failed."""
        return -(-self.share * self.of // 100)

    def is_failed_by(self, error: BaseException) -> bool:
        """Whether an error that ends an attempt counts as a failure of the dependency."""
        if self.errors:
            return isinstance(error, self.errors) or any(
                isinstance(each, self.errors) for each in leaves(error)
            )
        if is_final(error):
            return False
        return any(not isinstance(each, CancelledError) for each in problems(error))


def dependency(
    name: str,
    *,
    open_after: str = "50% of 20",
    probe: str | timedelta = "30s",
    errors: ErrorTypes = (),
) -> Dependency:
    """Declare what a flow needs: `needs=dependency("crm", open_after="50% of 20", probe="30s")`.

    Once half of the last 20 attempts have failed, the flows that need it start nothing. After
    `probe` one run goes alone: its success lets the others go on, 10 in a second, its failure makes
    them wait again, and without a verdict within `probe` another one goes. While they wait, runs
    spend no attempts.

    A failure is an attempt that an error ends, but no `Skip`, `Fail`, `Retry`, cancel, nor an error
    of the flow's own code that turnout names (such as invalid data). Flows that give the same name
    share a breaker, and must say the same of it. `turnout limits` shows it.

    * `name`: what is needed, 1 to 200 characters
    * `open_after`: the share of the last attempts, at most 1000, that must have failed
    * `probe`: how long to wait before one run tries it again
    * `errors`: a type of error, or a tuple of types: an attempt that ends by such an error (or a
      group with one) is a failure, and no other counts at all

    Raises `SetupError` for what cannot be read.

    ```python
    from turnout import dependency, event, flow, task

    crm = dependency("crm", open_after="50% of 20", probe="30s", errors=(OSError, TimeoutError))


    @task(timeout="10s")
    async def store(customer: str) -> str:
        return f"stored {customer}"


    @flow(on=event("customer.changed"), needs=crm, retry=3)
    async def sync(customer: dict[str, str]) -> str:
        return await store(customer["id"])
    ```
    """
    said, given = f"dependency({name!r})", str(open_after)
    if not (name and str(name) == name and name.isprintable() and len(name) <= 200):
        raise SetupError(f"{said}: a name is 1 to 200 printable characters")
    found = _OPEN_AFTER.fullmatch(given)
    share, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (1 <= share <= 100 and 1 <= of <= MOST_OUTCOMES):
        raise SetupError(
            f"{said}: open_after={open_after!r} is no share of the last attempts; write "
            f'open_after="50% of 20", of at most {MOST_OUTCOMES}'
        )
    length = parse_duration(probe)
    if not length:
        raise SetupError(f'{said}: probe={probe!r} leaves it no time; write probe="30s"')
    return Dependency(name, share, of, length, _types(errors, said))


def _types(errors: object, said: str) -> tuple[type[BaseException], ...]:
    listed = errors if isinstance(errors, tuple) else (errors,)
    if not all(isinstance(each, type) and issubclass(each, BaseException) for each in listed):
        raise SetupError(
            f"{said}: errors={errors!r}: write types of errors, errors=(OSError, TimeoutError)"
        )
    return listed


# ---------------------------------------------------------------- the gate


class Breaker(Gate):
    """The breaker of one dependency, a gate that the runs of all flows that need it share.

    `changed` is called with what the journal keeps, before what follows from it: an outcome, a
    claim. `freed` is called when a run that was refused may start sooner than it was told.
    """

    name = "dependency"
    shared = True
    cause = Cause.BREAKER

    def __init__(
        self,
        declared: Dependency,
        stored: StoredBreaker,
        *,
        changed: Callable[[StoredBreaker], None],
        freed: Callable[[str], None],
    ) -> None:
        self.declared = declared
        self.stored = stored
        self._changed = changed
        self._freed = freed
        self._failed: deque[bool] = deque(maxlen=declared.of)
        self._inside: dict[int, int] = {}  # the generation each attempt started in, by token
        self._probe = 0  # the token of the run that goes alone
        self._probes: set[int] = set()  # and those of earlier ones that are not over
        self._probe_until: datetime | None = None
        # When the next run starts of those that waited until it closed.
        self._next_start = stored.changed_at if stored.generation else None

    @property
    def dependency(self) -> str:
        """The name of the dependency."""
        return self.declared.name

    def facts(self, run: Candidate) -> Mapping[str, Fact]:
        """Return the state of the breaker, and until when it is open."""
        return {"rule": self.dependency, "state": self.stored.state, "until": self.stored.until}

    def redeclare(self, declared: Dependency) -> None:
        """Go on with the settings of a reload; what was counted counts on."""
        if declared != self.declared:
            self._failed = deque(self._failed, maxlen=declared.of)
            self.declared = declared

    # ------------------------------------------------------------ starts

    def check(self, run: Candidate, now: datetime) -> Answer:
        """Let a run pass if the breaker is closed, or as the one that goes alone."""
        stored = self.stored
        if stored.state is BreakerState.CLOSED:
            return self._release_at(run, now)
        at = stored.until if stored.state is BreakerState.OPEN else self._probe_until
        return None if at is None or now >= at else at

    def _release_at(self, run: Candidate, now: datetime) -> Answer:
        at = self._next_start
        return None if at is None or now >= at or not self._has_waited(run) else at

    def _has_waited(self, run: Candidate) -> bool:
        """Whether a run could have started before the breaker closed."""
        since = run.queued_at if run.due_at is None else run.due_at
        return since is not None and since < self.stored.changed_at

    def enter(self, run: Candidate, now: datetime) -> None:
        """Note a run that starts; in an open breaker whose time has come it goes alone.

        A run that was running before a reload declared the dependency, and would not be let
        pass now, says nothing about it.
        """
        if run.token in self._inside:
            return
        if self.check(run, now) is not None:
            self._inside[run.token] = -1
            return
        if self.stored.state is BreakerState.CLOSED:
            if self._next_start is not None and self._has_waited(run):
                self._next_start = now + RELEASE_INTERVAL
        else:
            if self.stored.state is BreakerState.OPEN:
                self._change(BreakerState.PROBING, now)
            self._probe, self._probe_until = run.token, now + self.declared.probe
            self._probes.add(run.token)
        self._inside[run.token] = self.stored.generation

    def leave(self, run: Candidate) -> None:
        """Note that a run no longer runs; if it went alone and said nothing, another one goes."""
        self._inside.pop(run.token, None)
        self._probes.discard(run.token)
        if self._probe == run.token:
            self._probe, self._probe_until = 0, None
            self._freed(self.dependency)

    def is_probed_by(self, run: Candidate, now: datetime) -> bool:
        """Whether a run went alone, and spends nothing if it fails: for a day."""
        since = self.stored.down_since  # None: another probe has closed it meanwhile
        return run.token in self._probes and (since is None or now - since < FREE_PROBES)

    # ------------------------------------------------------------ verdicts

    def succeeded(self, run: Candidate, now: datetime) -> None:
        """Count an attempt that succeeded."""
        if self._inside.get(run.token) == self.stored.generation:
            self._count(now, failed=False, why="")

    def failed(self, run: Candidate, now: datetime, why: str) -> None:
        """Count an attempt that failed by an error of the dependency, described by `why`."""
        if self._inside.get(run.token) == self.stored.generation:
            self._count(now, failed=True, why=why)

    def _count(self, now: datetime, *, failed: bool, why: str) -> None:
        if self.stored.state is BreakerState.PROBING:
            if failed:
                self._open(now + self.declared.probe, now, f"the probe failed: {why}")
            else:
                self._next_start = now
                self._change(BreakerState.CLOSED, now)
                self._freed(self.dependency)
            return
        self._failed.append(failed)
        count = sum(self._failed)
        if failed and count >= self.declared.failures:
            words = f"{count} of the last {len(self._failed)} attempts failed, the last one: {why}"
            self._open(now + self.declared.probe, now, words)

    def pause(self, until: datetime, now: datetime, why: str) -> None:
        """Open it until an instant, an hour from now at most; an open one never opens for less."""
        until = min(until, now + LONGEST_PAUSE)
        if self.stored.state is not BreakerState.OPEN:
            self._open(until, now, why)
        elif self.stored.until is None or self.stored.until < until:
            self.stored = replace(self.stored, until=until, reason=why)
            self._changed(self.stored)

    def _open(self, until: datetime, now: datetime, why: str) -> None:
        self._change(BreakerState.OPEN, now, until=until, reason=why)

    def _change(
        self, state: BreakerState, now: datetime, *, until: datetime | None = None, reason: str = ""
    ) -> None:
        """Begin a generation: what was counted before is over."""
        before = self.stored
        self.stored = StoredBreaker(
            name=before.name,
            state=state,
            generation=before.generation + 1,
            changed_at=now,
            until=until,
            down_since=None if state is BreakerState.CLOSED else before.down_since or now,
            reason=reason or (before.reason if state is BreakerState.PROBING else ""),
        )
        self._failed.clear()
        self._probe, self._probe_until = 0, None
        self._changed(self.stored)

    def status(self, flows: Sequence[str]) -> BreakerStatus:
        """Return what there is to see of it."""
        return BreakerStatus(
            self.stored, self.declared, sum(self._failed), len(self._failed), tuple(flows)
        )


class BreakerStatus(NamedTuple):
    """A breaker as it is seen: what the journal keeps, what is declared, and by which flows.

    `failed` of the last `counted` attempts failed, in the present generation.
    """

    stored: StoredBreaker
    declared: Dependency
    failed: int
    counted: int
    flows: tuple[str, ...]


# ---------------------------------------------------------------- all of them


class Breakers:
    """The breakers of all dependencies, by name; `changed` and `freed` are those of each."""

    def __init__(self) -> None:
        self.changed: Callable[[StoredBreaker], None] = _nobody_listens
        self.freed: Callable[[str], None] = _nobody_listens
        self._stored: dict[str, StoredBreaker] = {}
        self._breakers: dict[str, Breaker] = {}
        self._flows: dict[str, list[str]] = {}

    def restore(self, stored: Iterable[StoredBreaker], now: datetime) -> None:
        """Go on from what the journal keeps.

        A clock that has been set back since must not keep a breaker open for longer than it was to
        be, nor hold back the runs that come now.
        """
        for each in stored:
            ahead = max(each.changed_at - now, timedelta(0))
            self._stored[each.name] = replace(
                each,
                changed_at=each.changed_at - ahead,
                until=each.until and each.until - ahead,
                down_since=each.down_since and each.down_since - ahead,
            )

    def serve(self, flows: Iterable[AnyFlow], now: datetime) -> None:
        """Use the dependencies that these flows declare; breakers of others keep their state."""
        self._flows = {}
        for flow in flows:
            for need in flow.needs:
                if isinstance(need, Dependency):
                    self._flows.setdefault(need.name, []).append(flow.name)
                    self._breaker(need, now).redeclare(need)

    def _breaker(self, declared: Dependency, now: datetime) -> Breaker:
        known = self._breakers.get(declared.name)
        if known is None:
            stored = self._stored.get(declared.name) or StoredBreaker(
                name=declared.name, state=BreakerState.CLOSED, generation=0, changed_at=now
            )
            known = self._breakers[declared.name] = Breaker(
                declared,
                stored,
                changed=lambda stored: self.changed(stored),
                freed=lambda name: self.freed(name),
            )
        return known

    def of(self, flow: AnyFlow, now: datetime) -> tuple[Breaker, ...]:
        """Return the breakers of what a flow needs."""
        return tuple(
            self._breaker(need, now) for need in flow.needs if isinstance(need, Dependency)
        )

    def probed_by(self, run: Candidate, needs: Iterable[Need], now: datetime) -> Collection[str]:
        """Return the dependencies for which a run goes alone, at no cost of its own."""
        return [
            need.name
            for need in needs
            if (breaker := self._breakers.get(need.name)) is not None
            and breaker.is_probed_by(run, now)
        ]

    def ended(self, run: Candidate, needs: Iterable[Need], outcome: Outcome, now: datetime) -> None:
        """Tell the breakers what the outcome of an attempt says, before the run leaves them."""
        for need in needs:
            breaker = self._breakers.get(need.name)
            if breaker is None:
                continue
            error = outcome.error
            why = "" if error is None else f"{error.type}: {error.message}"
            if outcome.pause is not None and outcome.pause.dependency == need.name:
                breaker.pause(outcome.pause.until, now, f"run {run.id} of {run.flow} asked: {why}")
            elif outcome.state is RunState.SUCCEEDED:
                breaker.succeeded(run, now)
            elif need.name in outcome.failed_dependencies:
                breaker.failed(run, now, why)

    def statuses(self) -> list[BreakerStatus]:
        """Return what there is to see of the breakers in use, by name."""
        return [self._breakers[name].status(flows) for name, flows in sorted(self._flows.items())]


def _nobody_listens(_about: object) -> None:
    pass
