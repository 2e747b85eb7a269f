"""What comes next while no service runs, in a file beside the journal.

A service that goes idle writes it, and the next one removes it as it starts.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import orjson

from turnout.service.journal.records import NextWake, Tick

from .files import write_whole

_NAME = "next-wake.json"


def write_next_wake(data: Path, wake: NextWake | None) -> None:
    """Write what comes next, whole or not at all; None removes it."""
    if wake is None:
        (data / _NAME).unlink(missing_ok=True)
        return
    ticks = [[tick.trigger, tick.at, tick.flows] for tick in wake.ticks]
    content = orjson.dumps({"url": wake.url, "at": wake.at, "ticks": ticks})
    write_whole(data / _NAME, content, synced=True)


def read_next_wake(data: Path) -> NextWake | None:
    """Return what comes next; None if no service has gone idle, or the file cannot be read."""
    try:
        found = orjson.loads((data / _NAME).read_bytes())
        at = found["at"]
        return NextWake(
            url=found["url"],
            at=None if at is None else datetime.fromisoformat(at),
            ticks=[
                Tick(trigger, datetime.fromisoformat(tick_at), tuple(flows))
                for trigger, tick_at, flows in found["ticks"]
            ],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
