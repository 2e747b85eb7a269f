"""A file whose run a rule of its flow refuses stays where it is, with a decision, also for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import Running, eventually, running
from turnout import files, flow, move, rate_limit, unique
from turnout.service.domain.run import RunState
from turnout.service.journal.records import Filter
from turnout.service.operate.verbs import Pause, Resume

RULES: dict[str, dict[str, Any]] = {
    "rate_limit": {"rate": rate_limit("1/d")},
    "unique": {"unique": unique(lambda event: "all", until="1d")},
    "skip": {"mode": "skip", "timeout": "1h"},
    "latest": {"mode": "latest"},
    "start_timeout": {"start_timeout": "100ms"},
}


class Inbox:
    """A folder whose files start a flow under a rule; those that have run are moved away."""

    def __init__(self, folder: Path, rule: str) -> None:
        self.folder = folder / "inbox"
        self.folder.mkdir()
        self._data = folder / "data"
        self.read: list[str] = []
        self.go = asyncio.Event()

        @flow(on=files(f"{self.folder}/*", settle="10ms", then=move("done/")), **RULES[rule])
        async def load(path: Path) -> None:
            self.read.append(path.name)
            await self.go.wait()

        self._flow = load

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Running]:
        async with running(self._data, [self._flow]) as service:
            await service.process.start_triggers()
            yield service

    async def drop(self, service: Running, name: str, state: RunState) -> None:
        """Put a file into the folder, and wait until its run is in a state."""
        before = len(await service.process.journal.runs(Filter()))
        (self.folder / name).write_text(name)

        async def is_there() -> bool:
            runs = await service.process.journal.runs(Filter())
            return len(runs) > before and runs[0].state is state

        await eventually(is_there)

    async def moved(self, *names: str) -> None:
        """Wait until these files, and no other, are moved."""

        async def are_moved() -> bool:
            return sorted(path.name for path in self.folder.glob("done/*")) == sorted(names)

        await eventually(are_moved)


async def refuse(inbox: Inbox, service: Running, rule: str) -> None:
    """Have the rule refuse the run of the file `second`, but not of the others."""
    if rule in ("rate_limit", "unique"):
        inbox.go.set()
    if rule == "start_timeout":
        inbox.go.set()
        await service.process.operator.do(Pause("load"))
        await inbox.drop(service, "second", RunState.QUEUED)
        await asyncio.sleep(0.15)
        await service.process.operator.do(Resume("load"))
        return
    await inbox.drop(
        service, "first", RunState.SUCCEEDED if inbox.go.is_set() else RunState.RUNNING
    )
    await inbox.drop(service, "second", RunState.QUEUED if rule == "latest" else RunState.SKIPPED)
    if rule == "latest":
        await inbox.drop(service, "third", RunState.QUEUED)
    inbox.go.set()


MOVED = {"latest": ["first", "third"], "start_timeout": []}


@pytest.mark.parametrize("rule", RULES)
async def test_the_file_of_a_refused_run_stays_where_it_is(tmp_path: Path, rule: str) -> None:
    inbox = Inbox(tmp_path, rule)
    moved = MOVED.get(rule, ["first"])
    async with inbox.served() as service:
        await refuse(inbox, service, rule)
        runs = await service.all_finished()
        await inbox.moved(*moved)
        (refused,) = [run for run in runs if run.state is RunState.SKIPPED]
        (event,) = await service.process.journal.event(refused.event_id)
        assert [decision["reason"] for decision in event.decisions] == [rule]
    async with inbox.served() as service:  # neither moved nor taken for a new file by a restart
        await asyncio.sleep(0.3)
        await service.process.after_run_actions.sweep()
        assert len(await service.all_finished()) == len(runs)
    assert [path.name for path in inbox.folder.iterdir() if path.is_file()] == ["second"]
    assert sorted(inbox.read) == moved
