"""Reads of what unfinished runs wait for: events, people, instants, their position in the queue."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson

from turnout.service.domain.run import Run
from turnout.service.journal.records import (
    ApprovalAnswer,
    DueCount,
    InLine,
    OpenApproval,
    OpenStep,
    Wait,
)

from . import lines
from .reading import Reading
from .runs import LISTED_RUN_COLUMNS, run_from
from .statements import load
from .values import dump_list, instant

_MOST_OPEN_STEPS = 2000
_SQL = load("reads")
_WAITS = load("waits")


class WaitReading(Reading):
    """Tells what runs wait for."""

    async def waits(self, run_seq: int, key: str | None = None) -> list[Wait]:
        """Return a run's open waits, or only that of the step `key`."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["waits"], (run_seq, key)).fetchall()
        )
        return [
            Wait(key=key, topic=topic, woken=woken, latest=latest, answer=said and said.encode())
            for key, topic, woken, latest, said in rows
        ]

    async def queue_positions(self, runs: Sequence[InLine]) -> list[int]:
        """Return the position of each run among the queued ones of its line, from 1 to a bound."""
        return await self.read(lambda connection: lines.queue_positions(connection, runs))

    async def due_counts(self, now: datetime) -> list[DueCount]:
        """Return for each flow with unfinished runs how many are due, or will be."""
        return await self.read(lambda connection: lines.due_counts(connection, now))

    async def due_between(self, after: datetime, until: datetime) -> dict[str, int]:
        """Return, by flow, how many runs become due after one instant and until another."""
        return await self.read(lambda connection: lines.due_between(connection, after, until))

    async def is_polling(self) -> bool:
        """Whether any run polls, also while it waits for the next look."""
        query = _SQL["is_polling"]
        return await self.read(lambda connection: connection.execute(query).get is not None)

    async def open_steps(self, run_seqs: Sequence[int]) -> list[OpenStep]:
        """Return the steps at which these runs wait, up to a bound for all of them."""
        asked = (dump_list(run_seqs), _MOST_OPEN_STEPS)
        found: str = await self.read(
            lambda connection: connection.execute(_SQL["open_steps"], asked).get
        )
        return [
            OpenStep(run_seq, key, task, state, origin, orjson.loads(note or "{}"))
            for run_seq, key, task, state, origin, note in orjson.loads(found)
        ]

    async def open_approvals(self, limit: int) -> list[OpenApproval]:
        """Return the approvals that wait for an answer, those asked first before others."""
        found: str = await self.read(
            lambda connection: connection.execute(_SQL["open_approvals"], (limit,)).get
        )
        return [
            OpenApproval(
                run_id=run_id, flow=flow, key=key, asked_at=instant(at),
                note=orjson.loads(note or "{}"),
            )
            for run_id, flow, key, at, note in orjson.loads(found)
        ]  # fmt: skip

    async def answers(self, run_seq: int) -> list[ApprovalAnswer]:
        """Return who has answered the approvals of a run, those of earlier attempts too."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_WAITS["answers"], (run_seq,)).fetchall()
        )
        return [
            ApprovalAnswer(key, instant(at), bool(approved), by, via)
            for key, at, approved, by, via in rows
        ]

    async def due_runs(self, limit: int) -> list[Run]:
        """Return the runs that wait for an instant, those that are due first before others."""
        source = "runs AS r INDEXED BY runs_due JOIN events AS e ON e.seq = r.event_seq"
        text = (
            f"SELECT {LISTED_RUN_COLUMNS} FROM {source} WHERE (r.state = 'scheduled'"
            " OR r.state = 'retrying' OR r.state = 'waiting') AND r.due_at IS NOT NULL"
            " ORDER BY r.due_at LIMIT ?"
        )
        return await self.read(
            lambda connection: [run_from(row) for row in connection.execute(text, (limit,))]
        )

    async def is_used(self, link: bytes) -> bool:
        """Return whether the approval link with this digest was used."""
        found = await self.read(lambda connection: connection.execute(_SQL["is_used"], (link,)).get)
        return found is not None
