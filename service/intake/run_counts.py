"""Counts the runs that have ended, by flow, outcome and the flow's own labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from turnout.service.domain.event import Event
from turnout.service.domain.labels import OTHER, Label
from turnout.service.domain.run import FILTER_ERROR, RunError, RunState
from turnout.service.project import AnyFlow
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.meters import Counter
from turnout.service.telemetry.metrics import Metrics

log = get_logger("turnout")


class RunCounts:
    """The runs that have ended; the labels of the served flows are asked here."""

    def __init__(self, metrics: Metrics) -> None:
        self._family = metrics.runs_ended
        self._filter_errors = metrics.filter_errors
        self._plain: dict[tuple[str, RunState], Counter] = {}  # of flows without labels
        self._labels: Mapping[str, Mapping[str, Label]] = {}
        self._told: set[tuple[str, str]] = set()

    def serve(self, flows: Iterable[AnyFlow]) -> None:
        """Ask the labels of these flows from now on, and show that no filter of theirs has failed.

        Prometheus sees no increase in what appears with its first count.
        """
        flows = list(flows)
        for flow in flows:
            self._filter_errors.labels(flow.name)
        self._labels = {flow.name: flow.metrics for flow in flows if flow.metrics}
        self._plain.clear()
        self._told.clear()

    def count_unstarted(
        self, flow: str, state: RunState, event: Event | None, error: RunError | None
    ) -> None:
        """Count a run that has ended without an attempt, also as a filter error if it is one."""
        self.count(flow, state, event)
        if state is RunState.FAILED and error is not None and error.type == FILTER_ERROR:
            self._filter_errors.labels(flow).inc()

    def count(self, flow: str, state: RunState, event: Event | None) -> None:
        """Count a run that has ended; without its event its labels are `other`."""
        counter = self._plain.get((flow, state))
        if counter is None:
            counter = self._counter(flow, state, event)
        counter.inc()

    def _counter(self, flow: str, state: RunState, event: Event | None) -> Counter:
        """Return the counter of a run; that of a flow without labels is known from now on."""
        labels = self._labels.get(flow)
        if labels is None:
            counter = self._plain[flow, state] = self._family.labels(flow, state)
            return counter
        asked = None if event is None else event.own()
        own = tuple((name, self._value(flow, name, each, asked)) for name, each in labels.items())
        return self._family.labels_with_own(flow, state, own=own)

    def _value(self, flow: str, name: str, label: Label, event: Event | None) -> str:
        if event is None:
            return OTHER
        try:
            return label.value(event)
        except Exception as error:  # noqa: BLE001  the author's: a count must not end a run
            if (flow, name) not in self._told:  # once: the events may all be like that
                self._told.add((flow, name))
                log.warning(
                    "label.failed",
                    flow=flow,
                    label=name,
                    error=f"{type(error).__name__}: {error}",
                    hint=f"it counts as {OTHER!r}",
                )
            return OTHER
