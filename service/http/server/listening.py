"""The listening socket: bound here, or handed over by whoever started the process.

A supervisor that binds the socket keeps it between two processes, so that peers who connect
meanwhile wait in its backlog (`LISTEN_FDS`, sd_listen_fds(3)). Not here: connections (`server`).
"""

from __future__ import annotations

import errno
import os
import socket

from turnout.service.domain.errors import SetupError
from turnout.service.settings import Settings

BACKLOG = 4096
"""Peers that may wait to be accepted; Linux takes the lower of it and net.core.somaxconn."""

_FIRST_DESCRIPTOR = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def listen(settings: Settings) -> socket.socket:
    """Return a socket listening where the settings say; raises `SetupError` with the fix.

    Peers may connect from now on; they are answered once `Server.run` starts.
    """
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SetupError(
            f"cannot listen on {host!r}: {error}; choose an address with --host"
        ) from None
    family, _, _, _, address = min(found, key=lambda one: one[0])  # IPv4 before IPv6
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise SetupError(_cannot_bind(error, host, port)) from None
    sock.setblocking(False)
    return sock


def inherit() -> socket.socket | None:
    """Return the socket that this process was started with, or None; raises `SetupError`.

    Takes the variables out of the environment: they are not meant for the processes of this one.
    """
    process, count, _ = (os.environ.pop(name, "") for name in _VARIABLES)
    if process != str(os.getpid()) or count in ("", "0"):
        return None
    if count != "1":
        raise SetupError(
            f"LISTEN_FDS={count}: one socket is served, so the socket unit has one ListenStream="
        )
    try:
        sock = socket.socket(fileno=_FIRST_DESCRIPTOR)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SetupError(
            f"LISTEN_FDS=1, but descriptor {_FIRST_DESCRIPTOR} is no socket: {error.strerror}"
        ) from None
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or not listens:
        sock.detach()  # it belongs to the supervisor
        raise SetupError(
            f"LISTEN_FDS=1, but descriptor {_FIRST_DESCRIPTOR} does not listen on TCP; "
            "the socket unit needs ListenStream= with an address and a port, and Accept=no"
        )
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def _cannot_bind(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is taken by another program; "
            "stop it, or choose another port with --port (0 picks a free one)"
        )
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges; choose one above 1023 with --port"
    return f"cannot listen on {host}:{port}: {error.strerror}; choose an address with --host"
