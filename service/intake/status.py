"""What operators see of a trigger: whether it is up, why not, its lag and its figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

from turnout.service.domain.errors import Overloaded, Paused
from turnout.service.governance import secrets
from turnout.service.journal.records import StoredPause
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.metrics import Metrics

log = get_logger("turnout.triggers")

_STARTING = "starting"
_RETRY_SECONDS = 60
_LONGEST_RETRY_SECONDS = 300


def _nothing() -> None:
    """Do nothing about a change that nobody waits for."""


class Status:
    """The status of one trigger, in `/readyz`, the API and the metrics; all sessions share it.

    `problem` is why it is not watching now, `last_error` the last one that it had. `rejected`
    counts the input that became no event, by what became of it, since the process began. `accepts`
    says that it takes events now, `stays` that its positions are being moved: what it has accepted
    runs here. `last_event_at` is when an event was last accepted, since the process began.
    `told_to` is the instant up to which all that the source held has been emitted; `changed` is
    called whenever one of these may have changed.
    """

    def __init__(self, trigger: str, metrics: Metrics, *, now: Callable[[], datetime]) -> None:
        self.trigger = trigger
        self.last_event_at: datetime | None = None
        self.told_to: datetime | None = None
        self.changed: Callable[[], None] = _nothing
        self.problem: str | None = _STARTING
        self.last_error: str | None = None
        self.lags: dict[str, float] = {}
        self.figures: dict[str, float] = {}
        self.rejected: dict[str, int] = {}
        self._pause: StoredPause | None = None
        self.accepts = True
        self._closed: str | None = None
        self._pause_words = f"trigger {trigger!r} is paused"
        self.stays = False
        self._metrics = metrics
        self._now = now

    @property
    def listens(self) -> bool:
        """Whether it watches its source now, and nobody has paused it."""
        return self.problem is None and self._pause is None

    @property
    def starting(self) -> bool:
        """Whether it has not watched its source yet, and has had no problem."""
        return self.problem == _STARTING

    @property
    def paused_since(self) -> datetime | None:
        """When an operator has paused the trigger; None if it is not paused."""
        return None if self._pause is None else self._pause.since

    @property
    def paused(self) -> bool:
        """Whether an operator has paused the trigger."""
        return self._pause is not None

    def pause(self, pause: StoredPause | None) -> None:
        """Pause the trigger for an operator, or resume it; `problem` is not affected."""
        self._pause = pause
        self.accepts = pause is None and self._closed is None
        self._show_up()

    def close(self, reason: str) -> None:
        """Accept nothing any more."""
        self._closed, self.accepts = reason, False

    def refusal(self, now: datetime) -> Overloaded:
        """Return the error for events that are not accepted now.

        A sender is told to come again when the pause ends, within 5 minutes; without an end in a
        minute.
        """
        if self._closed is not None:
            return Overloaded(self._closed)
        left = _RETRY_SECONDS
        if self._pause is not None and self._pause.until is not None:
            left = math.ceil((self._pause.until - now).total_seconds())
        return Paused(
            self._pause_words, retry_after_seconds=min(max(left, 1), _LONGEST_RETRY_SECONDS)
        )

    def up(self) -> None:
        """Note that the trigger is watching."""
        if self.problem not in (None, _STARTING):
            log.info("trigger.up", trigger=self.trigger)
        self.problem = None
        self._show_up()

    def down(self, reason: str) -> None:
        """Note that the trigger cannot watch now, and why."""
        reason = secrets.mask(reason)  # /readyz and the API show it
        if reason == self._pause_words:
            return  # it is paused, which is no problem of the trigger
        if reason != self.problem:
            log.warning("trigger.down", trigger=self.trigger, error=reason)
        self.problem = self.last_error = reason
        self._show_up()

    def _show_up(self) -> None:
        self._metrics.trigger_up.labels(self.trigger).set(self.listens)
        self.changed()

    def up_to_date(self, seconds_ago: float = 0) -> None:
        """Note that all that the source held so many seconds ago has been emitted."""
        self.told_to = self._now() - timedelta(seconds=seconds_ago)
        self.changed()

    def late(self, seconds: float) -> None:
        """Note how long after it was due an event was stored."""
        self._metrics.schedule_late_seconds.labels(self.trigger).observe(max(seconds, 0.0))

    def count_ticks(self) -> None:
        """Show how many ticks were late or missed from the first scrape on.

        Prometheus sees no increase in what appears with its first count.
        """
        self._metrics.schedule_late_seconds.labels(self.trigger)
        self._metrics.events.labels(self.trigger, "missed")

    def lag(self, partition: str, count: float) -> None:
        """Note how much of `partition` is not read yet."""
        self.lags[partition] = count
        self._metrics.trigger_lag.labels(self.trigger, partition).set(count)

    def show(self, figure: str, value: float) -> None:
        """Note a figure of this trigger's own."""
        self.figures[figure] = value
        self._metrics.trigger_figures.labels(self.trigger, figure).set(value)

    def reject(self, result: str, count: int = 1) -> None:
        """Count input that became no event."""
        self.rejected[result] = self.rejected.get(result, 0) + count
        self._metrics.events.labels(self.trigger, result).inc(count)

    def retire(self) -> None:
        """Remove the metrics of a trigger that is no longer served."""
        with suppress(KeyError):
            self._metrics.trigger_up.remove(self.trigger)
        for partition in self.lags:
            with suppress(KeyError):
                self._metrics.trigger_lag.remove(self.trigger, partition)
        for figure in self.figures:
            with suppress(KeyError):
                self._metrics.trigger_figures.remove(self.trigger, figure)
