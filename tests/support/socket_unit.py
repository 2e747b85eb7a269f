"""What systemd does for a socket unit: it listens, and starts the service for who connects."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .program import STEP_SECONDS, Program

BACKLOG = 4096


@contextmanager
def listening() -> Iterator[socket.socket]:
    """Listen on a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        yield listener


@dataclass
class Starts:
    """What a socket unit has done: how often it started the program, and the codes of its ends."""

    count: int = 0
    codes: list[int] = field(default_factory=list)


@contextmanager
def started_on_connection(program: Program) -> Iterator[Starts]:
    """Start a program whenever somebody connects to its listener and it is not running."""
    starts, leaving = Starts(), threading.Event()
    assert program.listener is not None
    listener = program.listener

    def watch() -> None:
        while not leaving.is_set():
            if program.alive:
                leaving.wait(STEP_SECONDS)
                continue
            if len(starts.codes) < starts.count:
                starts.codes.append(program.child.returncode or 0)
            if select.select([listener], [], [], STEP_SECONDS)[0]:
                program.start()
                starts.count += 1

    watcher = threading.Thread(target=watch, name="socket unit", daemon=True)
    watcher.start()
    try:
        yield starts
    finally:
        leaving.set()
        watcher.join(10)
