"""What operators see of a trigger: whether it is up, why not, its lag and its figures."""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import datetime

from turnout.service.domain.errors import Overloaded, Paused
from turnout.service.governance import secrets
from turnout.service.journal.records import StoredPause
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.metrics import Metrics

log = get_logger("turnout.triggers")

_STARTING = "starting"
_RETRY_SECONDS = 60
_LONGEST_RETRY_SECONDS = 300


class Status:
    """The status of one trigger, in `/readyz`, the API and the metrics; all sessions share it.

    `problem` is why it is not watching now, `last_error` the last one that it had. `accepts` says
    that it takes events now, `stays` that its positions are being moved: what it has accepted runs
    here.
    """

    def __init__(self, trigger: str, metrics: Metrics) -> None:
        self.trigger = trigger
        self.problem: str | None = _STARTING
        self.last_error: str | None = None
        self.lags: dict[str, float] = {}
        self.figures: dict[str, float] = {}
        self._pause: StoredPause | None = None
        self.accepts = True
        self._closed: str | None = None
        self._pause_words = f"trigger {trigger!r} is paused"
        self.stays = False
        self._metrics = metrics

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
        watches = self.problem is None and not self.paused
        self._metrics.trigger_up.labels(self.trigger).set(watches)

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
