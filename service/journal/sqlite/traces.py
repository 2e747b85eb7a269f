"""The spans of runs that are still to be sent: `Traces` in the contract.

A row is written with the first span of a run, and goes with the run. That its span was sent is
noted in a file first, in the moment the collector answers: the process may be killed before the
next commit. Not here: spans (`telemetry.traces`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw

from turnout.service.domain.event import Event
from turnout.service.domain.run import Run
from turnout.service.journal.records import EndedTrace

from .calls import Calls
from .columns import selected
from .counters import RunCounters
from .events import ReadEvent, event_from
from .runs import RUN_COLUMNS, RUN_SOURCE, run_from
from .statements import load
from .values import dump_list, micros
from .writer import CallJob

_SQL = load("traces")
_RUN = f"SELECT {RUN_COLUMNS} FROM {RUN_SOURCE} WHERE r.seq = ? AND r.finished_at IS NOT NULL"
_EVENT = f"SELECT {selected(ReadEvent._fields, 'e', body='NULL')} FROM events AS e WHERE e.seq = ?"
_NOTE = re.compile(r"^([0-9]{1,18}) ([0-9]{1,18})\n", re.MULTILINE)
_EVENT_OF_RUN = _EVENT.replace("= ?", "= (SELECT event_seq FROM runs WHERE seq = ?)")


class Tracing(Calls):
    """Notes whose span is owed, and tells it once the run has ended."""

    def owe_span(self, run_seq: int) -> asyncio.Future[None]:
        """Note that the span of a run must be sent once it has ended."""

        def write(connection: apsw.Connection, _counters: RunCounters) -> None:
            connection.execute(_SQL["owe"], (run_seq,))

        return self._writer.submit(CallJob(write))

    async def owed_spans(
        self,
        run_seqs: Sequence[int] | None = None,
        *,
        after: int = 0,
        limit: int,
        links: int,
    ) -> list[EndedTrace]:
        """Return what the owed spans of ended runs tell, by seq; see the contract."""

        def query(connection: apsw.Connection) -> list[EndedTrace]:
            rows: list[Any] = (
                connection.execute(_SQL["owed"], (after, limit)).fetchall()
                if run_seqs is None
                else connection.execute(_SQL["owed_by"], (dump_list(run_seqs),)).fetchall()
            )
            found = (_ended(connection, seq, links) for (seq,) in rows)
            return [each for each in found if each is not None]

        return await self.read(query)

    def note_sent(self, sent: Sequence[Run]) -> None:
        """Note at once, in any thread, that the spans of runs were sent."""
        # It begins with the end of a line that a full disk has cut off.
        lines = "\n" + "".join(f"{run.seq} {_ended_at(run)}\n" for run in sent)
        with suppress(OSError), self._notes.open("a", encoding="ascii") as notes:
            notes.write(lines)

    async def sent_spans(self, sent: Sequence[Run]) -> None:
        """Record that the spans of runs were sent, as they had ended then, and what was noted."""
        text = await asyncio.to_thread(_read, self._notes)
        ended = [(int(seq), int(at)) for seq, at in _NOTE.findall(text or "")]
        ended = sorted({*ended, *((run.seq, _ended_at(run)) for run in sent)})

        def write(connection: apsw.Connection, _counters: RunCounters) -> None:
            connection.executemany(_SQL["sent"], ended)

        await self._call(write)
        if text is not None:
            await asyncio.to_thread(_delete, self._notes)

    @property
    def _notes(self) -> Path:
        return self._folder / "sent-spans"


def _read(path: Path) -> str | None:
    """Return what is in a file, None where it is missing or cannot be read now."""
    with suppress(OSError):
        return path.read_text("ascii", "replace")
    return None


def _delete(path: Path) -> None:
    with suppress(OSError):  # recorded again, it counts at most as an end that was not
        path.unlink()


def _ended_at(run: Run) -> int:
    return 0 if run.finished_at is None else micros(run.finished_at)


def _ended(connection: apsw.Connection, seq: int, links: int) -> EndedTrace | None:
    row: Any = connection.execute(_RUN, (seq,)).fetchone()
    if row is None:
        return None
    run = run_from(row)
    event_row: Any = connection.execute(_EVENT_OF_RUN, (seq,)).fetchone()
    members: list[Event] = []
    if run.window_seq is not None:
        asked: list[Any] = connection.execute(_SQL["members"], (run.window_seq, links)).fetchall()
        found = (connection.execute(_EVENT, each).fetchone() for each in asked)
        members = [event_from(each) for each in found if each is not None]
    ends: int = connection.execute(_SQL["ends"], (seq,)).get
    return EndedTrace(run, event_from(event_row), ends, members)
