"""Tells of requests that are refused for their signature: one warning a minute for each trigger.

A sender with the wrong secret tries again and again, and so does a stranger: a line for each would
let anyone fill the log, and none would leave the mistake unseen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from turnout.service.telemetry.logs import get_logger

log = get_logger("turnout.webhook")

INTERVAL_SECONDS = 60.0


class UnverifiedRequests:
    """Counts the requests that one trigger has refused since it last told of them."""

    def __init__(
        self, trigger: str, secrets: Sequence[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._trigger = trigger
        self._hint = f"compare secret {' or '.join(secrets)} with the one that the sender uses"
        self._clock = clock
        self._next: float | None = None
        self._count = 0

    def tell(self, client: str | None, reason: str) -> None:
        """Count a refused request; log how many there were, once a minute at most."""
        self._count += 1
        now = self._clock()
        if self._next is not None and now < self._next:
            return
        log.warning(
            "webhook.unverified",
            trigger=self._trigger,
            count=self._count,
            client=client,
            reason=reason,
            hint=self._hint,
        )
        self._count, self._next = 0, now + INTERVAL_SECONDS
