"""Limits that operators set for a while, and what `turnout limits` shows of what is in use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import Running, eventually, running
from turnout import dependency, flow, limit, throttle
from turnout.service.app.reload import reload_project
from turnout.service.domain.errors import InvalidData, NotFound, Refused
from turnout.service.operate.limits import use_documents
from turnout.service.operate.verbs import Pause, ResetLimit, SetLimit
from turnout.service.project import Project

NOW = datetime(2026, 11, 28, 22, tzinfo=UTC)
HOUR = timedelta(hours=1)


@dataclass
class Clock:
    """A wall clock that a test sets."""

    at: datetime = NOW

    def __call__(self) -> datetime:
        return self.at


@dataclass
class Work:
    """What runs of a flow do: they count themselves and wait until they are let go."""

    running: int = 0
    most: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def do(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go.wait()
        finally:
            self.running -= 1

    async def reaches(self, count: int) -> None:
        """Wait until so many run."""

        async def many() -> bool:
            return self.running == count

        await eventually(many)


@asynccontextmanager
async def serving(tmp_path: Path, *flows: Any, work: Work, **more: Any) -> AsyncIterator[Running]:
    """Serve flows; at the end what still runs is let go."""
    async with running(tmp_path, flows, **more) as service:
        yield service
        work.go.set()


async def settled(service: Running) -> None:
    """Let what may start begin: a write made now is behind every claim on its way."""
    for _ in range(3):
        await service.process.journal.append([], now=service.process.now())
        await asyncio.sleep(0.02)


async def shown(service: Running) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what is in use, by kind and name."""
    process = service.process
    documents = await use_documents(process.journal, process.uses(), process.now())
    return {(row["kind"], row["name"]): row for row in documents}


# ---------------------------------------------------------------- set and reset


async def test_a_higher_limit_starts_runs_at_once_and_a_lower_one_stops_none(
    tmp_path: Path,
) -> None:
    work = Work()

    @flow(concurrency=limit(1))
    async def bill() -> None:
        await work.do()

    async with serving(tmp_path, bill, work=work) as service:
        operator = service.process.operator
        for _ in range(6):
            await service.send()
        await work.reaches(1)
        made = await operator.do(SetLimit("bill", 4, HOUR, "month end", "ada"))
        assert (made.name, made.count, made.note, made.by) == (
            "flow:bill/limit", 4, "month end", "ada",
        )  # fmt: skip
        await work.reaches(4)
        await operator.do(SetLimit("bill", 2, HOUR))
        await settled(service)
        assert work.running == 4
        await operator.do(ResetLimit("bill"))
        assert (await shown(service))["limit", "bill"]["max"] == 1
        work.go.set()
        await service.all_finished()
        assert work.most == 4


async def test_a_named_limit_is_set_for_all_flows_that_share_it(tmp_path: Path) -> None:
    work = Work()

    @flow(concurrency=limit("db", 1), key=lambda event: event.id, mode="skip")
    async def bill() -> None:
        await work.do()

    @flow(concurrency=limit("db", 1))
    async def ship() -> None:
        await work.do()

    async with serving(tmp_path, bill, ship, work=work) as service:
        for _ in range(3):
            await service.send()
        await work.reaches(1)
        await service.process.operator.do(SetLimit("db", 3, HOUR))
        await work.reaches(3)
        await settled(service)
        row = (await shown(service))["limit", "db"]
        assert (row["used"], row["max"], row["declared"], row["queued"]) == (3, 3, 1, 3)
        assert row["flows"] == ["bill", "ship"]
        assert work.most == 3


async def test_a_limit_with_keys_is_set_for_each_key(tmp_path: Path) -> None:
    work = Work()

    @flow(concurrency=[limit(9), limit(1, per=lambda event: event.data["key"])])
    async def bill() -> None:
        await work.do()

    async with serving(tmp_path, bill, work=work) as service:
        for number in range(6):
            await service.send({"key": "ab"[number % 2]})
        await work.reaches(2)
        await service.process.operator.do(SetLimit("bill/limit.2", 2, HOUR))
        await work.reaches(4)
        row = (await shown(service))["limit", "bill/limit.2"]
        assert (row["used"], row["max"], row["declared"], row["key_count"]) == (4, 2, 1, 2)


async def test_an_override_survives_restarts_and_deploys_and_ends_by_itself(tmp_path: Path) -> None:
    work, clock = Work(), Clock()

    @flow(concurrency=limit(1))
    async def bill() -> None:
        await work.do()

    async def most(service: Running) -> Any:
        return (await shown(service))["limit", "bill"]["max"]

    async with serving(tmp_path, bill, work=work, now=clock) as service:
        await service.process.operator.do(SetLimit("bill", 4, HOUR))
        await reload_project(service.process, Project.of([bill]))
        assert await most(service) == 4
    clock.at += timedelta(minutes=59)
    async with serving(tmp_path, bill, work=work, now=clock) as service:
        assert await most(service) == 4
        clock.at += timedelta(minutes=1)
        service.process.clock_set()

        async def ended() -> bool:
            return await most(service) == 1 and not await service.process.journal.overrides(now=NOW)

        await eventually(ended)


@pytest.mark.parametrize("while_it_runs", [True, False])
async def test_an_override_follows_a_flow_that_is_renamed(
    tmp_path: Path, while_it_runs: bool
) -> None:
    work = Work()

    @flow(concurrency=limit(1))
    async def bill() -> None:
        await work.do()

    @flow(concurrency=limit(1), was="bill")
    async def charge() -> None:
        await work.do()

    async with serving(tmp_path, bill, work=work) as service:
        await service.process.operator.do(SetLimit("bill", 2, HOUR))
        if while_it_runs:
            await reload_project(service.process, Project.of([charge]))
            for _ in range(3):
                await service.send()
            await work.reaches(2)
    async with serving(tmp_path, charge, work=work) as service:
        row = (await shown(service))["limit", "charge"]
        assert (row["max"], row["declared"]) == (2, 1)
        await service.process.operator.do(ResetLimit("charge"))
        assert (await shown(service))["limit", "charge"]["max"] == 1


