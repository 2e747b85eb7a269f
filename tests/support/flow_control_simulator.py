"""What flow control promises beside limits and order: each rule asked anew over all that happened.

A rule knows the other runs of its key, and nothing else: not what is in memory, nor who was asked.
On the way in it says whether a new run is refused, and which others it ends; later, whether a run
still has to wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import ClassVar, Literal

from tests.support.dispatch_simulator import (
    ENDED,
    DispatchSimulator,
    S,
    SimulatedFlow,
    SimulatedRun,
)
from turnout.service.flowcontrol.priority import HIGH, LOW, NAMES, NORMAL

Others = Sequence["ControlledRun"]


def _by_seq(run: SimulatedRun) -> int:
    return run.seq


@dataclass(eq=False)
class ControlledRun(SimulatedRun):
    """A run, and when it has started: all but its returns from a wait.

    `accepted`: it came in as an event, and was not refused; one that is `replayed` did not, but
    it may have `got_key`, that of work which is asked for once.
    `begun`: it has been claimed since it was queued as new, by an operator's retry too, at
    `asked_at`. `outdated`: a rule has ended it before it started. `level` is its class.
    """

    starts: list[datetime] = field(default_factory=list)
    accepted: bool = True
    replayed: bool = False
    got_key: bool = False
    outdated: bool = False
    asked_at: datetime | None = None
    begun: bool = False
    level: int = NORMAL

    @property
    def is_unfinished(self) -> bool:
        return self.state not in ENDED

    @property
    def is_under_way(self) -> bool:
        return self.is_unfinished and self.begun

    @property
    def is_inside(self) -> bool:
        """Whether its work may be half done: it runs, or goes on later."""
        return self.slots > 0 or self.state in (S.RETRYING, S.WAITING)


@dataclass(eq=False)
class Rule:
    """A rule of a flow, or of several; `per` is the part of the event that is its key."""

    name: ClassVar[str]

    per: str

    def key(self, run: SimulatedRun) -> str | None:
        return run.data[self.per] if self.per else ""

    def refuses(self, run: ControlledRun, others: Others, now: datetime) -> bool:
        """Whether a new run is refused."""
        return False

    def cancels(self, run: ControlledRun, others: Others) -> list[ControlledRun]:
        """Return the runs that a new run cancels."""
        return []

    def skips(self, run: ControlledRun, others: Others) -> list[ControlledRun]:
        """Return the waiting runs whose place a new run takes."""
        return []

    def delays(self, run: ControlledRun, others: Others, now: datetime) -> bool:
        """Whether a run has to wait."""
        return False

    def started(self, run: ControlledRun, at: datetime) -> None:
        """Learn that a run has started."""

    def ended_process(self) -> None:
        """Learn that the process is gone."""


@dataclass(eq=False)
class Throttled(Rule):
    """Never more than `count` starts in any period; a run that comes back from a wait is free."""

    name = "throttle"

    count: int
    period: timedelta
    shared: str = ""

    def delays(self, run: ControlledRun, others: Others, now: datetime) -> bool:
        starts = [at for each in (run, *others) for at in each.starts if at > now - self.period]
        return run.state is not S.WAITING and len(starts) >= self.count


@dataclass(eq=False)
class RateLimited(Rule):
    """Never more than `count` runs accepted in any period; replays do not count."""

    name = "rate_limit"

    count: int
    period: timedelta

    def refuses(self, run: ControlledRun, others: Others, now: datetime) -> bool:
        recent = [each for each in others if each.accepted_at > now - self.period]
        return run.accepted and sum(each.accepted for each in recent) >= self.count


@dataclass(eq=False)
class Unique(Rule):
    """One run until it has ended; or for so long, unless it fails, is cancelled or outdated.

    For so long, the key is that of the run that got it last: the ones before have given it up. A
    replay is not asked; until it has ended, its work is under way like any other. For so long it
    gets the key that nobody has.
    """

    name = "unique"

    until: timedelta | None

    def refuses(self, run: ControlledRun, others: Others, now: datetime) -> bool:
        if run.replayed:
            return False
        if self.until is None:
            return any(each.is_unfinished for each in others)
        return self.is_held(others, now)

    def is_held(self, others: Others, now: datetime) -> bool:
        """Whether another run has the key for so long."""
        got_it = (each for each in others if each.accepted or each.got_key)
        last = max(got_it, key=_by_seq, default=None)
        if (
            self.until is None
            or last is None
            or last.state in (S.FAILED, S.CANCELLED)
            or last.outdated
        ):
            return False
        return last.accepted_at + self.until > now


@dataclass(eq=False)
class Mode(Rule):
    """What happens to a new run while another one of its key is under way: no two are inside."""

    name = "mode"

    mode: Literal["skip", "replace", "latest"]

    def refuses(self, run: ControlledRun, others: Others, now: datetime) -> bool:
        return self.mode == "skip" and any(each.is_under_way for each in others)

    def cancels(self, run: ControlledRun, others: Others) -> list[ControlledRun]:
        return [each for each in others if each.is_unfinished] if self.mode == "replace" else []

    def skips(self, run: ControlledRun, others: Others) -> list[ControlledRun]:
        waiting = [each for each in others if each.state is S.QUEUED and not each.begun]
        return waiting if self.mode == "latest" else []

    def delays(self, run: ControlledRun, others: Others, now: datetime) -> bool:
        return any(each.is_inside for each in others)


@dataclass(eq=False)
class Classed(Rule):
    """A run has a class: that of the oldest unfinished run of its ordering key, else its own."""

    name = "priority"

    def own(self, run: SimulatedRun) -> int:
        return NAMES[str(run.data[self.per])]


@dataclass(eq=False)
class StartsInTime(Rule):
    """A run that was never claimed and has waited for longer does not start any more.

    It has waited since it came, or since an operator has queued it again.
    """

    name = "start_timeout"

    limit: timedelta

    def delays(self, run: ControlledRun, others: Others, now: datetime) -> bool:
        return run.claim == 0 and now - (run.asked_at or run.accepted_at) > self.limit


@dataclass(eq=False)
class CancelledBy(Rule):
    """An event cancels the unfinished runs with its key that came before it."""

    name = "cancel_on"


@dataclass(eq=False)
class Bounded(Rule):
    """A delivery is refused as a whole if it finds so many runs queued, unless the flow is paused.

    Runs that were queued again since may have made the queue longer, and are not counted here.
    """

    name = "max_queued"

    count: int

    def is_full(self, others: Others) -> bool:
        return sum(each.state is S.QUEUED for each in others) >= self.count

    def is_overfull(self, others: Others) -> bool:
        first_time = [each for each in others if each.state is S.QUEUED and each.is_first_time]
        return len(first_time) >= self.count


@dataclass(frozen=True)
class Verdict:
    """What becomes of a new run on the way in, and of older ones by it."""

    refused: str | None = None
    cancelled: frozenset[str] = frozenset()
    skipped: frozenset[str] = frozenset()


ORDER = (Unique, Mode, RateLimited)
"""In this order a new run is asked."""

MOST_PASSED = {HIGH: 3, NORMAL: 10, LOW: 20}
"""How many runs of other classes may start while one of a class could: shares are 8 : 2 : 1."""


def level(run: SimulatedRun) -> int:
    """Return the class of a run."""
    return run.level if isinstance(run, ControlledRun) else NORMAL


class FlowControlSimulator(DispatchSimulator):
    """The simulator of dispatch, with the rules of each flow."""

    def __init__(
        self,
        slots: int,
        flows: list[SimulatedFlow],
        now: Callable[[], datetime],
        rules: list[list[Rule]],
    ) -> None:
        super().__init__(slots, flows, now)
        self.rules = rules
        self.decided_at: datetime | None = None
        self.passed = dict.fromkeys(MOST_PASSED, 0)

    def others(self, rule: Rule, run: SimulatedRun) -> Iterator[ControlledRun]:
        """Yield the other runs that a rule sees together with one."""
        for other in self.runs.values():
            is_same = rule in self.rules[other.flow.number] and rule.key(other) == rule.key(run)
            if is_same and other is not run and isinstance(other, ControlledRun):
                yield other

    def verdict(
        self, run: ControlledRun, now: datetime, *, asked: tuple[type[Rule], ...] = ORDER
    ) -> Verdict:
        """Return what becomes of a new run: the first rule that refuses it decides."""
        rules = sorted(
            (rule for rule in self.rules[run.flow.number] if isinstance(rule, asked)),
            key=lambda rule: ORDER.index(type(rule)),
        )
        seen = [(rule, list(self.others(rule, run))) for rule in rules if rule.key(run) is not None]
        for rule, others in seen:
            if rule.refuses(run, others, now):
                reason = "skip" if isinstance(rule, Mode) else rule.name
                return Verdict(refused=reason)
        return Verdict(
            cancelled=frozenset(
                each.id for rule, others in seen for each in rule.cancels(run, others)
            ),
            skipped=frozenset(each.id for rule, others in seen for each in rule.skips(run, others)),
        )

    def gets_key(self, run: ControlledRun, now: datetime) -> bool:
        """Whether a replay gets the key of work that is asked for once in a while."""
        return any(
            rule.until is not None
            and rule.key(run) is not None
            and not rule.is_held(list(self.others(rule, run)), now)
            for rule in self.rules[run.flow.number]
            if isinstance(rule, Unique)
        )

    def why_not(self, run: SimulatedRun) -> set[str]:
        why = super().why_not(run)
        if run.state is S.RUNNING or run.state in ENDED or not isinstance(run, ControlledRun):
            return why
        now = self.decided_at or self.now()
        for rule in self.rules[run.flow.number]:
            if rule.key(run) is not None and rule.delays(run, list(self.others(rule, run)), now):
                why.add(rule.name)
        return why

    def goes_before(self, other: SimulatedRun, run: SimulatedRun) -> bool:
        keeps = other.holds or other.leftovers > 0
        return super().goes_before(other, run) and (keeps or not self._is_late(other))

    def _is_late(self, run: SimulatedRun) -> bool:
        now = self.decided_at or self.now()
        return isinstance(run, ControlledRun) and any(
            rule.delays(run, (), now)
            for rule in self.rules[run.flow.number]
            if isinstance(rule, StartsInTime)
        )

    def is_same_line(self, run: SimulatedRun, other: SimulatedRun) -> bool:
        is_same = super().is_same_line(run, other) and level(run) == level(other)
        return is_same and not self._takes_turns(other)

    def _takes_turns(self, run: SimulatedRun) -> bool:
        """Whether a run takes turns inside a key of a throttle, with a run of the other kind.

        New runs and retries do so in the key as in the whole flow, and the key's turn comes first.
        """
        keyed = [each for each in self.rules[run.flow.number] if isinstance(each, Throttled)]
        return any(
            other.flow is run.flow
            and other.is_retry != run.is_retry
            and other.state in (S.QUEUED, S.RETRYING)
            and rule.key(other) == rule.key(run) is not None
            for rule in keyed
            if rule.per
            for other in self.live
        )

    def _check_start(self, run: SimulatedRun, together: list[str]) -> None:
        super()._check_start(run, together)
        self._count_classes(run)
        if isinstance(run, ControlledRun):
            run.begun = True
            at = self.decided_at or self.now()
            if run.state is not S.WAITING:
                run.starts.append(at)
            for rule in self.rules[run.flow.number]:
                rule.started(run, at)

    def _count_classes(self, run: SimulatedRun) -> None:
        """Count how often a class that could start something has seen others go first."""
        ready = {level(other) for other in self.live if self._lacks_a_slot(other)}
        for each, most in MOST_PASSED.items():
            is_passed = each in ready and each != level(run)
            self.passed[each] = self.passed[each] + 1 if is_passed else 0
            if self.passed[each] > most:
                self._fault(run, f"takes the turn of class {each}")

    def ended_process(self) -> None:
        super().ended_process()
        self.passed = dict.fromkeys(MOST_PASSED, 0)
        for rule in {rule for rules in self.rules for rule in rules}:
            rule.ended_process()

    def missed(self) -> list[SimulatedRun]:
        late = [run for run in self.live if self.why_not(run) == {"start_timeout"}]
        missed = super().missed() + [run for run in late if self._should_start(run)]
        return [run for run in missed if not self._waits_with_others(run)]

    def _may_lack_a_kept_slot(self, run: SimulatedRun) -> bool:
        """Whether another run may keep a slot that a run wants, or the key of a mode."""
        return super()._may_lack_a_kept_slot(run) or any(
            other.state is S.QUEUED and self._is_isolated(other)
            for rule in self.rules[run.flow.number]
            if isinstance(rule, Mode) and rule.key(run) is not None
            for other in self.others(rule, run)
        )

    def _lacks_a_slot(self, run: SimulatedRun) -> bool:
        return super()._lacks_a_slot(run) and not self._waits_with_others(run)

    def _waits_with_others(self, run: SimulatedRun) -> bool:
        """Whether the runs of its flow and class wait for what they need, and it waits with them.

        It came when that was up again, and they are let go one after the other.
        """
        if all(rule.name != "needs" for rule in self.rules[run.flow.number]):
            return False
        rivals = [other for other in self.live if other.flow is run.flow]
        return any(level(o) == level(run) and "needs" in self.why_not(o) for o in rivals)

    def ended_late(self, id_: str, now: datetime) -> None:
        """Learn that a run was not to start any more."""
        self.decided_at = now
        if not self._is_late(self.runs[id_]):
            self._fault(self.runs[id_], "ends as late, which it is not")
        self.skipped(id_)

    def skipped(self, id_: str) -> None:
        """Learn that a run that waited has ended as skipped."""
        self.cancelled(id_)
        run = self.runs[id_]
        assert isinstance(run, ControlledRun)
        run.state, run.outdated = S.SKIPPED, True

    def retried(self, id_: str, at: datetime) -> None:
        run = self.runs[id_]
        if isinstance(run, ControlledRun) and run.state in ENDED:
            run.begun = run.outdated = False
            run.asked_at = at
        super().retried(id_, at)
