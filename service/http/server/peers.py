"""The connections there are, whose they are, and which of them a new one may take the place of.

At most `most` connections are served, and of one client at most its share, so that nobody can take
the place of all others; a trusted proxy stands for many clients and has no share. When they are
used up, a connection that owes its next request makes room: the oldest of the same client, or of
the client with the most. Who has sent a request is never cut off for it: when all have, a few more
are let in to be told that there are too many, or that the service is alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Literal, Protocol

from turnout.service.http.clients import Proxies, household

MAX_CONNECTIONS = 1000
MAX_CONNECTIONS_OF_A_CLIENT = 512

Welcome = Literal["served", "told", "refused"]


class Peer(Protocol):
    """A connection, as far as whether it may stay is concerned."""

    @property
    def is_quiet(self) -> bool:
        """Whether nothing of it is being answered, nor a body received."""

    def shutdown(self) -> None:
        """Close, after the answer that is owed."""

    def abandon(self) -> None:
        """Drop the connection at once."""


class Peers:
    """The connections of one server; `emptied` is set when the last one is gone."""

    def __init__(self, most: int, proxies: Proxies) -> None:
        self.most = most
        self.share = max(1, min(MAX_CONNECTIONS_OF_A_CLIENT, most * 3 // 4))
        self.emptied = asyncio.Event()
        self._proxies = proxies
        self._of: dict[str, dict[Peer, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def all(self) -> list[Peer]:
        """Return every connection."""
        return [peer for peers in self._of.values() for peer in peers]

    def enter(self, peer: Peer, address: str) -> Welcome:
        """Take in a connection, also one to refuse: `leave` is told of it all the same."""
        own = self._of.setdefault(household(address), {})
        own[peer] = None
        self._count += 1
        share = self.most if self._proxies.trusts(address) else self.share
        if len(own) <= share and self._count <= self.most:
            return "served"
        if _make_room(own if len(own) > share else self._crowd(), peer):
            return "served"
        is_near = len(own) <= _with_margin(share) and self._count <= _with_margin(self.most)
        return "told" if is_near else "refused"

    def _crowd(self) -> Iterable[Peer]:
        return max(self._of.values(), key=lambda peers: len(peers))

    def leave(self, peer: Peer, address: str) -> None:
        """Forget a connection."""
        client = household(address)
        own = self._of[client]
        del own[peer]
        self._count -= 1
        if not own:
            del self._of[client]
        if not self._count:
            self.emptied.set()


def _with_margin(limit: int) -> int:
    return limit + limit // 8


def _make_room(peers: Iterable[Peer], new: Peer) -> bool:
    """Drop the oldest connection that asks for nothing; False if all are busy."""
    quiet = next((peer for peer in peers if peer is not new and peer.is_quiet), None)
    if quiet is not None:
        quiet.abandon()
    return quiet is not None