async def test_an_override_that_ended_while_the_service_was_down_is_gone(tmp_path: Path) -> None:
    work, clock = Work(), Clock()

    @flow(concurrency=limit(1))
    async def bill() -> None:
        await work.do()

    async with serving(tmp_path, bill, work=work, now=clock) as service:
        await service.process.operator.do(SetLimit("bill", 4, HOUR))
    clock.at += HOUR
    async with serving(tmp_path, bill, work=work, now=clock) as service:
        row = (await shown(service))["limit", "bill"]
        assert (row["max"], row["override"], row["declared"]) == (1, None, None)
        assert await service.process.journal.overrides(now=NOW) == {}


async def test_what_cannot_be_set_is_refused_by_name(tmp_path: Path) -> None:
    @flow(concurrency=limit(1))
    async def bill() -> None: ...

    @flow(concurrency=limit("bill", 2))
    async def ship() -> None: ...

    @flow(
        concurrency=[limit("database", 2), limit(3, per=lambda event: "one")],
        rate=throttle("crm", "5/s"),
        needs=dependency("mail"),
    )
    async def load() -> None: ...

    async with running(tmp_path, [bill, ship, load]) as service:
        operator = service.process.operator
        for name, words in (
            (
                "databse",
                r"no limit 'databse'; did you mean 'database'\?; limits: bill, database",
            ),
            ("ship", r"no limit 'ship'"),
            ("crm", r"^'crm' is a rate, which only flow files say; limits that can be set: bill, "),
            ("mail", r"^'mail' is a breaker, which only flow files say; limits that"),
        ):
            with pytest.raises(NotFound, match=words):
                await operator.do(SetLimit(name, 2, HOUR))
        with pytest.raises(Refused, match="'bill' is a named limit and a flow"):
            await operator.do(SetLimit("bill", 2, HOUR))
        for name, full in (
            ("flow:bill", "flow:bill/limit"),
            ("limit:bill", "limit:bill"),
            ("load", "flow:load/limit.2"),
            ("flow:load/limit.2", "flow:load/limit.2"),
            ("database", "limit:database"),
        ):
            assert (await operator.do(SetLimit(name, 2, HOUR))).name == full
        with pytest.raises(InvalidData, match="turnout pause"):
            await operator.do(SetLimit("database", 0, HOUR))
        with pytest.raises(InvalidData, match="longer than 0s"):
            await operator.do(SetLimit("database", 1, timedelta(0)))
        await operator.do(ResetLimit("database"))
        with pytest.raises(Refused, match="'database' is not overridden"):
            await operator.do(ResetLimit("database"))


# ---------------------------------------------------------------- what is in use


async def test_the_busiest_keys_of_a_limit_are_shown(tmp_path: Path) -> None:
    work = Work()

    @flow(concurrency=limit(3, per=lambda event: event.data))
    async def bill() -> None:
        await work.do()

    async with serving(tmp_path, bill, work=work) as service:
        for key, count in {"a": 1, "b": 3, "c": 2, "d": 1, "e": 1, "f": 1, "g": 1}.items():
            for _ in range(count):
                await service.send(key)
        await work.reaches(10)
        row = (await shown(service))["limit", "bill"]
        assert (row["used"], row["max"], row["key_count"], len(row["keys"])) == (10, 3, 7, 5)
        assert [(key["key"], key["used"]) for key in row["keys"][:2]] == [("b", 3), ("c", 2)]


async def test_a_throttle_shows_what_started_and_when_it_is_free_again(tmp_path: Path) -> None:
    clock = Clock()

    @flow(rate=throttle("crm", "2/m"))
    async def bill() -> None: ...

    async with running(tmp_path, [bill], now=clock) as service:
        for _ in range(4):
            await service.send()

        async def started() -> bool:
            return bool((await shown(service))["rate", "crm"]["used"] == 2)

        await eventually(started)
        clock.at += timedelta(seconds=10)
        row = (await shown(service))["rate", "crm"]
        assert (row["max"], row["queued"], row["next_free"]) == (2, 2, "2026-11-28T22:01:00Z")
        assert row["oldest_due_seconds"] == 10
        assert row["rule"] == 'throttle("crm", "2/m")'


async def test_a_breaker_shows_its_failures_and_when_it_is_tried_again(tmp_path: Path) -> None:
    clock = Clock()

    @flow(needs=dependency("crm", open_after="100% of 2", probe="30s"))
    async def bill() -> None:
        raise ConnectionError("refused")

    async with running(tmp_path, [bill], now=clock) as service:
        await service.finished((await service.send()).runs[0])
        row = (await shown(service))["breaker", "crm"]
        assert (row["used"], row["max"], row["state"]) == (1, 2, "closed")
        await service.finished((await service.send()).runs[0])
        row = (await shown(service))["breaker", "crm"]
        assert (row["state"], row["next_free"]) == ("open", "2026-11-28T22:00:30Z")
        assert "refused" in row["reason"]


async def test_the_slots_of_the_process_and_what_is_due_are_shown(tmp_path: Path) -> None:
    work = Work()

    @flow
    async def bill() -> None:
        await work.do()

    async with serving(tmp_path, bill, work=work, concurrency=2) as service:
        await service.process.operator.do(Pause("bill"))
        await service.send()
        row = (await shown(service))["slots", "concurrency"]
        assert (row["used"], row["max"], row["queued"]) == (0, 2, 1)
