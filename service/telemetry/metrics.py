"""Every metric turnout exposes, declared once; label values are declared names, never data.

One registry per service, no multiprocess mode. Hot paths hold on to the labelled meters they use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from . import own_metrics
from .meters import Counter, CounterFamily, Histogram, HistogramFamily

# Not OpenMetrics: there the counter `turnout_runs_total` and the gauge `turnout_runs` would be one
# family, which its strict parsers refuse; the classic text keeps both names apart.
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_WAIT_SECONDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600,
)  # fmt: skip
_DELAY_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_ANSWER_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)


class Metrics:
    """The service's metrics; attributes are the Prometheus names without the `turnout_` prefix."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> CounterFamily:
            family = CounterFamily(f"turnout_{name}", text, labels)
            registry.register(family)
            return family

        def histogram(
            name: str, text: str, *labels: str, bounds: Sequence[float] = _SECONDS
        ) -> HistogramFamily:
            family = HistogramFamily(f"turnout_{name}", text, labels, bounds=bounds)
            registry.register(family)
            return family

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"turnout_{name}", text, labels, registry=registry)

        self.events = counter("events", "Events by result.", "trigger", "result")
        self.start_timestamp_seconds = gauge(
            "start_timestamp_seconds", "When this process started."
        )
        self.answer_seconds = histogram(
            "answer_seconds",
            "From when an accepted request was read to its answer; not if it waited for a result.",
            "trigger",
            bounds=_ANSWER_SECONDS,
        )
        self.decisions = counter(
            "decisions", "Decisions not to start a run, by reason.", "flow", "reason"
        )
        self.filter_errors = counter(
            "filter_errors",
            "Dead letters because a function of the flow raised: when=, per=, key=, unique=, "
            "ordered_by=, priority=.",
            "flow",
        )
        self.runs_ended = counter("runs", "Runs that ended, by outcome.", "flow", "outcome")
        self.attempts = counter("attempts", "Attempts by outcome.", "flow", "outcome")
        self.run_seconds = histogram("run_seconds", "How long one attempt of a run ran.", "flow")
        self.run_wait_seconds = histogram(
            "run_wait_seconds", "From due to started, by what kept it waiting.", "flow", "cause",
            bounds=_WAIT_SECONDS,
        )  # fmt: skip
        self.due_runs = gauge("due_runs", "Runs that could start now, and have not.", "flow")
        self.oldest_due_seconds = gauge(
            "oldest_due_seconds", "How long the first of them has been due; 0 without one.", "flow"
        )
        self.scheduled_runs = gauge(
            "scheduled_runs", "Runs whose time, or next try, has not come.", "flow"
        )
        self.wanted = gauge(
            "wanted",
            "Runs that run or could start now; runs, windows and ticks due within a minute.",
        )
        self.limit_used = gauge("limit_used", "Places in use at a named limit.", "limit")
        self.limit_max = gauge("limit_max", "Places of a named limit.", "limit")
        self.limit_due = gauge("limit_due", "Due runs of the flows that share it.", "limit")
        self.steps = counter("steps", "Tries of steps by outcome.", "flow", "task", "outcome")
        self.step_seconds = histogram("step_seconds", "How long a step ran.", "flow", "task")
        self.trigger_up = gauge("trigger_up", "1 while the trigger watches.", "trigger")
        self.trigger_lag = gauge("trigger_lag", "Unread records or files.", "trigger", "partition")
        self.trigger_figures = gauge(
            "trigger_figures", "A trigger's own figures, such as rebalances.", "trigger", "figure"
        )
        self.schedule_late_seconds = histogram(
            "schedule_late_seconds", "From when a tick was due to when it was stored.", "trigger",
            bounds=_WAIT_SECONDS,
        )  # fmt: skip
        self.loop_delay_seconds = histogram(
            "loop_delay_seconds", "How late the event loop called what was due, 4 times a second.",
            bounds=_DELAY_SECONDS,
        ).labels()  # fmt: skip
        self.journal_commit_seconds = histogram(
            "journal_commit_seconds", "One commit, fsync included.", bounds=_COMMIT_SECONDS
        ).labels()
        self.journal_batch_rows = histogram(
            "journal_batch_rows", "Rows written in one commit.", bounds=_ROWS
        ).labels()
        self.alerts = gauge("alerts", "Alerts that are open.", "flow", "rule")
        self.alert_messages = counter(
            "alert_messages", "Messages about alerts, by what became of them.", "channel", "result"
        )
        self.clock_steps = counter(
            "clock_steps", "Times the wall clock was set, by more than a second.", "direction"
        )
        self.clock_behind_seconds = gauge(
            "clock_behind_seconds", "How far the wall clock is behind what was recorded."
        )
        self.journal_size_bytes = gauge("journal_size_bytes", "Size of the journal on disk.")
        self.disk_free_bytes = gauge(
            "disk_free_bytes", "Space that the journal has left; see min_free_bytes."
        )

    @lru_cache(maxsize=4096)  # noqa: B019  one registry lives as long as its process
    def of_step(self, flow: str, task: str, outcome: str) -> tuple[Histogram, Counter]:
        """Return a step's labelled metrics: its duration, and its count of `outcome`."""
        return self.step_seconds.labels(flow, task), self.steps.labels(flow, task, outcome)

    def observe_counts(self, read: Callable[[], Counts]) -> None:
        """Expose counts that others keep, read at each scrape without touching the disk."""
        self.registry.register(_Observed(read))

    def observe_own(self) -> None:
        """Expose the metrics that flow files have declared."""
        self.registry.register(_Own())

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self.registry)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Gauges whose values are kept elsewhere: runs, slots, calls, breakers, queues, last events."""

    runs_by_state: Mapping[str, int] = field(default_factory=dict)
    dead_letters_by_flow: Mapping[str, int] = field(default_factory=dict)
    not_undone_by_flow: Mapping[str, int] = field(default_factory=dict)
    slots_by_flow: Mapping[str, int] = field(default_factory=dict)
    waiting_by_pool: Mapping[str, int] = field(default_factory=dict)
    used_by_pool: Mapping[str, int] = field(default_factory=dict)
    size_by_pool: Mapping[str, int] = field(default_factory=dict)
    breakers_by_dependency: Mapping[str, int] = field(default_factory=dict)
    last_event_by_trigger: Mapping[str, float] = field(default_factory=dict)
    queue_memory_bytes: int = 0
    queued_writes: int = 0
    backup: Backup | None = None


@dataclass(frozen=True, slots=True)
class Backup:
    """How backups go; both are absent where `turnout backup` is not used."""

    age_seconds: float | None
    verified: bool


class _Observed(Collector):
    def __init__(self, read: Callable[[], Counts]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        counts = self._read()
        for name, text, label, values in (
            ("runs", "Unfinished runs by state.", "state", counts.runs_by_state),
            ("dead_letters", "Dead letters kept.", "flow", counts.dead_letters_by_flow),
            (
                "undo_failed",
                "Dead letters whose undo failed and is not done yet.",
                "flow",
                counts.not_undone_by_flow,
            ),
            ("slots", "Runs that hold a slot now.", "flow", counts.slots_by_flow),
            (
                "pool_waiting",
                "Calls that wait for a thread or a worker process.",
                "pool",
                counts.waiting_by_pool,
            ),
            (
                "pool_used",
                "Threads or worker processes that work for a call.",
                "pool",
                counts.used_by_pool,
            ),
            ("pool_max", "Threads or worker processes there may be.", "pool", counts.size_by_pool),
            (
                "breaker_state",
                "0 while runs that need it may start, 1 while one tries it, 2 while they wait.",
                "dependency",
                counts.breakers_by_dependency,
            ),
            (
                "trigger_last_event_timestamp_seconds",
                "When its last event was accepted; absent if none is among the newest 50,000.",
                "trigger",
                counts.last_event_by_trigger,
            ),
        ):
            family = GaugeMetricFamily(f"turnout_{name}", text, labels=[label])
            for value, count in values.items():
                family.add_metric([value], count)
            yield family
        yield GaugeMetricFamily(
            "turnout_queue_memory_bytes",
            "Memory of queued runs that need not be read from the journal: about 24 MiB at most.",
            value=counts.queue_memory_bytes,
        )
        yield GaugeMetricFamily(
            "turnout_journal_queued_writes",
            "Writes that wait for the commit under way or the next one.",
            value=counts.queued_writes,
        )
        age = GaugeMetricFamily(
            "turnout_backup_age_seconds",
            "How old the last whole backup is; absent where `turnout backup` makes none.",
        )
        verified = GaugeMetricFamily(
            "turnout_backup_verified", "1 if the last backup was made and verified, 0 if it failed."
        )
        if counts.backup is not None:
            verified.add_metric([], counts.backup.verified)
            if counts.backup.age_seconds is not None:
                age.add_metric([], counts.backup.age_seconds)
        yield age
        yield verified

    def describe(self) -> list[GaugeMetricFamily]:
        return []


class _Own(Collector):
    """The metrics that flow files have declared, as `turnout_own_…`."""

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        for each in own_metrics.own_metrics():
            declaration = each.declaration
            kind = CounterMetricFamily if declaration.kind == "counter" else GaugeMetricFamily
            names = [name for name, _ in declaration.labels]
            family = kind(f"turnout_own_{declaration.name}", declaration.text, labels=names)
            for labels, value in list(each.values.items()):
                family.add_metric(labels, value)
            yield family

    def describe(self) -> list[CounterMetricFamily | GaugeMetricFamily]:
        return []
