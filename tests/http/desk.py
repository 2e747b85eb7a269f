"""The operator's API on a journal with runs: a desk that asks it, and what a problem looks like."""

from __future__ import annotations

from asyncio import to_thread
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from turnout.service.domain.decisions import Reason
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import Outcome, Run, RunError, RunState, Undo
from turnout.service.domain.units import utc_now
from turnout.service.domain.waiting import Waiting
from turnout.service.flowcontrol.use import Use
from turnout.service.governance.links import Links
from turnout.service.http.rest.application import create_rest
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.journal.open import OpenJournal, open_journal
from turnout.service.journal.records import (
    ClaimedRun,
    Decision,
    Entry,
    NewRun,
    StepRecord,
)
from turnout.service.operate.operator import Operator
from turnout.service.project import Project
from turnout.service.settings import Settings
from turnout.service.telemetry.metrics import Metrics

TOKEN = "a-token-of-enough-length"


def bill() -> None: ...


PROJECT = Project.of([Flow(function=bill, name="bill", file=__file__, line=30)])


@dataclass
class Desk:
    """A journal at rest with the API in front of it."""

    journal: OpenJournal
    operator: Operator
    settings: Settings
    project: Project = PROJECT
    emitters: Mapping[str, TriggerEmitter] = field(default_factory=dict)
    now: Any = utc_now
    links: Links = field(default_factory=lambda: Links(b"k" * 32, "http://desk"))
    app: FastAPI = field(init=False)
    http: httpx.AsyncClient = field(init=False)

    uses: Callable[[], Sequence[Use]] = tuple
    suspended: Callable[[], Mapping[str, str]] = dict

    def waits_for(self, run: Run) -> Waiting | None:
        """No service runs here."""

    async def append(
        self, state: RunState = RunState.QUEUED, *, flow: str = "bill", body: bytes = b"{}",
        source: str = "/shop", event_id: str = "", error: RunError | None = None,
    ) -> str:  # fmt: skip
        """Store an event with one run; returns the run's id."""
        run = NewRun(id=mint_id(), flow=flow, state=state, error=error)
        event = Event(
            id=event_id or mint_id(), source=source, type="order.placed", time=utc_now(),
            body=body, trigger="webhook:/orders", minted=not event_id,
        )  # fmt: skip
        await self.journal.append(
            [
                Entry(
                    event=event,
                    runs=[run],
                    decisions=[Decision("audit", Reason.FILTERED, "amount")],
                )
            ],
            now=utc_now(),
        )
        return run.id

    async def fail(self, *, undo: Undo | None = None) -> str:
        """Store a run that failed in its step `charge#1`, one step recorded, two lines logged."""
        run_id = await self.append()
        run = await self.journal.run(run_id)
        assert run is not None
        claimed: ClaimedRun = (await self.journal.claim([run.seq], now=utc_now()))[0]
        at = utc_now()
        await self.journal.record_step(
            claimed.claim,
            StepRecord(
                key="price#1", task="price", state="succeeded", tries=1, started_at=at,
                finished_at=at + timedelta(seconds=2), result=b'{"net": 5}',
            ),
        )  # fmt: skip
        outcome = Outcome(
            state=RunState.FAILED,
            error=RunError("ValueError", "no such card", "charge#1", "Traceback: line 7"),
            undo=undo,
            log=b'{"level":"info","message":"order.priced"}\n{"level":"error","message":"x"}\n',
        )
        await self.journal.record(claimed, outcome, started_at=at, now=utc_now())
        return run_id

    async def end(self, result: bytes) -> None:
        """Store a run that succeeded with a result."""
        run = await self.journal.run(await self.append())
        assert run is not None
        claimed: ClaimedRun = (await self.journal.claim([run.seq], now=utc_now()))[0]
        outcome = Outcome(state=RunState.SUCCEEDED, result=result)
        await self.journal.record(claimed, outcome, started_at=utc_now(), now=utc_now())

    async def get(self, path: str, **params: str) -> Any:
        answer = await self.http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, **params: str) -> Any:
        answer = await self.http.post(path, params=params)
        assert answer.is_success, answer.text
        return answer.json()


@asynccontextmanager
async def open_desk(tmp_path: Path) -> AsyncIterator[Desk]:
    journal = await open_journal(
        tmp_path, metrics=Metrics(), max_unfinished_runs=1000, min_free_bytes=0
    )
    chosen: dict[str, Any] = {"data": tmp_path, "api_token": TOKEN, "max_body_bytes": 2000}
    settings = Settings(**chosen)
    try:
        desk = Desk(journal, Operator(journal=journal, now=utc_now), settings)
        desk.app = await to_thread(create_rest, desk)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(desk.app),
            base_url="http://desk",
            headers={"Authorization": f"Bearer {TOKEN}"},
        ) as desk.http:
            yield desk
    finally:
        await journal.close()


def assert_problem(answer: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    for word in words:
        assert word in problem["detail"]
    return problem
