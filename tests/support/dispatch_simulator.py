"""What dispatch promises, in plain Python: an oracle without queues, locks or a journal.

It is told what becomes durable, in that order, and when the code of an attempt begins and ends.
It says which start was wrong, and, when the service rests, which run should have started. It asks
every question of all runs anew: what is in use is counted from the states of the runs.

Not promised, so not checked: the place in order of a dead letter that an operator has retried while
its flow was being served again, or not any more, whose turn an isolated run takes, and whether it
has its slot at a limit that holds while it waits to run alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from turnout.service.domain.run import RunState

S = RunState
ENDED = {S.SUCCEEDED, S.FAILED, S.CANCELLED, S.SKIPPED}
DEATHS_UNTIL_ISOLATED = 2


@dataclass(eq=False)
class SimulatedLimit:
    """At most `count` slots; what a change under way replaces still counts until the next rest.

    `per` is the part of the event that is its key. `holds`: a run keeps its slot until it ends,
    also while it waits. A limit with a name is one object in the limits of several flows. An
    operator has `overridden` the count for a while.
    """

    count: int
    per: str = ""
    holds: bool = False
    name: str = ""
    count_at_rest: int = 0
    overridden: int | None = None

    @property
    def count_now(self) -> int:
        return self.count if self.overridden is None else self.overridden

    @property
    def allowed(self) -> int:
        return max(self.count_now, self.count_at_rest)

    @property
    def assured(self) -> int:
        """How many slots there are, whatever is known of a change under way."""
        return min(self.count_now, self.count_at_rest)


@dataclass(eq=False)
class SimulatedFlow:
    """The policy of a flow. What a change under way replaces still counts until the next rest."""

    number: int
    ordered: bool
    limits: list[SimulatedLimit]
    blocks: bool
    served: bool = True
    paused: bool = False
    passed: int = 0
    served_at_rest: bool = True


@dataclass(eq=False)
class SimulatedRun:
    """A run as the journal has it, and the attempts of it whose code runs (by claim).

    `data` is that of its event: its keys are parts of it.

    `holds`: it has begun and is not over, so its ordering key is its own. `arrival`: runs go in
    this order; one that an operator has queued again goes behind those that are there.
    `is_misplaced`: nobody can say where that is. `ready`: since the last rest it could have
    started, but for a slot. `is_chosen`: its claim is on its way to the disk. `isolated`: its
    claims that run alone.
    """

    id: str
    seq: int
    flow: SimulatedFlow
    data: Mapping[str, str | None]
    accepted_at: datetime
    state: RunState = S.QUEUED
    due_at: datetime | None = None
    claim: int = 0
    code: list[int] = field(default_factory=list)
    stranded: int = 0
    deaths: int = 0
    holds: bool = False
    dead: bool = False
    is_stopped: bool = False
    arrival: tuple[int, int] = (0, 0)
    is_misplaced: bool = False
    ready: bool = False
    is_chosen: bool = False
    passed: int = 0
    isolated: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.arrival = (self.seq, 0)

    @property
    def order_key(self) -> str | None:
        return self.data["order"]

    @property
    def is_first_time(self) -> bool:
        """Whether it was never claimed, nor queued again by an operator without having started."""
        return self.claim == 0 and self.arrival == (self.seq, 0)

    @property
    def leftovers(self) -> int:
        """Attempts that lost their claim and still work."""
        if not self.code:  # as with most: this is asked of each run at each step
            return 0
        return sum(claim != self.claim or self.state is not S.RUNNING for claim in self.code)

    @property
    def slots(self) -> int:
        """Slots in use: of the process, and of a limit that no waiting run holds."""
        return (self.state is S.RUNNING) + self.leftovers

    def slots_of(self, limit: SimulatedLimit) -> int:
        """Slots of a limit in use; a run that holds one until it ends holds one in all."""
        waits = self.state in (S.RETRYING, S.WAITING)
        return min(self.slots + waits, 1) if limit.holds else self.slots

    def key_of(self, limit: SimulatedLimit) -> str | None:
        return self.data[limit.per] if limit.per else ""

    @property
    def is_due(self) -> bool:
        return self.state is not S.QUEUED

    @property
    def is_retry(self) -> bool:
        """Whether it takes turns with new runs; a run that resumes from a wait is one of these."""
        return self.state is S.RETRYING

    @property
    def turn(self) -> tuple[datetime | None, tuple[int, int]]:
        """What it goes by in its line; of retries due at one instant, the lower number is first."""
        return (self.due_at, (self.seq, 0)) if self.is_retry else (None, self.arrival)


class DispatchSimulator:
    """`faults` says what was not as promised.

    `counts_turns`: neither new nor due runs, and no flow, wait for more than their turn. That is
    so while a queue fits into memory: a longer one is read in parts.
    """

    def __init__(self, slots: int, flows: list[SimulatedFlow], now: Callable[[], datetime]) -> None:
        self.slots = slots
        self.flows = flows
        self.now = now
        self.runs: dict[str, SimulatedRun] = {}
        self.live: list[SimulatedRun] = []
        self.faults: list[str] = []
        self.retries = 0
        self.counts_turns = True

    # ------------------------------------------------------------ what becomes durable

    def chosen(self, flow: SimulatedFlow) -> None:
        """Learn that a run is about to start: none is chosen once a pause has answered."""
        if flow.paused:
            self.faults.append(f"a run of flow {flow.number} is started, which is paused")

    def claiming(self, runs: list[SimulatedRun]) -> None:
        """Learn of claims on their way: what they leave no slot for need not start before others.

        An outcome that frees a slot may become durable before them.
        """
        self._refresh()
        for run in runs:
            self.chosen(run.flow)
            self._leave_slots(run)

    def _leave_slots(self, run: SimulatedRun) -> None:
        """Learn of a choice: what it leaves no slot for need not start before others.

        A run whose key is None is not limited, and takes no slot from others.
        """
        run.is_chosen = True
        for limit in (each for each in run.flow.limits if each.per):
            key = run.key_of(limit)
            if key is None:
                continue
            rivals = [other for other in self.live if limit in other.flow.limits]
            rivals = [other for other in rivals if other.key_of(limit) == key]
            used = sum(other.slots_of(limit) + other.is_chosen for other in rivals)
            for other in rivals if used >= limit.allowed else ():
                other.ready = False

    def stored(self, run: SimulatedRun, *, running: bool) -> None:
        """Learn of a new run, queued or started on insert."""
        self.runs[run.id] = run
        self._refresh()
        if running:
            self.claimed([run.id])

    def claimed(self, ids: list[str]) -> None:
        """Learn of runs that start together, in turn."""
        for run in self.live:
            run.is_chosen = False
        for run in (self.runs[id_] for id_ in ids):
            self._check_start(run, ids)
            self._count_turns(run)
            run.state, run.claim, run.ready = S.RUNNING, run.claim + 1, False
            if self._is_isolated(run):
                run.isolated.add(run.claim)
            run.holds, run.is_stopped = self._has_order(run), False
            self._refresh()

    def recorded(self, id_: str, state: RunState, due_at: datetime | None) -> None:
        """Learn of the outcome of the attempt that holds the claim."""
        run = self.runs[id_]
        run.state, run.due_at, run.dead, run.deaths = state, due_at, state is S.FAILED, 0
        keeps = state in (S.RETRYING, S.WAITING) or (run.dead and run.flow.blocks)
        run.holds = run.holds and keeps
        self._refresh()

    def cancelled(self, id_: str) -> None:
        """Learn of a cancel: whatever still works for the run has lost its claim."""
        run = self.runs[id_]
        if run.state is S.RUNNING and run.code and run.claim not in run.code:
            run.stranded += 1
        run.state, run.holds, run.dead = S.CANCELLED, False, False
        self._refresh()

    def cancel_answered(self, id_: str) -> None:
        """Learn that a cancel has answered: from now on no code of the run begins."""
        self.runs[id_].is_stopped = self.runs[id_].state is S.CANCELLED

    def retried(self, id_: str, at: datetime) -> None:
        """Learn of an operator's retry, or that the next try is due, both since an instant."""
        run = self.runs[id_]
        run.ready = False
        if run.state not in ENDED:
            run.due_at = at
            return
        if self._has_order(run):
            self._arrives_again(run)
        run.state, run.dead, run.deaths, run.due_at = S.QUEUED, False, 0, None
        self._refresh()

    def _arrives_again(self, run: SimulatedRun) -> None:
        """Give a run a place behind all others; a dead letter that blocks its key keeps its own.

        What is not served may block.
        """
        if run.dead and run.flow.served != run.flow.served_at_rest and not run.flow.blocks:
            run.is_misplaced = True
        if not (run.dead and (run.flow.blocks or not run.flow.served)):
            self.retries += 1
            run.arrival = (max(other.seq for other in self.runs.values()), self.retries)

    def dropped(self, id_: str) -> None:
        """Learn that a dead letter was dropped."""
        self.runs[id_].dead = self.runs[id_].holds = False
        self._refresh()

    def ended_process(self) -> None:
        """Learn that the process is gone: no code runs, nobody knows who is next but the rows."""
        for flow in self.flows:
            flow.passed = 0
        for run in self.runs.values():
            run.code.clear()
            run.stranded, run.ready, run.passed = 0, False, 0
            run.holds = run.holds and (run.dead or run.state in (S.RETRYING, S.WAITING))
        self._refresh()

    def rescued(self, at: datetime) -> None:
        """Learn that the next process has queued again what was running, at an instant."""
        for run in self.runs.values():
            if run.state is S.RUNNING:
                run.state, run.deaths, run.due_at = S.QUEUED, run.deaths + 1, at
        self._refresh()

    # ------------------------------------------------------------ the code of attempts

    def code_began(self, id_: str) -> int:
        """Learn that the code of an attempt runs; returns its claim."""
        run = self.runs[id_]
        if run.state is not S.RUNNING and run.is_stopped:
            self._fault(run, f"runs though it is {run.state}")
        if run.code:
            self._fault(run, "is in two attempts at once")
        run.code.append(run.claim)
        self._refresh()
        return run.claim

    def code_ended(self, id_: str, claim: int) -> None:
        """Learn that the code of an attempt has ended."""
        run = self.runs[id_]
        run.code.remove(claim)
        run.stranded = run.stranded if run.code else 0
        self._refresh()

    # ------------------------------------------------------------ who may start

    def why_not(self, run: SimulatedRun) -> set[str]:
        """Return what keeps a run from starting now."""
        why = set()
        if run.state is S.RUNNING or run.state in ENDED:
            return {str(run.state)}
        if run.is_due and not (run.due_at and run.due_at <= self.now()):
            why.add("not due")
        if run.flow.paused or not (run.flow.served or run.flow.served_at_rest):
            why.add("stopped")
        if self._has_order(run) and any(self.goes_before(o, run) for o in self.same_key(run)):
            why.add("order")
        if self._is_isolated(run) and any(self._runs_alone(other) for other in self.live):
            why.add("isolated")
        return why | self._full(run)

    def _full(self, run: SimulatedRun) -> set[str]:
        """Return which limits are reached."""
        full = {"slots"} if self.used() >= self.slots else set()
        for limit in run.flow.limits:
            if self._is_reached(limit, run, limit.allowed):
                full.add("limit" if limit.per else "flow")
        return full

    def _is_reached(self, limit: SimulatedLimit, run: SimulatedRun, count: int) -> bool:
        """Whether others use so many slots that a run would need one of."""
        key, has_slot = run.key_of(limit), limit.holds and run.slots_of(limit) > 0
        if key is None or has_slot:  # lowering a limit takes no slot back
            return False
        return self.used_of(limit, key) - run.slots_of(limit) >= count

    def used(self, flow: SimulatedFlow | None = None) -> int:
        """Count slots in use: of all flows, or of one."""
        return sum(run.slots for run in self.live if flow is None or run.flow is flow)

    def used_of(self, limit: SimulatedLimit, key: str = "") -> int:
        """Count slots of a limit in use, for one of its keys if it is keyed."""
        return sum(
            run.slots_of(limit)
            for run in self.live
            if run.key_of(limit) == key and limit in run.flow.limits
        )

    def same_key(self, run: SimulatedRun) -> Iterator[SimulatedRun]:
        """Yield the other runs of an ordering key."""
        for other in self.live:
            if (other.flow, other.order_key) == (run.flow, run.order_key) and other is not run:
                yield other

    def goes_before(self, other: SimulatedRun, run: SimulatedRun) -> bool:
        if other.holds or other.leftovers:
            return True
        is_older = other.arrival < run.arrival and not (
            run.is_misplaced or other.is_misplaced or run.holds
        )
        return other.state is S.QUEUED and is_older

    @staticmethod
    def _has_order(run: SimulatedRun) -> bool:
        return run.flow.ordered and run.order_key is not None

    @staticmethod
    def _is_isolated(run: SimulatedRun) -> bool:
        return run.deaths >= DEATHS_UNTIL_ISOLATED

    def _runs_alone(self, run: SimulatedRun) -> bool:
        """Whether an isolated attempt runs, also one that has lost its claim."""
        if any(claim in run.isolated for claim in run.code):
            return True
        return self._is_isolated(run) and run.slots > 0

    def _is_certain(self, run: SimulatedRun) -> bool:
        """Whether it is promised that this run, and no other of its key, is next."""
        others = self.same_key(run) if self._has_order(run) else ()
        rivals = [run, *(other for other in others if other.state not in ENDED)]
        return not (run.leftovers or any(rival.is_misplaced for rival in rivals))

    def _should_start(self, run: SimulatedRun) -> bool:
        """Whether a run that may start has to: none that may go before it is kept from starting."""
        if run.leftovers or any(other.stranded for other in self.live):
            return False
        if self._may_lack_a_kept_slot(run):
            return False
        if not self._has_order(run):
            return True
        rivals = [other for other in self.same_key(run) if other.state is S.QUEUED]
        return all(not why or "order" in why for why in map(self.why_not, rivals))

    def _may_lack_a_kept_slot(self, run: SimulatedRun) -> bool:
        """Whether another run may keep a slot that a run wants."""
        return any(
            self._may_keep_slot(other, limit) and other.key_of(limit) == run.key_of(limit)
            for limit in run.flow.limits
            for other in (self.live if limit.holds and run.key_of(limit) is not None else ())
            if other is not run and limit in other.flow.limits
        )

    def _may_keep_slot(self, run: SimulatedRun, limit: SimulatedLimit) -> bool:
        """Whether a queued run may have a slot of a limit: while it waits to run alone."""
        return limit.holds and run.state is S.QUEUED and self._is_isolated(run)

    # ------------------------------------------------------------ starts and turns

    def _check_start(self, run: SimulatedRun, together: list[str]) -> None:
        why = self.why_not(run)
        if why:
            self._fault(run, f"starts in spite of {sorted(why)}")
        if self._is_isolated(run) or not self._is_certain(run):
            return
        for other in self.live:
            same = other.ready and self.is_same_line(run, other)
            if same and other.turn < run.turn and other.id not in together:
                self._fault(run, f"overtakes run {other.seq}")

    def is_same_line(self, run: SimulatedRun, other: SimulatedRun) -> bool:
        """Whether of two runs that may start the older one goes first."""
        return other.flow is run.flow and other.is_retry == run.is_retry

    def _count_turns(self, run: SimulatedRun) -> None:
        """Count how often what was ready has seen others go first: neither kind may starve."""
        if not self.counts_turns:
            return
        for other in self.live:
            if other.ready and other.flow is run.flow and other is not run:
                other.passed = 0 if other.is_retry == run.is_retry else other.passed + 1
                if other.passed > 1:
                    self._fault(run, f"takes the turn of run {other.seq}")
        run.passed = run.flow.passed = 0
        for flow in {run.flow for run in self.live if self._lacks_a_slot(run)} - {run.flow}:
            flow.passed += 1
            if flow.passed > self.slots + 2 * len(self.flows):
                self._fault(run, f"takes the turn of flow {flow.number}")

    def _lacks_a_slot(self, run: SimulatedRun) -> bool:
        return run.ready and "flow" not in self.why_not(run)

    def _refresh(self) -> None:
        self.live = [
            run for run in self.runs.values() if run.state not in ENDED or run.holds or run.code
        ]
        for run in self.live:
            if run.ready and not self._is_still_ready(run):
                run.ready, run.passed = False, 0

    def _is_still_ready(self, run: SimulatedRun) -> bool:
        """Whether a run could start but for a slot; the limit of its key may have been lowered."""
        if self.why_not(run) - {"slots", "flow"}:
            return False
        keyed = (limit for limit in run.flow.limits if limit.per)
        return not any(self._is_reached(limit, run, limit.assured) for limit in keyed)

    # ------------------------------------------------------------ at rest

    def settle(self) -> None:
        """Learn that no change is under way any more."""
        for flow in self.flows:
            flow.served_at_rest = flow.served
            for limit in flow.limits:
                limit.count_at_rest = limit.count_now

    def rest(
        self,
        held: Mapping[int, int],
        holders: Callable[[SimulatedRun], Collection[str]],
        used: Callable[[SimulatedFlow], Sequence[Mapping[str | None, int]]],
    ) -> None:
        """Check a service that has nothing left to do: what could start has started.

        `held` is how many slots each flow uses, and `used` how many each of its limits counts for
        each key, as the service says; `holders` who holds the ordering key of a run.
        """
        for flow in self.flows:
            least = self.used(flow)
            most = least + sum(run.stranded for run in self.runs.values() if run.flow is flow)
            if not least <= held.get(flow.number, 0) <= most:
                self.faults.append(f"flow {flow.number} uses {held} slots, not {least}")
            if flow.served:
                self._check_limits(flow, used(flow))
        for run in self.missed():
            self._fault(run, "could start and does not")
        for run in self.runs.values():
            why = self.why_not(run)
            certain = self._is_certain(run) and not self._may_lack_a_kept_slot(run)
            run.ready = not why - {"slots", "flow"} and certain and not self._is_isolated(run)
            run.passed = run.passed if run.ready else 0
            if run.flow.served and self._has_order(run):  # also of runs that are over
                self._check_holder(run, holders(run))
        for run in self.live:
            if run.state is S.QUEUED and run.leftovers:  # it is chosen while these have their slots
                self._leave_slots(run)
                run.is_chosen = False
        lacking = {run.flow for run in self.live if self._lacks_a_slot(run)}
        for flow in self.flows:
            flow.passed = flow.passed if flow in lacking else 0

    def _check_limits(self, flow: SimulatedFlow, used: Sequence[Mapping[str | None, int]]) -> None:
        """Compare what the gates of a flow's limits count with a recount of its runs."""
        if any(run.stranded for run in self.runs.values()):
            return
        assert len(used) == len(flow.limits)
        for limit, counted in zip(flow.limits, used, strict=True):
            runs = [run for run in self.live if limit in run.flow.limits]
            keys = {key for run in runs if (key := run.key_of(limit)) is not None}
            least = Counter({key or None: self.used_of(limit, key) for key in keys})
            kept = [run.key_of(limit) for run in runs if self._may_keep_slot(run, limit)]
            most = least + Counter(key or None for key in kept if key is not None)
            recount = +least
            if not recount <= Counter(counted) <= most:
                self.faults.append(
                    f"{limit} of flow {flow.number} counts {dict(counted)} slots, not {recount}"
                )

    def missed(self) -> list[SimulatedRun]:
        """Return the runs that should have started."""
        return [run for run in self.live if not self.why_not(run) and self._should_start(run)]

    def _check_holder(self, run: SimulatedRun, holders: Collection[str]) -> None:
        is_queued = run.state is S.QUEUED  # again: it takes its key when it asks
        if run.holds and not is_queued and run.id not in holders:
            self._fault(run, f"does not hold its key; {holders} do")

    def _fault(self, run: SimulatedRun, what: str) -> None:
        self.faults.append(
            f"run {run.seq} of flow {run.flow.number} ({run.state}, {dict(run.data)}) {what}"
        )
