"""The open connections by client, and which idle one is dropped for a new one.

At most `most` connections are served, and at most a share of them for one client, so that no client
can block all others; a trusted proxy stands for many clients and has no share. At the limit an
idle connection is dropped: the oldest of the same client, or of the client with the most. One with
a request in progress is never dropped: if all are busy, a few more are accepted, which get 503 or
the health pages.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from typing import Literal, Protocol

from turnout.service.http.clients import Proxies, client_network

MAX_CONNECTIONS = 1000
MAX_CONNECTIONS_OF_A_CLIENT = 512

Admission = Literal["served", "busy", "refused"]


class Peer(Protocol):
    """A connection, as `Peers` sees it."""

    @property
    def is_quiet(self) -> bool:
        """Whether no request is being received or answered."""

    def shutdown(self) -> None:
        """Close after the pending answer."""

    def abandon(self) -> None:
        """Drop the connection at once."""


class Peers:
    """The connections of one server; `emptied` is set when the last one is gone.

    `empty_since` is the monotonic time since when there is none, infinity while there is one.
    """

    def __init__(self, most: int, proxies: Proxies) -> None:
        self.most = most
        self.share = max(1, min(MAX_CONNECTIONS_OF_A_CLIENT, most * 3 // 4))
        self.emptied = asyncio.Event()
        self.empty_since = time.monotonic()
        self._proxies = proxies
        self._of: dict[str, dict[Peer, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def all(self) -> list[Peer]:
        """Return every connection."""
        return [peer for peers in self._of.values() for peer in peers]

    def enter(self, peer: Peer, address: str) -> Admission:
        """Add a connection, even one to refuse; call `leave` for each of them."""
        own = self._of.setdefault(client_network(address), {})
        own[peer] = None
        self._count += 1
        self.empty_since = math.inf
        share = self.most if self._proxies.trusts(address) else self.share
        if len(own) <= share and self._count <= self.most:
            return "served"
        if _drop_quiet(own if len(own) > share else self._largest(), peer):
            return "served"
        is_near = len(own) <= _with_margin(share) and self._count <= _with_margin(self.most)
        return "busy" if is_near else "refused"

    def _largest(self) -> Iterable[Peer]:
        return max(self._of.values(), key=lambda peers: len(peers))

    def leave(self, peer: Peer, address: str) -> None:
        """Remove a connection."""
        client = client_network(address)
        own = self._of[client]
        del own[peer]
        self._count -= 1
        if not own:
            del self._of[client]
        if not self._count:
            self.empty_since = time.monotonic()
            self.emptied.set()


def _with_margin(limit: int) -> int:
    return limit + limit // 8


def _drop_quiet(peers: Iterable[Peer], new: Peer) -> bool:
    """Drop the oldest quiet connection; False if all are busy."""
    quiet = next((peer for peer in peers if peer is not new and peer.is_quiet), None)
    if quiet is not None:
        quiet.abandon()
    return quiet is not None
