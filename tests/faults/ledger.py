"""What a journal holds, read behind the service's back from a copy of its files.

A copy, because opening the journal itself could checkpoint or repair what the next start must
find. `broken_promises` is the one oracle of the fault tests: it sets what was promised (the
generator's ledger, the dropped files, the witness file) against what the journal says.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

FINISHED = frozenset({"succeeded", "failed", "cancelled", "skipped"})


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as the journal has it."""

    id: str
    flow: str
    event: str
    trigger: str
    state: str
    attempts: int
    crashes: int
    error: str | None
    result: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All runs by id, all recorded steps by (run, task) with their results, all events."""

    runs: Mapping[str, StoredRun]
    steps: Mapping[tuple[str, str], str]
    events: frozenset[tuple[str, str]]

    def of_trigger(self, kind: str) -> list[StoredRun]:
        """Return the runs started by triggers of a kind."""
        return [run for run in self.runs.values() if run.trigger.startswith(f"{kind}:")]

    def states(self, flow: str | None = None) -> Counter[str]:
        """Count runs by state."""
        return Counter(run.state for run in self.runs.values() if flow is None or run.flow == flow)


@contextmanager
def copied(data: Path) -> Iterator[sqlite3.Connection]:
    """Open a copy of a data folder's journal; consistent when its process is dead or stopped."""
    with tempfile.TemporaryDirectory(prefix="turnout-snapshot-") as folder:
        for name in ("journal.db", "journal.db-wal"):
            if (data / "journal" / name).exists():
                shutil.copyfile(data / "journal" / name, Path(folder) / name)
        with closing(sqlite3.connect(Path(folder) / "journal.db")) as copy:
            yield copy


def snapshot(data: Path) -> Snapshot:
    """Read the whole journal of a data folder."""
    with copied(data) as copy:
        runs = copy.execute(
            "SELECT runs.id, flow, events.id, trigger, state, attempts, crashes, error,"
            " CAST(result AS TEXT) FROM runs JOIN events ON events.seq = runs.event_seq"
        ).fetchall()
        steps = copy.execute(_STEPS.format(0)).fetchall()
        events = copy.execute("SELECT trigger, id FROM events").fetchall()
    return Snapshot(
        {row[0]: StoredRun(*row) for row in runs},
        {(run, task): result for _, run, task, result in steps},
        frozenset(events),
    )


_STEPS = (
    "SELECT steps.seq, runs.id, steps.task, CAST(steps.result AS TEXT) FROM steps"
    " JOIN runs ON runs.seq = steps.run_seq"
    " WHERE steps.state = 'succeeded' AND NOT superseded AND steps.seq > {}"
)


@dataclass(frozen=True, slots=True)
class Execution:
    """One line of the witness file: a step began to execute."""

    run: str
    task: str
    attempt: int
    at: int


@dataclass(slots=True)
class Witness:
    """The file every step execution of the tests' flows is written to, before anything else."""

    path: Path

    def size(self) -> int:
        """Return its length: executions behind it are later ones."""
        return self.path.stat().st_size if self.path.exists() else 0

    def executions(self) -> list[Execution]:
        """Return all executions in order."""
        found: list[Execution] = []
        at = 0
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else ():
            run, task, attempt = line.decode().split()
            found.append(Execution(run, task, int(attempt), at))
            at += len(line)
        return found


@dataclass(slots=True)
class Deaths:
    """What the journal held at each death of the process: these steps must never run again.

    `recorded` maps (run, task) to its result and to the length the witness file had then.
    """

    witness: Witness
    recorded: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    count: int = 0
    _last: int = 0

    def note(self, data: Path) -> None:
        """Read what was recorded since the death before; the process is dead."""
        self.count += 1
        size = self.witness.size()
        with copied(data) as copy:
            for seq, run, task, result in copy.execute(_STEPS.format(self._last)):
                self._last = max(self._last, seq)
                self.recorded.setdefault((run, task), (result, size))


def broken_promises(
    last: Snapshot,
    *,
    accepted: Mapping[str, tuple[str, ...]],
    files: Iterable[str] = (),
    deaths: Deaths | None = None,
) -> list[str]:
    """Return every promise of acceptance and of recorded steps that `last` shows broken."""
    found = _lost(last, accepted)
    found += _unfinished(last)
    found += _doubled(last)
    found += _files(last, list(files))
    return found if deaths is None else found + _rerun(deaths, last)


def _lost(last: Snapshot, accepted: Mapping[str, tuple[str, ...]]) -> list[str]:
    found = []
    for event, runs in accepted.items():
        if len(runs) != 1:
            found.append(f"event {event} was accepted with runs {runs}")
        found += [
            f"event {event} was accepted, its run {run} is not in the journal"
            for run in runs
            if run not in last.runs
        ]
    return found


def _unfinished(last: Snapshot) -> list[str]:
    return [
        f"run {run.id} of {run.event} is stuck in {run.state}"
        for run in last.runs.values()
        if run.state not in FINISHED
    ]


def _doubled(last: Snapshot) -> list[str]:
    counted = Counter((run.trigger, run.event, run.flow) for run in last.runs.values())
    return [f"{times} runs for {which}" for which, times in counted.items() if times > 1]


def _files(last: Snapshot, files: list[str]) -> list[str]:
    if not files:
        return []
    seen: Counter[str] = Counter()
    for run in last.of_trigger("files"):
        if run.result is not None:
            seen[json.loads(run.result)["file"]] += 1
    found = [f"file {name} has {seen[name]} runs" for name in files if seen[name] != 1]
    strangers = set(seen) - set(files)
    return found + [f"a run for {name}, which was never dropped" for name in strangers]


def _rerun(deaths: Deaths, last: Snapshot) -> list[str]:
    found = [
        f"step {task} of {run} was recorded as {result}, now {last.steps.get((run, task))}"
        for (run, task), (result, _) in deaths.recorded.items()
        if last.steps.get((run, task)) != result
    ]
    for line in deaths.witness.executions():
        _, size = deaths.recorded.get((line.run, line.task), ("", line.at + 1))
        if line.at >= size:
            found.append(f"step {line.task} of {line.run} ran again in attempt {line.attempt}")
    return found
