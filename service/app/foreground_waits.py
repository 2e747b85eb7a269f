"""What a run in the foreground waits for: said once, answered by a person, or skipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

import orjson

from turnout.service.domain.clock import wall_clock
from turnout.service.domain.errors import InvalidData, Refused
from turnout.service.domain.run import UNFINISHED, Run, RunState
from turnout.service.domain.waiting import Cause, Waiting
from turnout.service.journal.records import Filter
from turnout.service.operate.verbs import Answer
from turnout.service.operate.waits import waits_of

from .process import Process

_LOOK_SECONDS = 0.2


class MovableClock:
    """The wall clock, which may be set ahead past a wait."""

    def __init__(self) -> None:
        self._wall = wall_clock()
        self._ahead = timedelta(0)

    def __call__(self) -> datetime:
        """Return the time, in UTC."""
        return self._wall() + self._ahead

    def pass_until(self, instant: datetime) -> None:
        """Set the clock to an instant, if that is ahead."""
        self._ahead += max(instant - self(), timedelta(0))


@dataclass(frozen=True, slots=True)
class Question:
    """An approval that a run waits for; `fields` names the class of its fields.

    `text` is the question, and `data` what the answer depends on, as the page shows them.
    """

    run_id: str
    step: str
    approval: str
    fields: str | None
    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


class Person(Protocol):
    """Whoever sits at the terminal."""

    @property
    def answers(self) -> bool:
        """Whether there is a terminal to ask at."""

    def tell(self, text: str) -> None:
        """Say what the run waits for."""

    async def ask(self, question: Question, problem: str | None) -> Answer:
        """Return the answer to an approval; `problem` is what was wrong with the last one."""


@dataclass
class Waits:
    """Looks at what the run waits for until it has ended."""

    process: Process
    clock: MovableClock
    person: Person
    skips: bool
    _told: set[str] = field(default_factory=set)

    async def until_ended(self, run_id: str) -> Run:
        """Return the run once it has ended; raises `Refused` where it never would."""
        while True:
            ended = await self.process.waiters.result(run_id, _LOOK_SECONDS)
            run = await self.process.journal.run(run_id)
            assert run is not None  # nothing is pruned here
            if ended is not None or run.state not in UNFINISHED:
                return run
            for each in await self._unfinished():
                await self._look_at(each, is_own=each.id == run_id)

    async def _unfinished(self) -> list[Run]:
        """Return the runs that wait: the run, and its children."""
        states = (RunState.WAITING, RunState.RETRYING, RunState.SCHEDULED)
        return [
            run
            for state in states
            for run in await self.process.journal.runs(Filter(state=state))
        ]  # fmt: skip

    async def _look_at(self, run: Run, *, is_own: bool) -> None:
        waiting = (await waits_of(self.process.journal, [run], self.process.waits_for)).get(run.id)
        if waiting is None:
            return
        polled = waiting.facts.get("poll") and waiting.facts["step"]
        key = f"{run.id} {polled or waiting.detail}"  # a poll is told once, not at each look
        if key not in self._told:
            self._told.add(key)
            whose = "it" if is_own else f"run {run.id} of {run.flow}"
            self.person.tell(f"{whose} waits {waiting.detail}{self._hint(waiting)}")
        if waiting.cause is Cause.APPROVAL:
            await self._answer(run, waiting)
        elif self.skips and run.due_at is not None:
            self.clock.pass_until(run.due_at)
            self.process.clock_set()
        elif waiting.cause is Cause.EVENT and run.due_at is None:
            await self._refuse_forever(waiting)

    def _hint(self, waiting: Waiting) -> str:
        is_sleep = waiting.cause is Cause.INSTANT and "poll" not in waiting.facts
        is_long = is_sleep and not self.skips
        return "; with --skip-waits it goes on at once" if is_long else ""

    async def _answer(self, run: Run, waiting: Waiting) -> None:
        for record in await self.process.journal.steps(run.seq):
            if record.key != waiting.facts.get("step"):
                continue
            note = orjson.loads(record.result or b"{}")
            question = Question(
                run.id,
                record.key,
                str(note.get("approval")),
                note.get("fields"),
                note.get("text") or "",
                note.get("data") or {},
            )
            await self._ask(question)

    async def _ask(self, question: Question) -> None:
        problem: str | None = None
        while True:
            if self.skips and question.fields is None:
                answer = Answer(
                    question.run_id,
                    approved=True,
                    by="--skip-waits",
                    via="terminal",
                    step=question.step,
                )
            elif self.person.answers:
                answer = await self.person.ask(question, problem)
            else:
                fix = (
                    "its fields need an answer"
                    if self.skips
                    else "--skip-waits approves what asks for no fields"
                )
                raise Refused(
                    f"nobody can answer the approval of {question.approval}: there is no terminal, "
                    f"and {fix}"
                )
            try:
                await self.process.operator.do(answer)
            except InvalidData as error:
                if not self.person.answers:
                    raise
                problem = str(error)
            else:
                return

    async def _refuse_forever(self, waiting: Waiting) -> None:
        """Raise `Refused` if nothing runs that could still send the event."""
        counts: Any = self.process.journal.counts()[0]
        busy = sum(count for state, count in counts.items() if state != RunState.WAITING)
        if not busy:
            raise Refused(f"it waits {waiting.detail}, and no running flow can send it")
