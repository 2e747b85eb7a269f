"""Slows down guessing of tokens: answers to wrong tokens are delayed, only a few per client.

A right token never waits for the mistakes of other clients. Counts are in memory and bounded. Not
here: what a right token is (`tokens`).
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

FREE = 5
"""How many wrong tokens of one client are answered without delay each minute."""

DELAY_SECONDS = 1.0
WAITING = 4
"""How many wrong tokens of one client may wait; past that, no token of it is checked."""

_MINUTE_SECONDS = 60.0
_CLIENTS = 1024


@dataclass(slots=True)
class _Client:
    since: float
    wrong: int = 0
    waiting: int = 0


class Guesses:
    """Counts wrong tokens by client for a minute."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    def admits(self, client: str) -> bool:
        """Whether a token of this client is checked: not while too many wrong ones wait."""
        known = self._clients.get(client)
        return known is None or known.waiting < WAITING

    async def wrong(self, client: str) -> None:
        """Count a wrong token; returns once it may be answered."""
        now = self._clock()
        known = self._clients.setdefault(client, _Client(now))
        self._clients.move_to_end(client)
        if now - known.since > _MINUTE_SECONDS:
            known.since, known.wrong = now, 0
        known.wrong += 1
        if known.wrong > FREE:
            known.waiting += 1
            try:
                await self._sleep(DELAY_SECONDS)
            finally:
                known.waiting -= 1
        while len(self._clients) > _CLIENTS:
            self._clients.popitem(last=False)
