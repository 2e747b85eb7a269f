"""(p) Where an event's microseconds go, room by room, sampled in the serving process under load.

py-spy looks at every thread 250 times a second, from outside. A sample belongs to the innermost
frame that a room is known by; a room's microseconds are its share of the time, divided by the
events that came in it. Threads that wait for work are left out; the commit is mostly the disk's.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from . import flows
from .measure import Size, Unavailable
from .peers import program_of
from .report import Table
from .servers import Fleet, Served

A_SECOND = 250
CONNECTIONS = 64


@dataclass(frozen=True, slots=True)
class Room:
    """A part of an event's way, and the frames it is known by: functions or files."""

    name: str
    thread: str
    text: str
    frames: re.Pattern[str]


LOOP, WRITER, READERS = "loop", "writer", "readers"
ROOMS = tuple(
    Room(name, thread, text, re.compile(frames))
    for name, thread, text, frames in (
        ("accept", LOOP, "HTTP and ASGI, in and out", r"service/http/|uvicorn/"),
        ("sockets", LOOP, "uvloop itself: reads, writes, wake-ups", r"^Runner\.run "),
        ("parse", LOOP, "body, headers, identity: the event",
         r"service/(domain/(payload|event|units)|governance)|/triggers/"),
        ("route", LOOP, "flows, filters, keys, receipts",
         r"service/(intake/(router|emitter)|domain/trigger|project)"),
        ("hand over", LOOP, "rows made, given to the writer, callers woken", r"service/journal/"),
        ("batch", WRITER, "a transaction around what follows", r"^Writer\._write |^Batch\."),
        ("insert", WRITER, "event and run", r"journal/sqlite/append\.py"),
        ("commit", WRITER, "COMMIT with its fsync; checkpoints", r"^Writer\._c(ommit|heckpoint) "),
        ("schedule", LOOP, "slots, keys, what runs next", r"service/dispatch/"),
        ("claim", WRITER, "queued runs into slots", r"^Claims\."),
        ("look", READERS, "for queued runs and other reading", r"."),
        ("run", LOOP, "the attempt: context, arguments, the flow itself",
         r"flows\.py|service/(steps|pools)/|service/domain/binding\.py|dispatch/(attempts|executor)\.py"),
        ("record", WRITER, "steps and outcome", r"^Batch\.(_record|record_with|_update_waits)"),
    )
)  # fmt: skip
IDLE = re.compile(r"^(_worker \(concurrent/futures|Writer\._take |wait \(threading)")


def run(size: Size) -> list[Table]:
    """Profile accepting, and accepting with the run recorded."""
    table = Table(
        "p", "where an event's microseconds go",
        ("room", "thread", "what", "µs, accepted", "µs, accepted, run, recorded", "share"),
    )  # fmt: skip
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-bench-")))
        fleet = Fleet(folder, stack)
        accepted = _profile(fleet.turnout("queued", flows.OCCUPIED), folder, size)
        recorded = _profile(fleet.turnout("free", flows.FREE), folder, size)
    total = sum(recorded.values())
    for room in ROOMS:
        spent = recorded.get(room.name, 0.0)
        row = (accepted.get(room.name, 0.0), spent, f"{spent / total:.0%}")
        table.add(room.name, room.thread, room.text, *row)
    rest = recorded.get("", 0.0)
    table.add("rest", "any", "no room", accepted.get("", 0.0), rest, f"{rest / total:.0%}")
    table.add("all", "", "", sum(accepted.values()), total, "100%")
    largest = sorted(recorded, key=lambda name: -recorded[name])[:3]
    table.notes += [
        "the three largest: " + ", ".join(f"{name} {recorded[name]:.0f} µs" for name in largest),
        f"{CONNECTIONS} connections; threads run at the same time, so the sum is more than the time"
        " from one event to the next; `commit` waits for the disk most of the time",
    ]
    return [table]


def _profile(served: Served, folder: Path, size: Size) -> Mapping[str, float]:
    """Return microseconds an event by room, "" for what belongs to none."""
    seconds = 3 if size.quick else 8
    rates: list[float] = []

    def load() -> None:
        figures = served.load(seconds=seconds + 2, connections=CONNECTIONS)[1]
        rates.append(figures["rate"])

    served.load(seconds=1, connections=CONNECTIONS)
    samples = folder / f"{served.name}.samples"
    command = [program_of("py-spy", "py-spy"), "record", "--format", "raw", "--threads"]
    command += ["--rate", str(A_SECOND), "--duration", str(seconds), "--output", str(samples)]
    loading = threading.Thread(target=load)
    loading.start()
    try:
        done = subprocess.run(
            [*command, "--pid", str(served.pid)], capture_output=True, text=True, check=False
        )
    finally:
        loading.join()
    if done.returncode:
        raise Unavailable(f"py-spy failed: {done.stderr[-200:].strip()}")
    counts = _by_room(samples.read_text().splitlines())
    return {name: count / (A_SECOND * seconds) / rates[0] * 1e6 for name, count in counts.items()}


def _by_room(lines: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in lines:
        stack, count = line.rsplit(" ", 1)
        thread, *frames = stack.split(";")
        if frames and not IDLE.match(frames[-1]):
            counts[_room(thread, frames)] += int(count)
    return counts


def _room(thread: str, frames: list[str]) -> str:
    """Return the room of the innermost frame that has one, the specific before the general."""
    where = READERS
    if thread.endswith("MainThread"):
        where = LOOP
    elif any(frame.startswith("Writer._run ") for frame in frames):
        where = WRITER
    rooms = [room for room in ROOMS[::-1] if room.thread == where]
    for frame in reversed(frames):
        for room in rooms:
            if room.frames.search(frame):
                return room.name
    return ""
