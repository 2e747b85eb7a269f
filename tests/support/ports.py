"""Loopback ports that nobody uses now, and that no outgoing connection will be given."""

from __future__ import annotations

import random
import socket

_chance = random.SystemRandom()
"""Not the chance that a test's seed repeats: two workers would be given the same ports."""


def free_port() -> int:
    """Return a port nobody listens on now."""
    return free_ports(1)


def free_ports(count: int) -> int:
    """Return the first of some neighbouring ports nobody listens on now."""
    while True:
        first = _chance.randrange(20_000, 32_000)  # Linux gives outgoing connections later ones
        if not any(listens(first + offset) for offset in range(count)):
            return first


def listens(port: int) -> bool:
    """Return whether a connection to a port is accepted."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
