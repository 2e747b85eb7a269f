"""Random histories of flows that use flow control, against the simulator of what it promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

from hypothesis import strategies as st
from hypothesis.stateful import initialize

from tests.support.dispatch_machine import POLICIES, DispatchMachine, Policy
from tests.support.dispatch_simulator import ENDED, SimulatedFlow
from tests.support.flow_control_simulator import (
    ControlledRun,
    FlowControlSimulator,
    Mode,
    RateLimited,
    Rule,
    Throttled,
    Unique,
    Verdict,
)
from turnout import rate_limit, throttle, unique
from turnout.service.domain.run import RunState

S = RunState

Drawn: TypeAlias = tuple[str, bool, int, int]
"""A rule: its kind, whether it has a key, a count, and seconds."""

DRAWN: st.SearchStrategy[Drawn] = st.tuples(
    st.sampled_from(["throttle", "shared", "rate_limit", "unique", "skip", "replace", "latest"]),
    st.booleans(),
    st.integers(1, 2),
    st.sampled_from([0, 5, 30]),
)
RULES = st.lists(st.lists(DRAWN, max_size=2), min_size=3, max_size=3)


def make_rule(drawn: Drawn, shared: Throttled) -> Rule:
    kind, keyed, count, seconds = drawn
    per, period = "work" if keyed else "", timedelta(seconds=seconds or 10)
    match kind:
        case "throttle":
            return Throttled(per, count, period)
        case "shared":
            return shared
        case "rate_limit":
            return RateLimited(per, count, period)
        case "unique":
            return Unique("work", period if seconds else None)
        case "skip" | "replace" | "latest" as mode:
            return Mode(per, mode)
        case _:
            raise AssertionError(kind)


class FlowControlMachine(DispatchMachine):
    """What is done to a service whose flows have rules, and the simulator that is told of it."""

    @initialize(
        slots=st.integers(1, 4),
        policies=st.lists(POLICIES, min_size=1, max_size=3),
        bounds=st.integers(0, 5),
        rules=RULES,
    )
    def begin(
        self, slots: int, policies: list[Policy], bounds: int, rules: list[list[Drawn]]
    ) -> None:
        shared = Throttled("", 2, timedelta(seconds=10), shared="crm")
        self.declared_rules = [
            list({made.name: made for made in (make_rule(each, shared) for each in drawn)}.values())
            for drawn in rules
        ]
        super().begin(slots, policies, bounds)

    def simulate(self, slots: int, flows: list[SimulatedFlow]) -> FlowControlSimulator:
        self.controlled = FlowControlSimulator(
            slots, flows, lambda: self.service.now, self.declared_rules
        )
        self.controlled.counts_turns = False  # a mode or a rate changes whose turn it is
        return self.controlled

    def options(self, each: SimulatedFlow) -> dict[str, Any]:
        options: dict[str, Any] = {}
        rates: list[Any] = []
        for rule in self.declared_rules[each.number]:
            per = _asks(rule.per)
            match rule:
                case Throttled():
                    rate = _rate(rule)
                    shared = rule.shared
                    rates.append(
                        throttle(shared, rate, per=per) if shared else throttle(rate, per=per)
                    )
                case RateLimited():
                    rates.append(rate_limit(_rate(rule), per=per))
                case Unique():
                    assert per is not None
                    until = "done" if rule.until is None else rule.until
                    options["unique"] = unique(per, until=until)
                case Mode():
                    options |= {"mode": rule.mode, "key": per}
        return options | ({"rate": rates} if rates else {})

    # ------------------------------------------------------------ what the simulator is told

    def told(self, what: str, call: Any) -> None:
        self.controlled.decided_at = call.options.get("now") if what == "done" else None
        super().told(what, call)
        self.controlled.decided_at = None

    def told_append_done(self, entries: Sequence[Any], result: Sequence[Any]) -> None:
        for entry, stored in zip(entries, result, strict=True):
            if not (stored.duplicate or stored.conflict):
                self.data[stored.event_seq] = entry.event.data
                self.decided(entry.runs, stored, entry.event.data)

    def told_replay_done(self, event: int, runs: Sequence[Any], result: Any) -> None:
        self.decided(runs, result, self.data[event], accepted=False)

    def decided(
        self,
        runs: Sequence[Any],
        stored: Any,
        data: Mapping[str, str | None],
        *,
        accepted: bool = True,
    ) -> None:
        """Compare what became of new runs, and of older ones by them, with what should have."""
        cancelled: set[str] = set()
        skipped: set[str] = set()
        for run in runs:
            self.named[run.id] = run.flow
            known = self.known(run, data)
            known.accepted = accepted
            verdict = self.controlled.verdict(known, self.at)
            refused = stored.refused.get(run.id)
            reason = None if refused is None else str(refused.reason)
            if reason != verdict.refused:
                self.simulator.faults.append(
                    f"run {run.seq} ({dict(data)}) is refused by {reason}, not {verdict.refused}"
                )
            cancelled |= verdict.cancelled
            skipped |= verdict.skipped
            self.end_older(verdict)
            if verdict.refused is None:
                self.simulator.stored(known, running=run.state is S.RUNNING)
            else:
                known.state, known.accepted = S.SKIPPED, False
                self.simulator.runs[known.id] = known
        self.compare(stored, cancelled, skipped)

    def told_retry_done(self, _run_id: str, _step: None, result: Any) -> None:
        run = self.simulator.runs[result.run.id]
        assert isinstance(run, ControlledRun)
        if run.state in ENDED and run.flow.served and run.flow.served_at_rest:
            # It comes in again, under the mode of its flow; of a flow that is gone, under none.
            verdict = self.controlled.verdict(run, self.at, asked=(Mode,))
            if verdict.refused is not None:
                self.simulator.faults.append(f"run {run.seq} is retried beside another of its key")
            self.compare(result, set(verdict.cancelled), set(verdict.skipped))
        self.end_older(
            Verdict(
                cancelled=frozenset(each.id for each in result.cancelled),
                skipped=frozenset(each.id for each in result.skipped),
            )
        )
        super().told_retry_done(_run_id, _step, result)

    def end_older(self, verdict: Verdict) -> None:
        for each in verdict.cancelled:
            self.simulator.cancelled(each)
            self.simulator.cancel_answered(each)
        for each in verdict.skipped:
            self.controlled.skipped(each)

    def compare(self, ends: Any, cancelled: set[str], skipped: set[str]) -> None:
        """Compare which older runs were ended with which should have been."""
        ended = ({run.id for run in ends.cancelled}, {run.id for run in ends.skipped})
        if ended != (cancelled, skipped):
            known = [run for run in self.simulator.runs.values() if run.id in cancelled | skipped]
            self.simulator.faults.append(f"{ended} were ended, not {known}")

    def known(self, run: Any, data: Mapping[str, str | None]) -> ControlledRun:
        return ControlledRun(run.id, run.seq, self.flow_of(run), data, self.at)


def _asks(part: str) -> Any:
    return (lambda event: event.data[part]) if part else None


def _rate(rule: Throttled | RateLimited) -> str:
    return f"{rule.count}/{round(rule.period.total_seconds())}s"
