"""What every journal must do, written against the contract and no database.

To plug in a driver, a test module subclasses `JournalContract` and says how to `open` a journal on
a folder; opening the same folder again must find what was written. No test knows a seq that it was
not given, or a number of rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from turnout.service.domain.breaker import BreakerState, StoredBreaker
from turnout.service.domain.conditions import Conditions, RateLimitRule
from turnout.service.domain.decisions import Fact, Reason
from turnout.service.domain.errors import (
    ClaimLost,
    JournalError,
    NotFound,
    Overloaded,
    PositionsMoved,
    Refused,
    StateMoved,
)
from turnout.service.domain.event import CALLED, Event, mint_id
from turnout.service.domain.run import (
    FINISHED,
    UNFINISHED,
    Outcome,
    RunError,
    RunState,
    Start,
    StateWrite,
)
from turnout.service.domain.short_ids import Ambiguous
from turnout.service.journal.contract import Journal, Reads
from turnout.service.journal.records import (
    FAILED,
    REGISTERED,
    STATE,
    STATE_KEY,
    Appended,
    Cached,
    ChildEnd,
    Claim,
    ClaimedRun,
    Decision,
    DueCount,
    EndedEvent,
    Entry,
    Filter,
    InLine,
    Move,
    NewRun,
    Opening,
    RecordedArguments,
    Spent,
    StepRecord,
    StoredBudget,
    StoredOverride,
    StoredPause,
    StoredState,
    Taking,
    approval_topic,
    run_topic,
)

NOW = datetime(2025, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
S = RunState


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def make_event(event_id: str | None = None, **attributes: Any) -> Event:
    chosen: dict[str, Any] = {
        "source": "/hooks/orders", "type": "order.placed", "time": NOW, "body": b'{"amount": 1}',
        "trigger": "webhook:/orders", "minted": event_id is None,
    }  # fmt: skip
    return Event(id=event_id or mint_id(), **(chosen | attributes))


def make_run(flow: str = "bill", state: RunState = S.QUEUED, **more: Any) -> NewRun:
    return NewRun(id=mint_id(), flow=flow, state=state, **more)


def claim_of(entry: Entry, appended: Appended, index: int = 0) -> ClaimedRun:
    """A run that starts on insert, as the router prepares it."""
    run = entry.runs[index]
    return ClaimedRun(
        claim=Claim(run.seq, run.id, 1), flow=run.flow, event_seq=appended.event_seq,
        event=entry.event, attempt=1, crashes=0, replay=0, order_key=run.order_key,
        keys=run.keys, due_at=NOW,
    )  # fmt: skip


def counted(
    seconds: float, *, flow: str = "bill", rule_id: str = "throttle", key: str = ""
) -> Start:
    """Return a start that counts for ten seconds."""
    return Start(flow, rule_id, key, at(seconds), at(seconds + 10))


def step(key: str, state: Any = "succeeded", **more: Any) -> StepRecord:
    chosen: dict[str, Any] = {"task": key.split("#")[0], "tries": 1, "started_at": NOW} | more
    return StepRecord(key=key, state=state, **chosen)


def ended(state: RunState = S.SUCCEEDED, **more: Any) -> Outcome:
    return Outcome(state=state, **more)


async def put(journal: Journal, *runs: NewRun, event: Event | None = None, **more: Any) -> Appended:
    entry = Entry(event=event or make_event(), runs=list(runs), **more)
    return (await journal.append([entry], now=NOW))[0]


async def start(journal: Journal, flow: str = "bill", **more: Any) -> ClaimedRun:
    """Append one run that starts on insert and return it."""
    entry = Entry(event=make_event(), runs=[make_run(flow, S.RUNNING, **more)])
    return claim_of(entry, (await journal.append([entry], now=NOW))[0])


async def finish(journal: Journal, claimed: ClaimedRun, outcome: Outcome) -> None:
    await journal.record(claimed, outcome, started_at=NOW, now=at(1))


async def claim_all(journal: Journal, seqs: Sequence[int]) -> list[ClaimedRun]:
    return await journal.claim(seqs, now=at(2))


@dataclass(frozen=True)
class Counts:
    """Unfinished runs by state, dead letters by flow, and those of them that are not undone."""

    states: dict[str, int]
    dead: dict[str, int] = field(default_factory=dict)
    not_undone: dict[str, int] = field(default_factory=dict)


async def states(journal: Reads) -> list[StoredState]:
    return await journal.flow_states(None, 100)


async def expect_run(journal: Reads, run_id: str) -> Any:
    run = await journal.run(run_id)
    assert run is not None, f"run {run_id} is gone"
    return run


class JournalContract:
    """Subclass and give `open`; a driver whose counts are not exact at once overrides `counts`."""

    def open(self, folder: Path, **bounds: int) -> AbstractAsyncContextManager[Journal]:
        raise NotImplementedError

    async def counts(self, journal: Journal) -> Counts:
        """Return the counts of a journal once they include every write that has returned."""
        states, dead = journal.counts()
        left = {state: count for state, count in states.items() if count}
        return Counts(left, dict(dead), dict(journal.not_undone()))

    # ---------------------------------------------------------------- append

    async def test_an_event_comes_back_equal(self, tmp_path: Path) -> None:
        strange = make_event(
            "é-1", subject="a b", datacontenttype="text/plain", encoding="text",
            body=bytes(range(256)), headers={"x-a": "ÿ"}, params={"tenant": "t"},
            extensions={"fileurl": "file:///a%FF"}, tenant="other", hops=3,
            time=datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=timezone(timedelta(hours=5))),
        )  # fmt: skip
        plain = Event(id="p", source="s", type="t", time=datetime(1, 1, 2, tzinfo=UTC))
        async with self.open(tmp_path) as journal:
            await put(journal, make_run(), event=strange)
            await put(journal, make_run(), event=plain)
            queued = await journal.queued("bill", 0, 10)
            claims = await claim_all(journal, [item.seq for item in queued])
            assert [claimed.event for claimed in claims] == [strange, plain]
            assert [stored.event for stored in await journal.event("é-1")] == [strange]
        async with self.open(tmp_path) as journal:
            assert [stored.event for stored in await journal.event("p")] == [plain]

    async def test_no_body_and_an_empty_one_come_back_as_they_were(self, tmp_path: Path) -> None:
        none = Event(id="n", source="s", type="t", time=NOW, encoding="text")
        empty = replace(none, id="e", body=b"")
        async with self.open(tmp_path) as journal:
            await put(journal, make_run(), event=none)
            await put(journal, make_run(), event=empty)
            queued = await journal.queued("bill", 0, 10)
            claims = await claim_all(journal, [item.seq for item in queued])
            assert [claimed.event.has_body for claimed in claims] == [False, True]
        async with self.open(tmp_path) as journal:
            assert [stored.event.has_body for stored in await journal.event("n")] == [False]
            assert [stored.event.has_body for stored in await journal.event("e")] == [True]

    async def test_an_instant_beyond_utc_harms_nobody(self, tmp_path: Path) -> None:
        behind, ahead = (timezone(timedelta(hours=hours)) for hours in (-5, 5))
        last = make_event(time=datetime.max.replace(tzinfo=behind))
        first = make_event(time=datetime.min.replace(tzinfo=ahead))
        async with self.open(tmp_path) as journal:
            runs = [make_run(), make_run()]
            await put(journal, runs[0], event=last)
            await put(journal, runs[1], event=first)
            claims = await claim_all(journal, [run.seq for run in runs])
            assert [claimed.event.time for claimed in claims] == [
                datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC),
            ]  # fmt: skip

    async def test_an_event_and_its_runs_survive_reopening(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            first = await put(journal, make_run("bill"), make_run("ship"))
            assert len(first.runs) == 2
        async with self.open(tmp_path) as journal:
            run = await expect_run(journal, first.runs[0])
            assert (run.flow, run.state, run.attempts, run.queued_at) == ("bill", "queued", 0, NOW)
            assert run.event_id == first.event
            assert (await self.counts(journal)).states["queued"] == 2

    async def test_seqs_grow_in_arrival_order(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            runs = [make_run() for _ in range(300)]
            async with asyncio.TaskGroup() as group:
                for run in runs:
                    group.create_task(put(journal, run))
            seqs = [run.seq for run in runs]
            assert seqs == sorted(seqs) and len(set(seqs)) == 300
            queued = await journal.queued("bill", seqs[9], 500)
            assert [item.seq for item in queued] == seqs[10:]

    async def test_a_second_delivery_makes_no_run(self, tmp_path: Path) -> None:
        event = make_event("d-1")
        async with self.open(tmp_path) as journal:
            first = await put(journal, make_run(), event=event)
        async with self.open(tmp_path) as journal:
            again = await put(journal, make_run(), event=event)
            assert again.duplicate and not again.conflict
            assert (again.event_seq, again.event, again.runs) == (
                first.event_seq, "d-1", first.runs,
            )  # fmt: skip
            assert (await self.counts(journal)).states["queued"] == 1
            stored = (await journal.event("d-1"))[0]
            assert [made["reason"] for made in stored.decisions] == ["duplicate"]

    async def test_a_duplicate_in_the_same_batch_makes_no_run(self, tmp_path: Path) -> None:
        event = make_event("d-1")
        async with self.open(tmp_path) as journal:
            results: list[Appended] = []

            async def deliver() -> None:
                entries = [Entry(event=event, runs=[make_run()]) for _ in range(2)]
                results.extend(await journal.append(entries, now=NOW))

            async with asyncio.TaskGroup() as group:
                for _ in range(5):
                    group.create_task(deliver())
            assert [result.duplicate for result in results].count(False) == 1
            assert len({result.runs for result in results}) == 1
            assert len(await journal.queued("bill", 0, 99)) == 1

    async def test_the_same_id_with_another_body_is_a_conflict(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            first = await put(journal, make_run(), event=make_event("d-1"))
            other = await put(journal, make_run(), event=make_event("d-1", body=b"[]"))
            assert other.conflict and not other.duplicate and other.runs == first.runs
            stored = (await journal.event("d-1"))[0]
            assert [made["reason"] for made in stored.decisions] == ["conflict"]

    @pytest.mark.parametrize("part", ["tenant", "trigger", "source"])
    async def test_the_same_id_elsewhere_is_another_event(self, tmp_path: Path, part: str) -> None:
        async with self.open(tmp_path) as journal:
            first = await put(journal, make_run(), event=make_event("d-1"))
            other: dict[str, Any] = {part: "elsewhere"}
            second = await put(journal, make_run(), event=make_event("d-1", **other))
            assert not second.duplicate
            found = [stored.seq for stored in await journal.event("d-1")]
            assert found == [second.event_seq, first.event_seq]

    async def test_decisions_are_kept_and_bounded(self, tmp_path: Path) -> None:
        event = make_event("d-1")
        async with self.open(tmp_path) as journal:
            facts: dict[str, Fact] = {"condition": "x" * 300, "next_free": NOW, "count": 3}
            made = Decision("bill", Reason.FILTERED, "amount", facts)
            await put(journal, event=event, decisions=[made])
            for _ in range(50):
                await put(journal, event=event)
            stored = (await journal.event("d-1"))[0]
            assert stored.decisions[0] == {
                "flow": "bill", "reason": "filtered", "detail": "amount",
                "at": "2025-03-01T12:00:00.123456Z",
                "facts": {
                    "condition": "x" * 199 + "…", "count": 3,
                    "next_free": "2025-03-01T12:00:00.123456Z",
                },
            }  # fmt: skip
            assert 2 <= len(stored.decisions) <= 21

    async def test_what_no_run_has_begun_of_can_be_withdrawn(self, tmp_path: Path) -> None:
        def entry(name: str, *runs: NewRun) -> Entry:
            told = {"kafkarecord": name} if name == "e" else {}
            extensions = {"partition": "t/0", **told}
            event = make_event(extensions=extensions, trigger="t")
            return Entry(event=replace(event, id="other" if name == "e" else name), runs=list(runs))

        async with self.open(tmp_path) as journal:
            fates = {
                "a": [make_run("of", S.RUNNING)],
                "b": [make_run("of", order_key="k")],
                "c": [make_run("of"), make_run("also")],
                "d": [make_run("of"), make_run("also", S.RUNNING)],
                "e": [make_run("of")],
                "f": [make_run("also")],
                "g": [make_run("of", S.FAILED)],
                "h": [],
            }
            entries = [entry(name, *runs) for name, runs in fates.items()]
            entries[-1].awaited = "somebody"
            await journal.append(entries, trigger="t", positions={"t/0": Move(None, "8")}, now=NOW)
            other = make_event(trigger="u")
            await journal.append([Entry(event=other, runs=[make_run("of")])], trigger="u", now=NOW)
            [claimed] = await journal.queued("of", 0, 1)
            await claim_all(journal, [claimed.seq])  # that of b
            found = await journal.backlog("t", ["of"])
            assert list(found.waiting) == ["c", "e"]
            assert list(found.begun) == ["d", "f", "g", "h"], "those behind the first that waits"
            assert await journal.is_under_way("t", ["of"], ["t/0"], due_by=None)
            assert not await journal.is_under_way("t", ["of"], ["t/1"], due_by=None)
            before = (await self.counts(journal)).states
            seqs = list(found.waiting.values())
            await journal.withdraw(seqs, trigger="t", positions={"t/0": Move("8", "2")}, now=NOW)
            assert await journal.positions("t") == {"t/0": "2"}
            after = (await self.counts(journal)).states
            assert after["queued"] == before["queued"] - 3
            assert (await journal.backlog("t", ["of"])).waiting == {}
            again = [entry("c", make_run("of"))]
            await journal.append(again, trigger="t", positions={"t/0": Move("2", "8")}, now=NOW)
            assert list((await journal.backlog("t", ["of"])).waiting) == ["c"]
            # What has begun since it was listed is not withdrawn.
            listed = await journal.backlog("t", ["of"])
            queued = await journal.queued("of", 0, 9)
            await claim_all(journal, [run.seq for run in queued])
            await journal.withdraw(
                list(listed.waiting.values()), trigger="t", positions={}, now=NOW
            )
            assert len(await journal.event("c")) == 1
        async with self.open(tmp_path) as journal:
            last = max(one.seq for one in await journal.events(Filter(limit=99)))
            [new] = await journal.append([entry("z", make_run("of"))], trigger="t", now=NOW)
            assert new.event_seq > last

    async def test_a_position_moves_only_from_the_value_its_mover_knows(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            await journal.append([], trigger="t", positions={"0": Move(None, "5")}, now=NOW)
            for stale in (None, "4"):
                entry = Entry(event=make_event("late"), runs=[make_run()])
                moves = {"1": Move(None, "1"), "0": Move(stale, "9")}
                with pytest.raises(PositionsMoved) as refused:
                    await journal.append([entry], trigger="t", positions=moves, now=NOW)
                error = refused.value
                assert (error.trigger, error.partition) == ("t", "0")
                assert (error.expected, error.found) == (stale, "5")
            assert await journal.positions("t") == {"0": "5"}
            assert await journal.event("late") == [], "a mismatch stores nothing of its write"
            assert await journal.queued("bill", 0, 9) == []
            await journal.append([], trigger="t", positions={"0": Move("5", None)}, now=NOW)
            with pytest.raises(PositionsMoved):
                await journal.append([], trigger="t", positions={"0": Move("5", "6")}, now=NOW)
            assert await journal.positions("t") == {}

    async def test_moves_count_the_writes_submitted_before_them(self, tmp_path: Path) -> None:
        def moved(before: str | None, after: str) -> Any:
            entry = Entry(event=make_event(after), runs=[make_run()])
            return journal.append(
                [entry], trigger="t", positions={"0": Move(before, after)}, now=NOW
            )

        async with self.open(tmp_path) as journal:
            moves = ((None, "1"), ("1", "2"), ("1", "3"), ("2", "4"), (None, "5"))
            results = await asyncio.gather(
                *(moved(before, after) for before, after in moves), return_exceptions=True
            )
            refused = [isinstance(each, PositionsMoved) for each in results]
            assert refused == [False, False, True, False, True]
            assert await journal.positions("t") == {"0": "4"}
            assert sum(1 for _ in await journal.events(Filter())) == 3

    async def test_events_are_withdrawn_only_from_the_position_that_is_known(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            event = make_event("a", trigger="t")
            entry = Entry(event=event, runs=[make_run("of")])
            await journal.append([entry], trigger="t", positions={"0": Move(None, "1")}, now=NOW)
            seqs = list((await journal.backlog("t", ["of"])).waiting.values())
            with pytest.raises(PositionsMoved):
                await journal.withdraw(seqs, trigger="t", positions={"0": Move("2", None)}, now=NOW)
            assert len((await journal.backlog("t", ["of"])).waiting) == 1
            await journal.withdraw(seqs, trigger="t", positions={"0": Move("1", None)}, now=NOW)
            assert (await journal.backlog("t", ["of"])).waiting == {}
            assert await journal.positions("t") == {}

    async def test_positions_move_with_events_and_alone(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            event = make_event("d-1")
            entry = Entry(event=event, runs=[make_run()])
            moves = {"0": Move(None, "5"), "1": Move(None, "6")}
            await journal.append([entry], trigger="t", positions=moves, now=NOW)
            assert await journal.positions("t") == {"0": "5", "1": "6"}
            # a duplicate's positions are written all the same
            repeat = Entry(event=event, runs=[make_run()])
            await journal.append([repeat], trigger="t", positions={"0": Move("5", "7")}, now=NOW)
            moves = {"1": Move("6", None), "2": Move(None, "x")}
            await journal.append([], trigger="t", positions=moves, now=NOW)
            await journal.append([], trigger="u", positions={"0": Move(None, "1")}, now=NOW)
        async with self.open(tmp_path) as journal:
            assert await journal.positions("t") == {"0": "7", "2": "x"}
            assert await journal.positions("nobody") == {}

    async def test_one_bad_entry_stores_nothing_of_its_call(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            taken = make_run()
            await put(journal, taken)
            clash = make_run()
            clash.id = taken.id
            good = Entry(event=make_event("good"), runs=[make_run()])
            bad = Entry(event=make_event("bad"), runs=[clash])
            with pytest.raises(JournalError):
                moves = {"0": Move(None, "1")}
                await journal.append([good, bad], trigger="t", positions=moves, now=NOW)
            assert await journal.event("good") == []
            assert await journal.positions("t") == {}
            assert (await self.counts(journal)).states["queued"] == 1

    async def test_one_bad_write_fails_its_caller_only(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            taken = make_run()
            await put(journal, taken)
            clash = make_run()
            clash.id = taken.id
            good = [make_run() for _ in range(20)]
            results = await asyncio.gather(
                *(put(journal, run) for run in good[:10]),
                put(journal, clash),
                *(put(journal, run) for run in good[10:]),
                return_exceptions=True,
            )
            assert [isinstance(result, Exception) for result in results].count(True) == 1
            assert isinstance(results[10], Exception)
            assert (await self.counts(journal)).states["queued"] == 21
            assert len(await journal.queued("bill", 0, 99)) == 21

    async def test_too_many_unfinished_runs_are_refused(self, tmp_path: Path) -> None:
        async with self.open(tmp_path, max_unfinished_runs=3) as journal:
            results = await asyncio.gather(
                *(put(journal, make_run(state=S.RUNNING)) for _ in range(6)),
                return_exceptions=True,
            )
            assert [isinstance(result, Overloaded) for result in results].count(True) == 3
            # what needs no run is taken, and so is a run once one has ended
            await put(journal, decisions=[Decision("bill", Reason.FILTERED)])
            await journal.cancel((await journal.runs(Filter()))[0].id, now=NOW)
            await put(journal, make_run())

    # ---------------------------------------------------------------- a run's life

    async def test_claim_run_record(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await put(journal, make_run(order_key="k", keys={"limit": "l"}, code_version="c1"))
            item = (await journal.queued("bill", 0, 1))[0]
            assert (item.order_key, item.keys, item.isolated) == ("k", {"limit": "l"}, False)
            claimed = (await journal.claim([item.seq], now=at(1)))[0]
            assert (claimed.attempt, claimed.crashes, claimed.due_at) == (1, 0, NOW)
            assert (await self.counts(journal)).states == {"running": 1}
            outcome = ended(result=b'{"a":1}', reason="fine")
            await journal.record(claimed, outcome, started_at=at(1), now=at(2))
            run = await expect_run(journal, claimed.claim.run_id)
            assert (run.state, run.attempts, run.result) == ("succeeded", 1, b'{"a":1}')
            assert (run.reason, run.started_at, run.finished_at) == ("fine", at(1), at(2))
            assert run.code_version == "c1"
            assert "running" not in (await self.counts(journal)).states

    async def test_the_latest_instant_of_the_newest_rows_is_known(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            assert await journal.last_recorded_at() is None
            claimed = await start(journal)
            assert await journal.last_recorded_at() == NOW
            await journal.record(claimed, ended(), started_at=NOW, now=at(7))
        async with self.open(tmp_path) as journal:
            assert await journal.last_recorded_at() == at(7)
            await journal.append([Entry(event=make_event(), runs=[])], now=at(60))
            assert await journal.last_recorded_at() == at(60)

    async def test_a_run_born_running_is_recorded_under_token_1(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            await finish(journal, claimed, ended())
            assert (await expect_run(journal, claimed.claim.run_id)).state == "succeeded"

    async def test_a_run_is_claimed_once(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            runs = [make_run(), make_run("ship")]
            await put(journal, *runs)
            seqs = [run.seq for run in runs]
            asked = [*seqs, *seqs, seqs[-1] + 99]  # each twice, and one that is no run's
            results = await asyncio.gather(*(claim_all(journal, asked) for _ in range(4)))
            assert sorted(run.claim.run_seq for claims in results for run in claims) == seqs

    async def test_an_untouched_run_gets_the_claim_at_hand(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            firsts: dict[int, ClaimedRun] = {}
            for _ in range(3):
                entry = Entry(event=make_event(), runs=[make_run()])
                first = claim_of(entry, (await journal.append([entry], now=NOW))[0])
                firsts[first.claim.run_seq] = first
            untouched, cancelled, handed_back = firsts.values()
            await journal.cancel(cancelled.claim.run_id, now=NOW)
            (claimed,) = await claim_all(journal, [handed_back.claim.run_seq])
            await finish(journal, claimed, ended(S.QUEUED, counts=False))
            claims = await journal.claim(list(firsts), now=at(3), untouched=firsts)
            assert claims[0] is untouched
            assert (claims[1].claim.run_seq, claims[1].claim.token) == (
                handed_back.claim.run_seq,
                2,
            )
            assert len(claims) == 2
            assert (await self.counts(journal)).states == {"running": 2}
            await asyncio.gather(*(finish(journal, each, ended()) for each in claims))

    async def test_a_stale_token_changes_nothing(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            others = [await start(journal) for _ in range(5)]
            await finish(journal, claimed, ended(S.QUEUED, counts=False))
            fresh = (await claim_all(journal, [claimed.claim.run_seq]))[0]
            assert fresh.claim.token > claimed.claim.token and fresh.attempt == 1
            results = await asyncio.gather(
                *(finish(journal, other, ended()) for other in others),
                finish(journal, claimed, ended(S.FAILED)),
                journal.record_step(claimed.claim, step("a")),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [type(None)] * 5 + [ClaimLost] * 2
            run = await expect_run(journal, claimed.claim.run_id)
            assert run.state == "running" and not run.dead
            assert await journal.steps(claimed.claim.run_seq) == []
            assert await self.counts(journal) == Counts({"running": 1})

    async def test_an_outcome_is_recorded_once(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            results = await asyncio.gather(
                finish(journal, claimed, ended()),
                finish(journal, claimed, ended(S.FAILED)),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [type(None), ClaimLost]
            assert (await expect_run(journal, claimed.claim.run_id)).state == "succeeded"

    async def test_state_is_kept_with_a_success_by_whoever_has_read_the_newest(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            assert journal.flow_state("bill", "") is None
            first, second, third = [await start(journal) for _ in range(3)]
            await finish(journal, first, ended(state_write=StateWrite("", 0, b"1")))
            kept = journal.flow_state("bill", "")
            assert kept is not None
            assert (kept.version, kept.value, kept.run_id) == (1, b"1", first.claim.run_id)
            for lost in (StateWrite("", 0, b"9"), StateWrite("", 2, b"9")):
                with pytest.raises(StateMoved, match="another run of flow 'bill' has changed"):
                    await finish(journal, second, ended(state_write=lost))
            run = await journal.run(second.claim.run_id)
            assert run is not None and run.state is S.RUNNING
            await finish(journal, second, ended(state_write=StateWrite("", 1, b"2")))
            await finish(journal, third, ended(state_write=StateWrite("key", 0, b'"x"')))
        async with self.open(tmp_path) as journal:
            listed = [(one.key, one.version, one.value) for one in await states(journal)]
            assert listed == [("", 2, b"2"), ("key", 1, b'"x"')]
            await journal.rename_flows({"bill": "charge"})
            assert {one.flow for one in await states(journal)} == {"charge"}

    async def test_of_two_successes_at_once_one_keeps_the_state(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            runs = [await start(journal) for _ in range(2)]
            writes = (ended(state_write=StateWrite("", 0, value)) for value in (b"1", b"2"))
            ends = [finish(journal, run, one) for run, one in zip(runs, writes, strict=True)]
            came = await asyncio.gather(*ends, return_exceptions=True)
            assert [isinstance(one, StateMoved) for one in came].count(True) == 1
            found = [await expect_run(journal, run.claim.run_id) for run in runs]
            assert {run.state for run in found} == {S.SUCCEEDED, S.RUNNING}

    async def test_a_run_that_could_not_keep_its_state_starts_over_from_where_it_read_it(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            run = await start(journal)
            for one in (step("before#1"), step(STATE_KEY, task=STATE), step("after#1")):
                await journal.record_step(run.claim, one)
            await finish(
                journal, run, ended(S.QUEUED, counts=False, state_write=StateWrite("", 0, b"1"))
            )
            assert [one.key for one in await journal.steps(run.claim.run_seq)] == ["before#1"]
            assert journal.flow_state("bill", "") is None

    async def test_what_a_called_run_returned_is_read_until_it_is_retried(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            await finish(journal, claimed, ended(result=b"null", returned=b"pickle"))
            assert await journal.child(claimed.claim.run_id) == ChildEnd(
                claimed.claim.run_id, S.SUCCEEDED, b"null", None, b"pickle"
            )
            await journal.retry(claimed.claim.run_id, None, now=NOW)
            assert await journal.child(claimed.claim.run_id) == ChildEnd(
                claimed.claim.run_id, S.QUEUED, None, None
            )
            assert await journal.child("none") is None

    async def test_what_a_call_was_given_is_kept_with_its_event(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            run = make_run()
            await put(journal, run, event=make_event(exact=b"\x80pickle"))
            (claimed,) = await journal.claim([run.seq], now=NOW)
            assert claimed.event.exact == b"\x80pickle"

    async def test_every_legal_outcome_is_counted(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            for state in sorted((FINISHED | UNFINISHED) - {S.SCHEDULED, S.RUNNING}):
                claimed = await start(journal)
                await finish(journal, claimed, ended(state, due_at=at(9)))
                run = await expect_run(journal, claimed.claim.run_id)
                assert run.state == state
                assert (run.finished_at is not None) == (state in FINISHED)
                assert run.dead == (state is S.FAILED)
            left = {"queued": 1, "retrying": 1, "waiting": 1}
            assert await self.counts(journal) == Counts(left, {"bill": 1})

    async def test_retrying_comes_due_and_spends_an_attempt(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            error = RunError("ValueError", "no", traceback="line 1")
            claimed = await start(journal)
            outcome = ended(S.RETRYING, due_at=at(60), error=error, log=b'{"event":"x"}\n')
            await finish(journal, claimed, outcome)
            assert await journal.next_due_at() == at(60)
            assert await journal.due(at(59.999999), 10) == []
            assert (await claim_all(journal, [item.seq for item in await journal.due(at(60), 9)]))[
                0
            ].attempt == 2
            attempt = (await journal.attempts(claimed.claim.run_seq))[0]
            assert (attempt.attempt, attempt.state, attempt.error) == (1, "retrying", error)
            assert attempt.log == b'{"event":"x"}\n'

    async def test_due_lists_the_longest_due_first(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            for seconds in (30, 10, 20):
                await put(journal, make_run(state=S.SCHEDULED, due_at=at(seconds)))
            assert await journal.next_due_at() == at(10)
            assert [item.due_at for item in await journal.due(at(25), 9)] == [at(10), at(20)]
            (first,) = await journal.due(at(99), 1)
            (second,) = await journal.due(at(99), 1, after=first)
            assert (first.due_at, second.due_at) == (at(10), at(20))

    async def test_words_no_encoding_holds_do_not_stop_an_outcome(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            error = RunError("OSError", "no file 'a\udcff'", traceback="a\udcff")
            await journal.record_step(claimed.claim, step("a#1", "failed", error=error))
            await finish(journal, claimed, ended(S.FAILED, error=error, reason="\udcff"))
            run = await expect_run(journal, claimed.claim.run_id)
            assert run.error.message == "no file 'a\\udcff'"

    async def test_handing_back_spends_no_attempt(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            await finish(journal, claimed, ended(S.QUEUED, counts=False))
            run = await expect_run(journal, claimed.claim.run_id)
            assert (run.state, run.attempts) == ("queued", 0)
            assert await journal.attempts(claimed.claim.run_seq) == []

    # ---------------------------------------------------------------- rates

    async def test_starts_are_written_with_what_starts_them(self, tmp_path: Path) -> None:
        first, claimed, gone = (counted(seconds) for seconds in (0, 1, 2))
        async with self.open(tmp_path) as journal:
            event = make_event("a")
            await put(journal, make_run(state=S.RUNNING, starts=[first]), event=event)
            await put(journal, make_run(state=S.RUNNING, starts=[gone]), event=event)
            kept, cancelled = make_run(), make_run()
            for run in (kept, cancelled):
                await put(journal, run)
            await journal.cancel(cancelled.id, now=NOW)
            runs = await journal.claim(
                [kept.seq, cancelled.seq],
                now=at(1),
                starts={kept.seq: [claimed], cancelled.seq: [gone]},
            )
            assert [run.claim.run_id for run in runs] == [kept.id]
            assert await journal.starts() == [first, claimed]
        async with self.open(tmp_path) as journal:
            assert await journal.starts() == [first, claimed]

    async def test_starts_follow_their_flow_and_go_when_they_count_no_more(
        self, tmp_path: Path
    ) -> None:
        shared = counted(5, flow="", rule_id="throttle:crm", key="acme")
        async with self.open(tmp_path) as journal:
            for start in (counted(0), counted(5), shared):
                await put(journal, make_run(state=S.RUNNING, starts=[start]))
            await journal.rename_flows({"bill": "charge"})
            await self.prune(journal, now=at(12))
            assert await journal.starts() == [counted(5, flow="charge"), shared]

    async def test_a_rate_limit_refuses_what_is_over_it_and_forgets_old_runs(
        self, tmp_path: Path
    ) -> None:
        rule = RateLimitRule("rate_limit", True, 2, timedelta(seconds=10), 'rate_limit("2/10s")')

        async def accepts(journal: Journal, seconds: float, key: str | None = "a") -> bool:
            run = make_run(keys={"rate_limit": key}, conditions=Conditions(rate_limits=(rule,)))
            (stored,) = await journal.append(
                [Entry(event=make_event(), runs=[run])], now=at(seconds)
            )
            assert (run.id in stored.refused) is bool(stored.decided)
            return run.id not in stored.refused

        async with self.open(tmp_path) as journal:
            assert [await accepts(journal, seconds) for seconds in (0, 5, 9)] == [True, True, False]
            assert await accepts(journal, 9, "b")
            assert await accepts(journal, 9, None)
        async with self.open(tmp_path) as journal:
            await self.prune(journal, now=at(12))
            assert [await accepts(journal, seconds) for seconds in (12, 12)] == [True, False]
            await journal.rename_flows({"bill": "charge"})
            assert await accepts(journal, 12), "the old name has counted nothing"

    async def test_a_rate_limit_does_not_count_what_is_withdrawn(self, tmp_path: Path) -> None:
        whole = RateLimitRule("rate_limit", False, 4, timedelta(seconds=60), "4/m")
        keyed = RateLimitRule("rate_limit.2", True, 3, timedelta(seconds=60), "3/m, per=…")

        async with self.open(tmp_path) as journal:

            async def arrives(seconds: float, key: str | None = "a") -> Appended:
                conditions = Conditions(rate_limits=(whole, keyed))
                run = make_run(keys={"rate_limit.2": key}, conditions=conditions)
                entry = Entry(event=make_event(trigger="t"), runs=[run])
                (stored,) = await journal.append([entry], now=at(seconds))
                return stored

            _first, second, third = [await arrives(seconds) for seconds in (0, 1, 2)]
            await journal.withdraw([second.event_seq], trigger="t", positions={}, now=NOW)
            assert not (await arrives(3)).refused, "two of the key are left"
            assert (await arrives(4)).refused, "three are accepted"
            assert not (await arrives(5, None)).refused, "three are left of all"
            assert (await arrives(6, None)).refused, "four are accepted"
            assert not (await arrives(60.5)).refused, "the first counts no more"
            assert (await arrives(61)).refused, "the third and the fourth count in their order"
            await journal.withdraw([third.event_seq], trigger="t", positions={}, now=NOW)
            assert not (await arrives(61)).refused

    async def test_a_queued_run_is_known_by_what_it_waited_for(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            backs_off, sleeps, retries = [await start(journal) for _ in range(3)]
            await put(journal, make_run(state=S.SCHEDULED, due_at=at(1)))
            await journal.record_step(backs_off.claim, step("fetch", "retrying"))
            for run, state in (
                (backs_off, S.RETRYING),
                (sleeps, S.WAITING),
                (retries, S.RETRYING),
            ):
                await finish(journal, run, ended(state, due_at=at(1), counts=run is retries))
            due = await journal.due(at(1), 10)
            assert [(run.begun, run.resumes) for run in due] == [
                (True, True),
                (True, True),
                (True, False),
                (False, False),
            ]
            assert all(run.queued_at == NOW for run in due)

    async def test_queued_for_key(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            runs = [make_run(order_key=key, keys={"limit": "all"}) for key in ("a", "b", "a")]
            for run in runs:
                await put(journal, run)
            await put(journal, make_run("ship", order_key="a"))
            first = await journal.queued_for_key("bill", "order", "a", 9)
            assert [item.seq for item in first] == [runs[0].seq, runs[2].seq]
            assert [item.keys for item in first] == [{"limit": "all"}] * 2
            assert len(await journal.queued_for_key("bill", "limit", "all", 2)) == 2
            later = await journal.queued_for_key("bill", "limit", "all", 2, first[0].seq)
            assert [item.seq for item in later] == [run.seq for run in runs[1:]]
            await claim_all(journal, [runs[0].seq])
            first = await journal.queued_for_key("bill", "order", "a", 9)
            assert [item.seq for item in first] == [runs[2].seq]

    @pytest.mark.parametrize("priority", [None, 1])
    async def test_a_retried_run_of_an_ordering_key_arrives_again(
        self, tmp_path: Path, priority: int | None
    ) -> None:
        names: dict[int, str] = {}

        async def add(name: str, order_key: str | None, *, starts: bool = False) -> NewRun:
            state = S.RUNNING if starts else S.QUEUED
            run = make_run("bill", state, order_key=order_key, keys={"limit": "all"})
            run.priority = priority
            await put(journal, run)
            names[run.seq] = name
            return run

        async def fails(name: str, order_key: str | None) -> str:
            run = await add(name, order_key)
            (claimed,) = await journal.claim([run.seq], now=NOW)
            await finish(journal, claimed, ended(S.FAILED, error=RunError("E", "no")))
            return run.id

        async def listed(*, passes: str = "", key: str = "a") -> list[str]:
            every = await journal.queued("bill", 0, 9, priority)
            first = every[0].arrival
            parts = [
                *await journal.queued("bill", 0, 1, priority),
                *await journal.queued("bill", first, 9, priority),
            ]
            page = await journal.queued_past("bill", 0, 9, {"order": [passes]}, priority)
            at_limit = await journal.queued_for_key("bill", "limit", "all", 1, 0, priority)
            at_limit += await journal.queued_for_key("bill", "limit", "all", 9, first, priority)
            of_key = await journal.queued_for_key("bill", "order", key, 9)
            assert every == parts == page.runs == at_limit
            assert of_key == [run for run in every if run.order_key == key]
            assert page.up_to >= every[-1].arrival
            asked = [InLine(run.arrival, "bill", None, None) for run in every]
            asked += [InLine(run.arrival, "bill", "limit", "all") for run in every]
            asked += [InLine(run.arrival, "bill", "order", key) for run in of_key]
            numbers = [*range(1, len(every) + 1)]
            assert await journal.queue_positions(asked) == [
                *numbers, *numbers, *numbers[: len(of_key)],
            ]  # fmt: skip
            return [names[run.seq] for run in every]

        async with self.open(tmp_path) as journal:
            first, blocking, other = [
                await fails(name, key) for name, key in (("1", "a"), ("b", "b"), ("n", None))
            ]
            for name in "23":
                await add(name, "a")
            run = (await journal.retry(first, None, now=at(1))).run
            assert run.arrival > run.seq
            assert await listed() == ["2", "3", "1"]
        async with self.open(tmp_path) as journal:
            assert await listed() == ["2", "3", "1"]
            four = await add("4", "a")
            assert four.seq > run.arrival
            assert (await journal.retry(blocking, None, blocks=True, now=at(1))).run.seq == 2
            await journal.retry(other, None, now=at(1))
            assert await listed() == ["b", "n", "2", "3", "1", "4"]
            (claimed,) = await journal.claim([1], now=at(2))
            await journal.cancel(claimed.claim.run_id, now=at(2))
            await journal.retry(claimed.claim.run_id, None, blocks=True, now=at(2))
            assert await listed() == ["b", "n", "2", "3", "4", "1"]
            await claim_all(journal, [1, 2])
            assert await listed() == ["n", "2", "3", "4"]
            await journal.rescue(now=at(3))
            assert await listed() == ["b", "n", "2", "3", "4", "1"]

    async def test_a_retried_run_gets_the_class_of_its_ordering_key(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            runs = [
                make_run(order_key="a", keys={"order": "a"}, priority=level) for level in (3, 1)
            ]
            await put(journal, runs[0])
            await journal.cancel(runs[0].id, now=NOW)
            await put(journal, runs[1])
            await journal.retry(runs[0].id, None, now=at(1))
            assert [run.seq for run in await journal.queued("bill", 0, 9, 1)] == [2, 1]
            assert await journal.queued("bill", 0, 9, 3) == []

    async def test_queued_runs_that_keys_block_are_passed_over(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            busy, free, none, old, ordered, named, begun = runs = [
                make_run(keys={"limit": "busy"}),
                make_run(keys={"limit": "free"}),
                make_run(keys={"limit": None}),
                make_run(),
                make_run(order_key="x", keys={"limit": "busy"}),
                make_run(keys={"limit": "free", 'limit:"db"': "busy"}),
                make_run(keys={"limit": "busy"}),
            ]
            for run in runs:
                await put(journal, run)
            await claim_all(journal, [begun.seq])
            await journal.rescue(now=at(1))

            async def found(
                blocked: dict[str, list[str]], most: int = 9, after: int = 0
            ) -> list[int]:
                page = await journal.queued_past("bill", after, most, blocked)
                assert page.more is (len(page.runs) == most)
                assert page.up_to >= (page.runs[-1].seq if page.more else begun.seq)
                return [run.seq for run in page.runs]

            every = [run.seq for run in runs]
            assert await found({"limit": ["busy"]}) == every[1:], "one that began has its slot"
            assert await found({"limit": ["busy"]}, after=none.seq) == every[3:]
            assert await found({"limit": ["busy", "other"]}, 2) == [free.seq, none.seq]
            assert await found({"order": ["x"], "limit": ["free"]}) == [
                busy.seq, none.seq, old.seq, begun.seq,
            ]  # fmt: skip
            assert ordered.seq in await found({"limit": ["busy"]}), "its ordering key comes first"
            assert named.seq not in await found({'limit:"db"': ["busy"]})
            many = [*map(str, range(100)), "busy"]
            assert await found({"limit": many}) == every[1:]
            assert await found({'limit:"db"': many}), "one with such a name may be left in"
            assert await found({"order": ["y"]}) == every
            assert await found({"limit.2": ["busy"]}) == every

    async def test_blocked_runs_of_a_class_are_passed_over(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            runs = [
                make_run(keys={"limit": key}, priority=priority)
                for key, priority in (("a", 1), ("b", 1), ("b", 3), ("a", 1))
            ]
            for run in runs:
                await put(journal, run)
            page = await journal.queued_past("bill", 0, 9, {"limit": ["a"]}, 1)
            assert [run.seq for run in page.runs] == [runs[1].seq]

    async def test_a_run_is_found_by_its_keys_while_it_is_queued(self, tmp_path: Path) -> None:
        async def found(flow: str, rule_id: str, key: str) -> list[int]:
            return [item.seq for item in await journal.queued_for_key(flow, rule_id, key, 9)]

        async with self.open(tmp_path) as journal:
            runs = [make_run(keys={"limit": "a", "limit.2": key}) for key in ("x", None)]
            for run in runs:
                await put(journal, run)
            both = [run.seq for run in runs]
            assert await found("bill", "limit", "a") == both
            assert await found("bill", "limit.2", "x") == both[:1]
            assert await found("bill", "limit", "x") == [], "another rule has other keys"
            await journal.rename_flows({"bill": "invoice"})
            assert await found("bill", "limit", "a") == []
            assert await found("invoice", "limit", "a") == both
            (claimed,) = await claim_all(journal, both[:1])
            assert claimed.keys == {"limit": "a", "limit.2": "x"}
            assert await found("invoice", "limit", "a") == both[1:]
            await finish(journal, claimed, ended())
            await journal.retry(runs[0].id, None, now=at(2))
            assert await found("invoice", "limit", "a") == both, "an operator queued it again"
            await journal.cancel(runs[1].id, now=at(3))
            assert await found("invoice", "limit", "a") == both[:1]

    async def test_queued_runs_get_the_keys_of_a_rule_that_is_new(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            old, keyed, begun = make_run(), make_run(keys={"limit": "a"}), make_run()
            for run in (old, keyed, begun):
                await put(journal, run)
            (claimed,) = await claim_all(journal, [begun.seq])
            given = {"limit": "b", "limit.2": None}
            await journal.set_keys({run.seq: given for run in (old, keyed, begun)})
            found = await journal.queued_for_key("bill", "limit", "b", 9)
            assert [(item.seq, item.keys) for item in found] == [
                (old.seq, given), (keyed.seq, given),
            ]  # fmt: skip
            assert await journal.queued_for_key("bill", "limit", "a", 9) == []
            assert (await expect_run(journal, begun.id)).keys is None, "it runs already"
            await finish(journal, claimed, ended())

    async def test_a_queued_run_says_since_when_and_whether_it_was_claimed(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            fresh, waits = make_run(priority=1), await start(journal)
            await put(journal, fresh)
            await finish(journal, waits, ended(S.WAITING, due_at=at(1)))
            again = await start(journal)
            await finish(journal, again, ended(S.QUEUED, counts=False))
            found = await journal.queued("bill", 0, 9) + await journal.due(at(2), 9)
            assert [
                (item.seq, item.queued_at, item.priority, item.begun, item.resumes)
                for item in found
            ] == [
                (fresh.seq, NOW, 1, False, False),
                (again.claim.run_seq, NOW, None, True, False),
                (waits.claim.run_seq, NOW, None, True, True),
            ]

    async def test_held_keys(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            states = (S.RETRYING, S.WAITING, S.FAILED, S.SUCCEEDED, S.QUEUED)
            claims = {state: await start(journal, order_key=state.value) for state in states}
            await start(journal)
            for state, claimed in claims.items():
                await finish(journal, claimed, ended(state, due_at=at(1)))
            await put(journal, make_run(state=S.SCHEDULED, order_key="later", due_at=at(1)))
            assert await journal.held_keys() == [
                ("bill", "retrying", claims[S.RETRYING].claim.run_id, False),
                ("bill", "waiting", claims[S.WAITING].claim.run_id, False),
                ("bill", "failed", claims[S.FAILED].claim.run_id, True),
            ]

    # ---------------------------------------------------------------- steps

    async def test_steps_are_kept_over_attempts(self, tmp_path: Path) -> None:
        kept = step("charge#1", finished_at=at(1), result=b"\x80\x04", encoding="pickle", tries=2)
        kept = replace(kept, arguments=RecordedArguments("0123456789abcdef", "charge('a')"))
        caught = step("ship#1", "failed", error=RunError("ValueError", "no", traceback="t"))
        escaped = step("note#1", "failed", error=RunError("OSError", "no"))
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            await journal.record_step(claimed.claim, step("charge#1", "retrying"))
            await asyncio.gather(
                journal.record_step(claimed.claim, kept),
                journal.record_step(claimed.claim, caught),
                journal.record_step(claimed.claim, escaped),
            )
            outcome = ended(
                S.RETRYING, due_at=at(1), error=RunError("OSError", "no", step="note#1")
            )
            await finish(journal, claimed, outcome)
        async with self.open(tmp_path) as journal:
            again = (await claim_all(journal, [claimed.claim.run_seq]))[0]
            assert again.recorded == {"charge#1": kept, "ship#1": caught}
            assert await journal.steps(claimed.claim.run_seq) == [
                kept, caught, replace(escaped, superseded=True),
            ]  # fmt: skip
            redone = step("note#1", result=b"1")
            await journal.record_step(again.claim, redone)
            assert await journal.steps(claimed.claim.run_seq) == [kept, caught, redone]

    async def test_the_history_of_a_flow_is_its_last_ended_runs(self, tmp_path: Path) -> None:
        error = RunError("OSError", "no")
        async with self.open(tmp_path) as journal:
            ends = (
                ended(result=b"1"), ended(S.FAILED, error=error), ended(result=b"1" * 99),
                ended(S.SKIPPED, reason="nothing"), ended(S.RETRYING, due_at=at(9), error=error),
            )  # fmt: skip
            runs = [await start(journal) for _ in ends]
            for claimed, outcome in zip(runs, ends, strict=True):
                await finish(journal, claimed, outcome)
            await finish(journal, await start(journal, "other"), ended(result=b"2"))
            found = journal.history("bill", 10, at_most_bytes=50)
            assert [each.id for each in found] == [
                claimed.claim.run_id for claimed in reversed(runs[:4])
            ]
            assert [(each.state, each.result, each.left_out) for each in found] == [
                (S.SKIPPED, None, False), (S.SUCCEEDED, None, True), (S.FAILED, None, False),
                (S.SUCCEEDED, b"1", False),
            ]  # fmt: skip
            assert (found[0].reason, found[2].error) == ("nothing", error)
            assert (found[0].queued_at, found[0].finished_at) == (NOW, at(1))
            assert [each.id for each in journal.history("bill", 1, at_most_bytes=50)] == [
                found[0].id
            ]

    async def test_the_span_of_a_run_is_owed_until_it_was_sent(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            running, traced, other = [await start(journal) for _ in range(3)]
            for claimed in (running, traced, traced):
                await journal.owe_span(claimed.claim.run_seq)
            await finish(journal, traced, ended(S.FAILED, error=RunError("OSError", "no")))
            await finish(journal, other, ended())
        async with self.open(tmp_path) as journal:
            seq = traced.claim.run_seq
            (owed,) = await journal.owed_spans(limit=9, links=9)
            assert (owed.run.seq, owed.ends, owed.members) == (seq, 0, [])
            assert (owed.event.id, owed.event.has_body) == (traced.event.id, False)
            every = [each.claim.run_seq for each in (running, traced, other)]
            assert await journal.owed_spans(every, limit=9, links=9) == [owed]
            assert await journal.owed_spans(after=seq, limit=9, links=9) == []
            await asyncio.to_thread(journal.note_sent, [owed.run])
            assert await journal.owed_spans(every, limit=9, links=9) == [owed]
        async with self.open(tmp_path) as journal:
            for _ in range(2):
                await journal.sent_spans([])
            assert await journal.owed_spans(every, limit=9, links=9) == []
            await journal.retry(owed.run.id, None, now=at(2))
            await journal.owe_span(seq)
            assert await journal.owed_spans(limit=9, links=9) == []
            (again,) = await journal.claim([seq], now=at(3))
            await journal.sent_spans([owed.run])  # of its first end
            await finish(journal, again, ended())
            (owed,) = await journal.owed_spans(limit=9, links=9)
            assert (owed.run.seq, owed.ends) == (seq, 2)
            await journal.sent_spans([owed.run])
            assert await journal.owed_spans(limit=9, links=9) == []

    async def test_a_budget_is_taken_from_with_its_step_or_not_at_all(self, tmp_path: Path) -> None:
        hour = timedelta(hours=1)
        async with self.open(tmp_path) as journal:
            a, b = await start(journal), await start(journal)
            took = [
                journal.take(run.claim, step(f"budget#{n}"), Taking("scale", n, 3, hour), now=at(n))
                for run, n in ((a, 1), (b, 2), (a, 3))
            ]
            assert await asyncio.gather(*took) == [None, None, Spent(3, at(2) + hour)]
            assert [each.key for each in await journal.steps(a.claim.run_seq)] == ["budget#1"]
            other = Taking("other", 5, 9, hour)
            assert await journal.take(a.claim, step("budget#2"), other, now=at(1)) is None
            stale = replace(a.claim, token=9)
            with pytest.raises(ClaimLost):
                await journal.take(stale, step("budget#4"), Taking("x", 1, 1, hour), now=at(1))
        async with self.open(tmp_path) as journal:
            scale = StoredBudget("scale", 3, 3, hour, at(1) + hour)
            assert await journal.budgets(now=at(3)) == [
                StoredBudget("other", 5, 9, hour, at(1) + hour), scale,
            ]  # fmt: skip
            later = at(1) + hour
            assert await journal.budgets(now=later) == [
                StoredBudget("scale", 2, 3, hour, at(2) + hour)
            ]
            await journal.prune(
                finished_before=NOW, failed_before=NOW, unmatched_before=NOW, dedupe_before=NOW,
                now=at(2) + hour, limit=100,
            )  # fmt: skip
            assert await journal.budgets(now=at(3)) == []

    @pytest.mark.parametrize("others", [0, 70], ids=["read", "from the cache"])
    async def test_a_run_that_waits_tells_which_polls_are_open(
        self, tmp_path: Path, others: int
    ) -> None:
        seen = step("poll#1", "waiting", task="poll", result=b'{"looks":1}')
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            for each in (seen, replace(seen, key="poll#2"), step("sleep#1", "waiting")):
                await journal.record_step(claimed.claim, each)
            for number in range(others):
                await journal.record_step(claimed.claim, step(f"a#{number}", result=b"1"))
            assert (claimed.polls, claimed.was_waiting) == (frozenset(), False)
            waiting = ended(S.WAITING, due_at=at(1), counts=False, waits={"poll#1": 0})
            await finish(journal, claimed, waiting)
            again = (await claim_all(journal, [claimed.claim.run_seq]))[0]
            assert (again.polls, again.was_waiting) == (frozenset({"poll#1", "poll#2"}), True)
            assert not again.has_waits, "no event and no other run ends it"
            seen = replace(seen, result=b'{"looks":2}')
            await journal.record_step(again.claim, seen)
            left = replace(seen, key="poll#2", state="dropped", finished_at=at(1))
            await journal.record_step(again.claim, left)
            await journal.record(
                again, waiting, started_at=NOW, now=at(1), changed=["poll#1", "poll#2"]
            )
            again = (await claim_all(journal, [claimed.claim.run_seq]))[0]
            assert (again.polls, again.recorded["poll#1"]) == (frozenset({"poll#1"}), seen)
            await finish(journal, again, ended(S.QUEUED, counts=False))
            again = (await claim_all(journal, [claimed.claim.run_seq]))[0]
            assert (again.polls, again.was_waiting) == (frozenset({"poll#1"}), False)

    async def test_a_recorded_step_is_never_overwritten(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            await journal.record_step(claimed.claim, step("a#1", result=b"1"))
            await journal.record_step(claimed.claim, step("a#1", result=b"2"))
            assert [kept.result for kept in await journal.steps(claimed.claim.run_seq)] == [b"1"]

    async def test_steps_of_one_run_keep_the_order_they_were_called_in(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)

            async def record(key: str) -> None:
                await journal.record_step(claimed.claim, step(key))

            results = await asyncio.gather(
                *(record(f"a#{number}") for number in range(100)),
                finish(journal, claimed, ended()),
                record("late#1"),
                return_exceptions=True,
            )
            assert results[:-1] == [None] * 101 and isinstance(results[-1], ClaimLost)
            keys = [kept.key for kept in await journal.steps(claimed.claim.run_seq)]
            assert keys == [f"a#{number}" for number in range(100)]

    # ---------------------------------------------------------------- rescue

    async def test_rescue_requeues_isolates_and_fails(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            ended_well = await start(journal)
            await finish(journal, ended_well, ended())
        for crash in range(1, 6):
            async with self.open(tmp_path) as journal:
                rescued = await journal.rescue(now=at(crash))
                failed = (claimed.claim.run_id,) if crash == 5 else ()
                assert (rescued.requeued, rescued.failed) == (0 if failed else 1, failed)
                item = (await journal.queued("bill", 0, 9))[0]
                assert item.isolated == (crash >= 2)
                again = (await claim_all(journal, [item.seq]))[0]
                assert (again.crashes, again.attempt) == (crash, 1)
                assert again.isolated == (crash >= 2)
                assert (FAILED in again.recorded) == bool(failed)
                assert await self.counts(journal) == Counts({"running": 1})

    async def test_an_attempt_that_only_repeats_ends_no_row_of_deaths(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            waiting = ended(S.WAITING, due_at=at(1), counts=False, repeats=True)
            for death in range(1, 6):
                rescued = await journal.rescue(now=at(1))
                assert bool(rescued.failed) == (death == 5)
                if death < 5:
                    (claimed,) = await claim_all(journal, [claimed.claim.run_seq])
                    assert claimed.isolated == (death >= 2)
                    await finish(journal, claimed, waiting)
                    (claimed,) = await claim_all(journal, [claimed.claim.run_seq])
            assert rescued.failed == (claimed.claim.run_id,)

    async def test_registering_an_undo_is_no_progress(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
        for death in range(1, 6):
            async with self.open(tmp_path) as journal:
                rescued = await journal.rescue(now=at(death))
                assert bool(rescued.failed) == (death == 5)
                (again,) = await claim_all(journal, [claimed.claim.run_seq])
                await journal.record_step(again.claim, step(f"on_undo#{death}", task=REGISTERED))

    async def test_crashes_during_an_undo_are_counted_on_the_failure(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            why = RunError("OSError", "no dinner")
            await journal.record_step(
                claimed.claim, step(FAILED, "failed", error=why, result=b"[]")
            )
        tries = []
        for death in range(1, 12):
            async with self.open(tmp_path) as journal:
                rescued = await journal.rescue(now=at(death))
                assert bool(rescued.failed) == (death in (5, 8, 11))
                (again,) = await claim_all(journal, [claimed.claim.run_seq])
                known = again.recorded[FAILED]
                assert known.error == why and known.result == b"[]"
                tries.append(known.tries)
        assert tries == [1] * 4 + [2] * 3 + [3] * 3 + [4]

    async def test_a_run_failed_before_it_starts_is_told_with_the_children_cancelled_for_it(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            first, second, third = [await start(journal) for _ in range(3)]
            for claimed, on in ((first, second), (second, third)):
                opening = Opening(topic=run_topic(on.claim.run_id))
                waiting = step("bill#1", "waiting", origin=on.claim.run_id)
                await journal.record_with(claimed.claim, waiting, opening=opening, now=NOW)
                await finish(journal, claimed, Outcome(state=S.WAITING, waits={"bill#1": 0}))
            why, seq = RunError("filter_error", "no key"), first.claim.run_seq
            assert await journal.fail_queued(third.claim.run_seq, why, now=at(1)) == []  # it runs
            ended = await journal.fail_queued(seq, why, now=at(2))
            assert [(run.id, run.state) for run in ended] == [
                (first.claim.run_id, "failed"),
                (second.claim.run_id, "cancelled"),
                (third.claim.run_id, "cancelled"),
            ]
            assert ended[0].error == why and ended[0].dead
            assert await journal.fail_queued(seq, why, now=at(3)) == []

    @pytest.mark.parametrize("state", [S.SUCCEEDED, S.FAILED, S.CANCELLED])
    async def test_a_run_ends_together_with_the_children_it_waits_for(
        self, tmp_path: Path, state: RunState
    ) -> None:
        """A child whose own outcome is written later in the same transaction has lost its claim."""
        async with self.open(tmp_path) as journal:
            parent, another = await start(journal), await start(journal)
            called = Entry(event=make_event(type=CALLED), runs=[make_run("child", S.RUNNING)])
            child = claim_of(called, (await journal.append([called], now=NOW))[0])
            for claimed, key, on in ((parent, "child#1", child), (child, "bill#1", another)):
                waits = step(key, "waiting", result=b"{}", origin=on.claim.run_id)
                opening = Opening(topic=run_topic(on.claim.run_id))
                await journal.record_with(claimed.claim, waits, opening=opening, now=NOW)
            told: Any = {"started_at": NOW, "now": at(1), "has_waits": True}
            *_, cancelled, lost = await asyncio.gather(
                *(put(journal) for _ in range(20)),  # the rest is written together
                journal.record(parent, ended(state), **told),
                journal.record(child, ended(S.WAITING, waits={"bill#1": 0}), **told),
                return_exceptions=True,
            )
            assert isinstance(lost, ClaimLost)
            assert isinstance(cancelled, list)
            ids = [child.claim.run_id, another.claim.run_id]
            assert [run.id for run in cancelled] == ids
            assert await self._states(journal, ids) == ["cancelled"] * 2
            assert (await self.counts(journal)).states == {}
            for each in (parent, child):
                assert await journal.waits(each.claim.run_seq) == []

    async def test_a_child_that_is_claimed_before_its_parent_ends_has_lost_that_claim(
        self, tmp_path: Path
    ) -> None:
        """Else that claim would begin its undo, which the cancel of the child then interrupts."""
        async with self.open(tmp_path) as journal:
            parent, child = await start(journal), await start(journal)
            await journal.record_step(child.claim, step("~release#1", task=REGISTERED))
            waits = step("bill#1", "waiting", result=b"{}", origin=child.claim.run_id)
            opening = Opening(topic=run_topic(child.claim.run_id))
            await journal.record_with(parent.claim, waits, opening=opening, now=NOW)
            await finish(journal, child, Outcome(state=S.RETRYING, due_at=NOW))
            told: Any = {"started_at": NOW, "now": at(1)}
            _, claimed, cancelled = await asyncio.gather(
                asyncio.gather(*(put(journal) for _ in range(20))),  # the rest is written together
                journal.claim([child.claim.run_seq], now=at(1)),
                journal.record(parent, ended(), has_waits=True, **told),
            )
            assert [(run.id, run.state) for run in cancelled] == [(child.claim.run_id, "queued")]
            with pytest.raises(ClaimLost):
                await journal.record(claimed[0], ended(), **told)

    async def test_failed_runs_of_a_flow_that_is_gone_become_dead_letters(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            parent = await start(journal)
            failed = await start(journal, "gone", order_key="k")
            why = RunError("X", "y", "b#1")
            await journal.record_step(failed.claim, step("b#1", "failed", error=why))
            await journal.record_step(failed.claim, step(FAILED, "failed", error=why))
            child = await start(journal, "below")
            for claimed, on in ((parent, failed), (failed, child)):
                waiting = step(f"{on.flow}#1", "waiting", origin=on.claim.run_id)
                opening = Opening(topic=run_topic(on.claim.run_id))
                await journal.record_with(claimed.claim, waiting, opening=opening, now=NOW)
            waits = Outcome(state=S.WAITING, counts=False, waits={"gone#1": 0})
            await finish(journal, parent, waits)
            other = await start(journal, "gone")
            served = await start(journal)
            await journal.record_step(
                served.claim, step(FAILED, "failed", error=RunError("X", "y"))
            )
            await journal.rescue(now=at(1))
            assert await journal.fail_orphaned_runs("gone", now=at(2)) == [failed.claim.run_id]
            assert await journal.fail_orphaned_runs("gone", now=at(3)) == []
            run = await expect_run(journal, failed.claim.run_id)
            assert run.state == "failed" and run.dead and run.finished_at == at(2)
            assert run.error == why
            steps = await journal.steps(failed.claim.run_seq)
            assert [kept.key for kept in steps if kept.superseded] == ["b#1"]  # for a retry
            assert await self.counts(journal) == Counts({"queued": 2, "waiting": 1}, {"gone": 1})
            states = [
                (await expect_run(journal, each.claim.run_id)).state
                for each in (other, served, child)
            ]
            assert states == ["queued", "queued", "cancelled"]
            assert await journal.waits(failed.claim.run_seq) == []
            assert [due.seq for due in await journal.due(at(3), 9)] == [parent.claim.run_seq]

    async def test_what_is_kept_for_undoing_is_not_listed(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            await journal.record_step(claimed.claim, step("on_undo#1", task=REGISTERED))
            await journal.record_step(claimed.claim, step("a#1"))
            assert [kept.key for kept in await journal.steps(claimed.claim.run_seq)] == ["a#1"]
            await journal.rescue(now=at(1))
            (again,) = await claim_all(journal, [claimed.claim.run_seq])
            assert list(again.recorded) == ["on_undo#1", "a#1"]

    @pytest.mark.parametrize("how", ["step", "outcome"])
    async def test_a_run_that_gets_on_outlives_any_deaths(self, tmp_path: Path, how: str) -> None:
        async with self.open(tmp_path) as journal:
            await start(journal)
        for death in range(1, 9):
            async with self.open(tmp_path) as journal:
                rescued = await journal.rescue(now=at(death))
                assert rescued.failed == () and rescued.requeued == 1
                item = (await journal.queued("bill", 0, 9))[0]
                (claimed,) = await claim_all(journal, [item.seq])
                assert claimed.crashes == death
                if how == "step":
                    await journal.record_step(claimed.claim, step(f"a#{death}"))
                    continue
                waits = Outcome(state=RunState.WAITING, due_at=NOW, counts=False)
                await journal.record(claimed, waits, started_at=NOW, now=at(death))
                assert not (await claim_all(journal, [claimed.claim.run_seq]))[0].isolated

    # ---------------------------------------------------------------- after-run actions

    async def test_an_effect_is_due_once_all_runs_ended(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            entry = Entry(
                event=make_event(), runs=[make_run("a", S.RUNNING), make_run("b", S.RUNNING)],
                after_run_action=True,
            )  # fmt: skip
            await start(journal)
            appended = (await journal.append([entry], now=NOW))[0]
            first, second = claim_of(entry, appended), claim_of(entry, appended, 1)
            await finish(journal, first, ended())
            assert await journal.event_ended(appended.event_seq) is None
            assert await journal.due_actions(0, 9) == []
            await finish(journal, second, ended(S.FAILED, error=RunError("Busy", "not now")))
            due = EndedEvent(appended.event_seq, entry.event, "b: Busy: not now")
            assert await journal.event_ended(appended.event_seq) == due
            assert await journal.due_actions(0, 9) == [due]
            assert await journal.due_actions(appended.event_seq, 9) == []
            moved = replace(entry.event, extensions={"fileurl": "file:///done/a"})
            await journal.record_action(appended.event_seq, moved)
            assert await journal.due_actions(0, 9) == []
            assert await journal.event_ended(appended.event_seq) is None
            assert (await journal.event(moved.id))[0].event == moved

    # ---------------------------------------------------------------- operators

    async def test_cancel(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            (run,) = await journal.cancel(claimed.claim.run_id, now=at(5), reason="twice", by="ada")
            assert (run.state, run.finished_at) == ("cancelled", at(5))
            assert (run.reason, run.cancelled_by) == ("twice", "ada")
            with pytest.raises(ClaimLost):
                await finish(journal, claimed, ended())
            with pytest.raises(Refused, match="already cancelled"):
                await journal.cancel(claimed.claim.run_id, now=at(6))
            with pytest.raises(NotFound, match="nobody"):
                await journal.cancel("nobody", now=at(6))
            assert "running" not in (await self.counts(journal)).states

    async def test_a_cancel_counts_the_attempt_that_it_ends(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            killed, handed_back = await start(journal), await start(journal)
            await finish(journal, handed_back, Outcome(state=RunState.QUEUED, counts=False))
            await journal.rescue(now=at(5))
            (again,) = await journal.claim([killed.claim.run_seq], now=at(6))
            never = make_run()
            await put(journal, never)
            for run_id, attempts in (
                (again.claim.run_id, 1),
                (handed_back.claim.run_id, 1),
                (never.id, 0),
            ):
                (run,) = await journal.cancel(run_id, now=at(7))
                assert run.attempts == attempts
                history = [kept.state for kept in await journal.attempts(run.seq)]
                assert history == ["cancelled"] * attempts

    async def test_what_is_registered_is_left_to_undo_by_a_cancel(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            await journal.record_step(claimed.claim, step("on_undo#1", task=REGISTERED))
            (run,) = await journal.cancel(claimed.claim.run_id, now=at(5), reason="twice", by="ada")
            assert (run.state, run.undo, run.finished_at) == ("queued", "running", None)
            with pytest.raises(Refused, match="being undone"):
                await journal.cancel(claimed.claim.run_id, now=at(6))
            with pytest.raises(ClaimLost):
                await journal.record_step(claimed.claim, step("a#1"))
            (again,) = await journal.claim([claimed.claim.run_seq], now=at(7))
            error = again.recorded[FAILED].error
            assert error is not None and (error.type, error.message) == ("cancelled", "twice")
            outcome = Outcome(state=RunState.CANCELLED, reason="twice", undo="done", counts=False)
            await finish(journal, again, outcome)
            run = await expect_run(journal, claimed.claim.run_id)
            assert (run.state, run.undo, run.cancelled_by) == ("cancelled", "done", "ada")
            assert (await self.counts(journal)).not_undone == {}

    async def test_an_undo_that_failed_is_counted_until_it_is_done(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            await journal.record_step(claimed.claim, step("~failed", state="failed"))
            await journal.record_step(claimed.claim, step("~undo[0]/a#1", state="failed"))
            await journal.record_step(claimed.claim, step("~undo[1]/b#1"))
            failed = Outcome(state=RunState.FAILED, error=RunError("E", "m"), undo="failed")
            await finish(journal, claimed, failed)
            assert (await self.counts(journal)).not_undone == {"bill": 1}
            run = (await journal.retry(claimed.claim.run_id, None, now=at(5))).run
            assert (run.dead, run.undo_failed) == (True, ("~undo[0]/a#1",))
            (again,) = await journal.claim([claimed.claim.run_seq], now=at(6))
            assert (again.dead, again.undo_failed) == (True, True)
            assert list(again.recorded) == ["~failed", "~undo[1]/b#1"]
            await finish(journal, again, Outcome(state=RunState.QUEUED, counts=False))
            assert (await expect_run(journal, claimed.claim.run_id)).dead
            assert (await self.counts(journal)).not_undone == {"bill": 1}
            (again,) = await journal.claim([claimed.claim.run_seq], now=at(7))
            await finish(journal, again, replace(failed, undo="done"))
            after = await self.counts(journal)
            assert (after.not_undone, after.dead) == ({}, {})
            assert not (await expect_run(journal, claimed.claim.run_id)).dead
        async with self.open(tmp_path) as journal:
            after = await self.counts(journal)
            assert (after.not_undone, after.dead) == ({}, {})

    async def test_retry_starts_over_with_its_steps(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            for key in ("a#1", "b#1", "c#1"):
                await journal.record_step(claimed.claim, step(key))
            with pytest.raises(Refused, match="finished"):
                await journal.retry(claimed.claim.run_id, None, now=at(3))
            await finish(journal, claimed, ended(S.FAILED, error=RunError("E", "m")))
            run = (await journal.retry(claimed.claim.run_id, None, now=at(3))).run
            assert (run.state, run.attempts, run.dead, run.error) == ("queued", 0, False, None)
            assert await self.counts(journal) == Counts({"queued": 1})
            again = (await claim_all(journal, [run.seq]))[0]
            assert again.attempt == 1 and list(again.recorded) == ["a#1", "b#1", "c#1"]
            await finish(journal, again, ended())
            with pytest.raises(NotFound, match="no recorded step 'z'"):
                await journal.retry(claimed.claim.run_id, "z", now=at(4))
            await journal.retry(claimed.claim.run_id, "b#1", now=at(4))
            assert [kept.key for kept in await journal.steps(run.seq)] == ["a#1"]

    async def test_drop_a_dead_letter(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            refused = make_run(state=S.FAILED, error=RunError("invalid", "amount"))
            await put(journal, refused)
            assert await self.counts(journal) == Counts({}, {"bill": 1})
            assert [run.id for run in await journal.runs(Filter(dead=True))] == [refused.id]
            run = await journal.drop(refused.id, now=at(1))
            assert run.state == "failed" and not run.dead
            assert await self.counts(journal) == Counts({})
            with pytest.raises(Refused, match="not a dead letter"):
                await journal.drop(refused.id, now=at(1))

    async def test_replay_makes_numbered_runs(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            first = await put(journal, make_run())
            for number in (1, 2):
                runs = [make_run(), make_run("ship")]
                ids = (await journal.replay(first.event_seq, runs, now=at(1))).runs
                assert ids == tuple(run.id for run in runs)
                assert [run.replay for run in runs] == [number, number]
            stored = (await journal.event(first.event))[0]
            assert len(stored.runs) == 5
            with pytest.raises(NotFound):
                await journal.replay(first.event_seq + 99, [make_run()], now=at(1))

    async def test_a_breaker_is_kept_as_it_last_changed(self, tmp_path: Path) -> None:
        closed = StoredBreaker(
            name="mail", state=BreakerState.CLOSED, generation=4, changed_at=at(1)
        )
        opened = StoredBreaker(
            name="crm",
            state=BreakerState.OPEN,
            generation=1,
            changed_at=at(2),
            until=at(32),
            down_since=at(2),
            reason="10 of the last 12 failed",
        )
        async with self.open(tmp_path) as journal:
            assert await journal.breakers() == []
            await journal.record_breaker(closed)
            await journal.record_breaker(opened)
            longer = replace(opened, until=at(60))
            probing = replace(opened, state=BreakerState.PROBING, generation=2, until=None)
            await journal.record_breaker(longer)
            assert await journal.breakers() == [longer, closed]
            later = journal.record_breaker(probing)
            await journal.record_breaker(opened)  # written late: it was overtaken
            await later
        async with self.open(tmp_path) as journal:
            assert await journal.breakers() == [probing, closed]

    async def test_pause_and_resume(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await journal.pause(StoredPause(name="flow:bill", since=NOW))
            again = StoredPause(name="flow:bill", since=at(9), until=at(60), note="why ä", by="ada")
            await journal.pause(again)
            await journal.pause(StoredPause(name="trigger:t", since=NOW))
            await journal.resume("trigger:t")
        async with self.open(tmp_path) as journal:
            assert await journal.pauses(now=at(59)) == {"flow:bill": replace(again, since=NOW)}

    async def test_what_is_set_for_a_flow_follows_its_name(self, tmp_path: Path) -> None:
        def override(name: str, count: int) -> StoredOverride:
            return StoredOverride(name=name, count=count, since=NOW, until=at(99), note="", by="")

        async with self.open(tmp_path) as journal:
            for name in ("flow:bill", "flow:billing", "flow:ship", "flow:sent"):
                await journal.pause(StoredPause(name=name, since=NOW, note=name))
            for name, count in (
                ("flow:bill/limit", 2), ("flow:bill/limit.2", 3), ("flow:billing/limit", 4),
                ("flow:ship/limit", 5), ("flow:sent/limit", 6), ("limit:bill", 7),
            ):  # fmt: skip
                await journal.override(override(name, count))
            await journal.rename_flows({"bill": "charge", "ship": "sent"})
            pauses = await journal.pauses(now=NOW)
            assert {name: pause.note for name, pause in pauses.items()} == {
                "flow:charge": "flow:bill", "flow:billing": "flow:billing",
                "flow:sent": "flow:sent",
            }  # fmt: skip
            overrides = await journal.overrides(now=NOW)
            assert {name: made.count for name, made in overrides.items()} == {
                "flow:charge/limit": 2, "flow:charge/limit.2": 3, "flow:billing/limit": 4,
                "flow:sent/limit": 6, "limit:bill": 7,
            }  # fmt: skip

    async def test_a_pause_ends_by_itself_and_one_made_later_begins_anew(
        self, tmp_path: Path
    ) -> None:
        short = StoredPause(name="flow:bill", since=NOW, until=at(60))
        endless = StoredPause(name="*", since=NOW)
        async with self.open(tmp_path) as journal:
            await journal.pause(short)
            await journal.pause(endless)
            assert await journal.pauses(now=at(60)) == {"*": endless}
            later = StoredPause(name="flow:bill", since=at(90), until=at(120))
            await journal.pause(later)
            assert await journal.pauses(now=at(90)) == {"flow:bill": later, "*": endless}
            assert await journal.end_pauses(now=at(119)) == []
            assert await journal.end_pauses(now=at(120)) == [later]
        async with self.open(tmp_path) as journal:
            assert await journal.pauses(now=NOW) == {"*": endless}  # also if the clock goes back

    async def test_limits_are_set_reset_and_end_by_themselves(self, tmp_path: Path) -> None:
        ten = StoredOverride(name="limit:db", count=10, since=NOW, until=at(60), note="ä", by="ada")
        one = StoredOverride(name="flow:bill/limit", count=1, since=NOW, until=at(90))
        async with self.open(tmp_path) as journal:
            await journal.override(replace(ten, count=5, until=at(999), by="bob"))
            await journal.override(ten)
            await journal.override(one)
            await journal.override(replace(one, name="limit:x"))
            await journal.reset_limit("limit:x")
        async with self.open(tmp_path) as journal:
            assert await journal.overrides(now=at(59)) == {"limit:db": ten, "flow:bill/limit": one}
            assert await journal.overrides(now=at(60)) == {"flow:bill/limit": one}
            assert await journal.end_overrides(now=at(60)) == [ten]
            assert await journal.overrides(now=NOW) == {"flow:bill/limit": one}

    async def test_discarded_are_queued_runs_that_never_began(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            begun = await start(journal, "bill")
            await finish(journal, begun, ended(S.QUEUED, counts=False))
            entries = [Entry(event=make_event(), runs=[make_run("bill")]) for _ in range(1200)]
            await journal.append(entries, trigger="webhook:/orders", now=NOW)
            await put(journal, make_run("ship"))
            first = await journal.discard("bill", now=at(3), detail="why", by="ada")
            late = await put(journal, make_run("bill"))
            assert first.more
            rest = await journal.discard(
                "bill", now=at(3), detail="why", by="ada", after=first.last, up_to=first.up_to
            )
            assert not rest.more
            assert [run.id for run in (*first.runs, *rest.runs)] == [e.runs[0].id for e in entries]
            assert journal.counts()[0]["queued"] == 3
            assert await self._states(journal, [begun.claim.run_id, late.runs[0]]) == ["queued"] * 2
            run = rest.runs[-1]
            assert (run.state, run.reason, run.finished_at) == (S.SKIPPED, "why", at(3))
            assert run == await journal.run(run.id)
            stored = await journal.event_of(run.seq)
            assert stored is not None
            (decision,) = stored.decisions
            assert (decision["flow"], decision["reason"]) == ("bill", "dropped")
            assert (decision["detail"], decision["facts"]) == ("why", {"run": run.id, "by": "ada"})
            assert await journal.claim([run.seq], now=at(4)) == []

    async def _states(self, journal: Journal, run_ids: Sequence[str]) -> list[str]:
        found = [await journal.run(run_id) for run_id in run_ids]
        return [str(run.state) for run in found if run is not None]

    async def test_the_parent_of_a_discarded_child_is_woken(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            parent = await start(journal, "parent")
            child = make_run("child")
            called = Entry(event=make_event(type=CALLED), runs=[child])
            waits = step("child#1", "waiting", result=b"{}", origin=child.id)
            opening = Opening(topic=run_topic(child.id))
            await journal.record_with(
                parent.claim, waits, entries=[called], opening=opening, now=NOW
            )
            await finish(journal, parent, ended(S.WAITING, waits={"child#1": 0}))
            assert await journal.next_due_at() is None
            await journal.discard("child", now=at(3))
            assert [due.id for due in await journal.due(at(3), 9)] == [parent.claim.run_id]
            found = await journal.child(child.id)
            assert found is not None and found.state is S.SKIPPED
            assert found.refused == ("dropped", None)

    async def test_waits_are_opened_and_closed_together(self, tmp_path: Path) -> None:
        names = ["wait_for#1", "sleep#1", "first#1"]
        race = [step(name, "waiting", result=b"{}") for name in names]
        opening = Opening(topic="event:a", shape=("a",), since=1, race="first#1")
        async with self.open(tmp_path) as journal:
            run = await start(journal)
            claim = run.claim
            await journal.record_waits(claim, race, openings={"wait_for#1": opening}, now=NOW)
            assert [row.key for row in await journal.waits(claim.run_seq)] == ["wait_for#1"]
            stale = replace(claim, token=claim.token + 1)
            with pytest.raises(ClaimLost):
                await journal.record_waits(stale, race, closes=names, now=NOW)
            with pytest.raises(ClaimLost):
                await journal.record_waits(stale, [], closes=names, now=NOW)
            assert len(await journal.waits(claim.run_seq)) == 1, "nothing of it is written"
            dropped = replace(race[0], state="dropped", finished_at=NOW)
            chosen = step("first#1", result=b'{"which":1}', finished_at=NOW)
            ends = [step("sleep#1", result=b"null", finished_at=NOW), dropped, chosen]
            assert await journal.record_waits(claim, ends, closes=names, now=NOW) == []
            assert await journal.waits(claim.run_seq) == []
            await finish(journal, run, ended(S.WAITING, due_at=at(1)))
            woken = Entry(event=make_event(), topics=["event:a"])
            await journal.append([woken], now=at(1))
            assert [due.due_at for due in await journal.due(at(9), 9)] == [at(1)]
        async with self.open(tmp_path) as journal:
            steps = await journal.steps(claim.run_seq)
            assert {each.key: each.state for each in steps} == {
                "wait_for#1": "dropped", "sleep#1": "succeeded", "first#1": "succeeded",
            }  # fmt: skip
            assert await journal.open_steps([claim.run_seq]) == []

    async def test_a_child_whose_wait_is_closed_is_cancelled(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            parent = await start(journal, "parent")
            children = [make_run("child"), make_run("child")]
            for number, child in enumerate(children, 1):
                called = Entry(event=make_event(type=CALLED), runs=[child])
                waits = step(f"child#{number}", "waiting", result=b"{}", origin=child.id)
                opening = Opening(topic=run_topic(child.id), race="first#1")
                await journal.record_with(
                    parent.claim, waits, entries=[called], opening=opening, now=NOW
                )
            closed = step("child#1", "dropped", origin=children[0].id, finished_at=NOW)
            cancelled = await journal.record_waits(
                parent.claim, [closed], closes=["child#1"], now=NOW
            )
            assert [run.id for run in cancelled] == [children[0].id]
            assert await self._states(journal, [run.id for run in children]) == [
                "cancelled", "queued",
            ]  # fmt: skip

    async def test_of_waits_of_one_race_only_the_first_to_be_over_is_woken(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            run = await start(journal)
            keys = ["approval#1", "approval#2", "approval#3"]
            for number, key in enumerate(keys):
                race = "first#1" if number < 2 else None
                opening = Opening(topic=approval_topic(run.claim.run_id, key), race=race)
                asked = step(key, "waiting", result=b"{}")
                await journal.record_with(run.claim, asked, opening=opening, now=NOW)
            last = await put(journal, make_run())
            for key in reversed(keys):
                await journal.answer(run.claim.run_id, key, b"{}", now=NOW)
            rows = {row.key: row.woken for row in await journal.waits(run.claim.run_seq)}
            assert rows == dict(zip(keys, (None, last.event_seq, last.event_seq), strict=True))

    async def test_the_event_of_a_discarded_run_is_known_as_refused(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            entry = Entry(
                event=make_event(), runs=[make_run("bill"), make_run("ship")], after_run_action=True
            )
            other = Entry(event=make_event(), runs=[make_run("ship")], after_run_action=True)
            [stored, kept] = await journal.append([entry, other], trigger="files:/inbox", now=NOW)
            await journal.discard("bill", now=at(1))
            for run in await journal.queued("ship", 0, 9):
                [claimed] = await journal.claim([run.seq], now=at(2))
                await finish(journal, claimed, ended())
            listed = await journal.due_actions(0, 9)
            assert [(each.seq, each.is_refused) for each in listed] == [
                (stored.event_seq, True), (kept.event_seq, False),
            ]  # fmt: skip

    async def test_orphans_and_renaming(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await put(journal, make_run("old"), make_run("bill"))
            done = await start(journal, "old")
            await finish(journal, done, ended())
            dead, late = await start(journal, "old"), await start(journal, "old")
            await finish(journal, dead, ended(S.FAILED))
            assert await journal.orphans(["bill"]) == {"old": 2}
            assert await journal.rename_flows({"old": "new"}) == 3
            await finish(journal, late, ended(S.FAILED))
            assert (await self.counts(journal)).dead == {"new": 2}
            assert await journal.orphans(["bill", "new"]) == {}
            assert [item.flow for item in await journal.queued("new", 0, 9)] == ["new"]
            assert (await expect_run(journal, done.claim.run_id)).flow == "old"

    # ---------------------------------------------------------------- reading

    async def test_runs_by_filter(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            for number in range(4):
                event = make_event(f"e-{number}", trigger=f"t{number % 2}")
                entry = Entry(event=event, runs=[make_run("a"), make_run("b", S.RUNNING)])
                appended = (await journal.append([entry], now=at(number)))[0]
                if number < 2:
                    state = (S.SUCCEEDED, S.FAILED)[number]
                    await finish(journal, claim_of(entry, appended, 1), ended(state))

            listed = sorted(run.seq for run in await journal.runs(Filter()))

            async def numbers(**which: Any) -> list[int]:
                """Return which runs are found, by their order of arrival, from 1."""
                if "cursor" in which:
                    which["cursor"] = listed[which["cursor"] - 1]
                found = await journal.runs(Filter(**which))
                return [listed.index(run.seq) + 1 for run in found]

            assert await numbers() == [8, 7, 6, 5, 4, 3, 2, 1]
            assert await numbers(limit=3) == [8, 7, 6]
            assert await numbers(limit=3, cursor=6) == [5, 4, 3]
            assert await numbers(flow="b") == [8, 6, 4, 2]
            assert await numbers(flow="b", cursor=6, limit=1) == [4]
            assert await numbers(state=S.QUEUED) == [7, 5, 3, 1]
            assert await numbers(flow="b", state=S.SUCCEEDED) == [2]
            assert await numbers(state=S.SUCCEEDED) == [2]
            assert await numbers(dead=True) == [4]
            assert await numbers(trigger="t1") == [8, 7, 4, 3]
            assert await numbers(event="e-2") == [6, 5]
            assert await numbers(since=at(1), until=at(3)) == [6, 5, 4, 3]
            assert await numbers(flow="nobody") == []

            async def events(**which: Any) -> list[str]:
                return [stored.event.id for stored in await journal.events(Filter(**which))]

            assert await events() == ["e-3", "e-2", "e-1", "e-0"]
            assert await events(trigger="t0", limit=1) == ["e-2"]
            third = (await journal.event("e-2"))[0].seq
            assert await events(cursor=third) == ["e-1", "e-0"]
            assert await events(flow="b", state=S.FAILED) == ["e-1"]
            assert await events(since=at(2)) == ["e-3", "e-2"]

    async def test_a_run_is_found_by_a_short_form_that_fits_only_one(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            for run_id in ("aaaaaaaa-1-cafecafe", "aaaaaaaa-2-cafe0002", "bbbbbbbb-1-cafe0003"):
                run = make_run()
                run.id = run_id
                await put(journal, run)
            assert (await expect_run(journal, "bbbbbbbb")).id == "bbbbbbbb-1-cafe0003"
            assert (await expect_run(journal, "cafe0002")).id == "aaaaaaaa-2-cafe0002"
            assert (await expect_run(journal, "aaaaaaaa-2")).id == "aaaaaaaa-2-cafe0002"
            assert (await expect_run(journal, "aaaaaa…fecafe")).id == "aaaaaaaa-1-cafecafe"
            with pytest.raises(Ambiguous, match="2 runs begin so: "):
                await journal.run("aaaaaaaa")
            for unknown in ("bbbbbbb", "cccccccc", "cafe000", "aaaaaa…", "", "aaaaaaaa%"):
                assert await journal.run(unknown) is None

    async def test_an_event_is_found_by_a_short_form_that_fits_only_one(
        self, tmp_path: Path
    ) -> None:
        minted = "019ab3c2-7b1c-7000-8000-0123456789ab"
        async with self.open(tmp_path) as journal:
            for event_id in (minted, "72d3162e-cc78-11e3-81ab-4c9367dc0958", "my-order-77"):
                await journal.append(
                    [Entry(event=make_event(event_id, minted=event_id == minted))], now=NOW
                )

            async def found(name: str) -> list[str]:
                listed = await journal.events(Filter(event=name))
                read = await journal.event(name)
                assert [stored.event.id for stored in listed] == [each.event.id for each in read]
                return [stored.event.id for stored in read]

            assert await found("456789ab") == [minted]
            assert await found("72d316…dc0958") == ["72d3162e-cc78-11e3-81ab-4c9367dc0958"]
            assert await found("72d316...dc0958") == ["72d3162e-cc78-11e3-81ab-4c9367dc0958"]
            # An id of a sender is never guessed by its end: it may be another sender's whole id.
            assert await found("order-77") == await found("67dc0958") == []

    async def test_open_approvals_come_in_the_order_they_were_asked(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            asked = []
            for seconds in (2, 1, 3):
                claimed = await start(journal)
                question = step(
                    "approval#1", "waiting", task="approval", started_at=at(seconds),
                    finished_at=None, result=b'{"approval": "ops", "fields": null}',
                )  # fmt: skip
                opening = Opening(topic=approval_topic(claimed.claim.run_id, "approval#1"))
                await journal.record_with(claimed.claim, question, opening=opening, now=NOW)
                await finish(journal, claimed, ended(S.WAITING, waits={"approval#1": 0}))
                asked.append(claimed.claim.run_id)
            second, first, third = asked
            found = await journal.open_approvals(10)
            assert [each.run_id for each in found] == [first, second, third]
            assert (found[0].key, found[0].asked_at) == ("approval#1", at(1))
            assert found[0].note == {"approval": "ops", "fields": None}
            assert len(await journal.open_approvals(2)) == 2
            await journal.answer(first, None, b'{"approved": true}', now=NOW)
            assert [each.run_id for each in await journal.open_approvals(10)] == [second, third]
            await journal.cancel(third, now=NOW)
            assert [each.run_id for each in await journal.open_approvals(10)] == [second]

    async def test_who_answers_an_approval_is_kept_as_long_as_the_run(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            run_id = claimed.claim.run_id
            opening = Opening(topic=approval_topic(run_id, "approval#1"))
            question = step("approval#1", "waiting", task="approval", result=b"{}")
            await journal.record_with(claimed.claim, question, opening=opening, now=NOW)
            await finish(journal, claimed, ended(S.WAITING, waits={"approval#1": 0}))
            said = b'{"approved": false, "by": "ada", "via": "link 3f9a1c2b", "fields": null}'
            await journal.answer(run_id, None, said, now=at(3))
            [answer] = await journal.answers(claimed.claim.run_seq)
            assert answer == ("approval#1", at(3), False, "ada", "link 3f9a1c2b")
            assert await journal.answers(claimed.claim.run_seq + 1) == []

    async def test_due_runs_come_in_the_order_they_are_due(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            runs = [make_run(state=S.SCHEDULED, due_at=at(second)) for second in (3, 1, 2)]
            for run in (*runs, make_run()):
                await put(journal, run)
            third, first, second = (run.id for run in runs)
            assert [run.id for run in await journal.due_runs(10)] == [first, second, third]
            assert [run.id for run in await journal.due_runs(1)] == [first]

    async def test_each_trigger_has_the_instant_of_its_last_event(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            assert await journal.last_accepted() == {}
            for second, trigger in ((1, "a"), (2, "b"), (3, "a")):
                entry = Entry(event=make_event(trigger=trigger))
                await journal.append([entry], now=at(second))
            assert await journal.last_accepted() == {"a": at(3), "b": at(2)}

    # ---------------------------------------------------------------- lines

    async def test_a_queued_run_has_a_position_in_each_of_its_lines(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            other, *runs = [
                make_run(flow, order_key=key, keys={"limit": key})
                for flow, key in (("ship", "a"), ("bill", "a"), ("bill", "b"), ("bill", "a"))
            ]
            for run in (other, *runs):
                await put(journal, run)
            asked = [
                InLine(runs[2].seq, "bill", rule_id, key)
                for rule_id, key in ((None, None), ("order", "a"), ("limit", "a"), ("limit", "b"))
            ]
            assert await journal.queue_positions(asked) == [3, 2, 2, 1]
            await claim_all(journal, [runs[0].seq])
            assert await journal.queue_positions(asked) == [2, 1, 1, 1]

    async def test_runs_are_counted_as_due_or_scheduled_by_flow(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            for flow in ("bill", "bill", "ship"):
                await put(journal, make_run(flow))
            for flow, due in (("bill", 5), ("bill", 50), ("rest", 60)):
                claimed = await start(journal, flow)
                await finish(journal, claimed, ended(S.RETRYING, due_at=at(due)))
            sleeping = await start(journal, "nap")
            await finish(journal, sleeping, ended(S.WAITING, due_at=at(20)))
            counts = {each.flow: each for each in await journal.due_counts(at(10))}
            assert counts == {
                "bill": DueCount("bill", 3, NOW, 1),
                "ship": DueCount("ship", 1, NOW, 0),
                "rest": DueCount("rest", 0, None, 1),
            }
            counts = {each.flow: each for each in await journal.due_counts(at(55))}
            assert counts["bill"] == DueCount("bill", 4, NOW, 0)
            assert counts["nap"] == DueCount("nap", 1, at(20), 0)
            assert await journal.due_between(at(5), at(50)) == {"bill": 1, "nap": 1}

    # ---------------------------------------------------------------- cache

    async def test_a_cached_result_survives_a_restart_until_it_expires(
        self, tmp_path: Path
    ) -> None:
        def result(key: bytes, task: str, hours: int) -> Cached:
            return Cached(
                key=key, task=task, run_id="r", encoding="json", result=b"1", stored_at=NOW,
                expires_at=NOW + timedelta(hours=hours),
            )  # fmt: skip

        async with self.open(tmp_path) as journal:
            for one in (
                result(b"a", "fetch", 1),
                result(b"b", "fetch", 3),
                result(b"c", "look", 3),
            ):
                await journal.cache(one)
            await journal.cache(result(b"a", "fetch", 2))
        async with self.open(tmp_path) as journal:
            assert await journal.cached(b"a", now=NOW) == result(b"a", "fetch", 2)
            assert await journal.cached(b"a", now=NOW + timedelta(hours=2)) is None
            assert await journal.clear_cache(over_by=NOW + timedelta(hours=2)) == 1
            assert await journal.count_cached("look") == 1
            assert await journal.clear_cache(task="look") == 1
            assert (await journal.count_cached(None), await journal.count_cached("no")) == (1, 0)
            assert await journal.cached(b"c", now=NOW) is None
            assert await journal.cached(b"b", now=NOW) is not None
            assert await journal.clear_cache() == 1

    # ---------------------------------------------------------------- state between runs

    async def test_a_state_that_is_cleared_is_gone_and_a_run_that_has_read_it_starts_over(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            first, reader, other = [await start(journal) for _ in range(3)]
            await finish(journal, first, ended(state_write=StateWrite("", 0, b"1")))
            assert await journal.clear_state("bill", key="other", now=NOW) == 0
            assert await journal.clear_state("other", key=None, now=NOW) == 0
            assert await journal.clear_state("bill", key="", now=NOW) == 1
            assert await journal.clear_state("bill", key=None, now=NOW) == 0
            assert await states(journal) == []
            for lost in (StateWrite("", 1, b"9"), StateWrite("", 0, b"9")):
                with pytest.raises(StateMoved):
                    await finish(journal, reader, ended(state_write=lost))
            cleared = journal.flow_state("bill", "")
            assert cleared is not None and (cleared.version, cleared.value) == (2, b"null")
            await finish(journal, other, ended(state_write=StateWrite("", 2, b"7")))
            assert [(one.version, one.value) for one in await states(journal)] == [(3, b"7")]

    async def test_one_key_of_a_state_is_listed_and_cleared(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            for key in ("", "a", "b"):
                await finish(
                    journal, await start(journal), ended(state_write=StateWrite(key, 0, b"1"))
                )
            assert [one.key for one in await journal.flow_states("bill", 9, key="a")] == ["a"]
            assert [one.key for one in await journal.flow_states(None, 9, key="")] == [""]
            assert await journal.count_states("bill", None) == 3
            assert await journal.count_states("bill", "a") == 1
            assert await journal.clear_state("bill", key="a", now=NOW) == 1
            assert await journal.count_states("bill", "a") == 0
            assert [one.key for one in await states(journal)] == ["", "b"]
            assert await journal.clear_state("bill", key=None, now=NOW) == 2

    async def test_the_state_of_a_key_goes_when_no_run_has_had_the_key_for_long(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            held = ["queued", "retrying", "running", "scheduled", "waiting"]
            for key in ("", "gone", "read", *held):
                claimed = await start(journal, order_key=key or None)
                await finish(journal, claimed, ended(state_write=StateWrite(key, 0, b"1")))
            reader = await start(journal, order_key="read")  # it keeps no other value
            await journal.record(reader, ended(), started_at=NOW, now=at(20))
            await put(journal, make_run(order_key="queued"))
            await put(journal, make_run(state=S.SCHEDULED, order_key="scheduled", due_at=at(99)))
            await start(journal, order_key="running")
            for state in (S.RETRYING, S.WAITING):
                claimed = await start(journal, order_key=state)
                await finish(journal, claimed, ended(state, due_at=at(99)))
            await self.prune(journal, finished_before=at(30))

            async def left(since: int) -> list[str]:
                while await journal.prune_states(unused_since=at(since), now=at(40), limit=2):
                    pass
                return sorted(one.key for one in await states(journal))

            assert await left(0) == sorted(["", "gone", "read", *held])
            assert await left(10) == sorted(["", "read", *held])
            assert await left(21) == ["", *held]
            assert await left(40) == ["", *held]

    # ---------------------------------------------------------------- retention

    async def prune(self, journal: Journal, **before: datetime) -> int:
        bounds = dict.fromkeys(
            ("finished_before", "failed_before", "unmatched_before", "dedupe_before", "now"), at(-9)
        )
        deleted = await journal.prune(**(bounds | before), limit=3)
        return deleted and deleted + await self.prune(journal, **before)

    async def test_old_runs_go_with_all_that_hangs_on_them(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            for _ in range(10):
                claimed = await start(journal)
                await journal.record_step(claimed.claim, step("a#1"))
                await finish(journal, claimed, ended(log=b"x"))
            failed = await start(journal)
            await finish(journal, failed, ended(S.FAILED))
            unfinished = await put(journal, make_run())
            assert await self.prune(journal, finished_before=at(0)) == 0
            assert await self.prune(journal, finished_before=at(9)) > 0
            assert [run.state for run in await journal.runs(Filter())] == ["queued", "failed"]
            assert len(await journal.events(Filter())) == 2
            assert await journal.steps(claimed.claim.run_seq) == []
            assert await self.prune(journal, failed_before=at(9)) > 0
            assert await self.counts(journal) == Counts({"queued": 1})
            assert (await journal.event(unfinished.event))[0].runs == unfinished.runs

    async def test_a_seq_is_never_given_twice(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            await finish(journal, claimed, ended())
            await self.prune(journal, finished_before=at(9))
            assert await journal.events(Filter()) == []
        async with self.open(tmp_path) as journal:
            again = await start(journal)
            assert (
                again.claim.run_seq > claimed.claim.run_seq and again.event_seq > claimed.event_seq
            )

    async def test_unmatched_events_and_dedupe_have_ages_of_their_own(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            event = make_event("d-1")
            await put(journal, event=event, decisions=[Decision("bill", Reason.FILTERED)])
            await self.prune(journal, unmatched_before=at(1))
            assert await journal.event("d-1") == []
            again = await put(journal, make_run(), event=event)
            assert again.duplicate and again.runs == ()
            kept = await put(journal, make_run(), event=make_event("d-2"))
            await self.prune(journal, dedupe_before=at(1))
            assert not (await put(journal, make_run(), event=event)).duplicate
            # an event that outlives its window is still found by its id
            found = await journal.event("d-2")
            assert [stored.runs for stored in found] == [kept.runs]
            assert [run.id for run in await journal.runs(Filter(event="d-2"))] == [*kept.runs]

    async def test_deliveries_with_a_window_of_their_own_are_forgotten_at_its_end(
        self, tmp_path: Path
    ) -> None:
        windows = {"long": 100, "short": 2, "plain": None}

        async with self.open(tmp_path) as journal:

            async def new(kind: str, second: int) -> list[int]:
                """Deliver nine events of a kind again; return those that are new by now."""
                entries = [
                    Entry(event=make_event(f"{kind}-{n}"), runs=[make_run()]) for n in range(9)
                ]
                window = windows[kind]
                dedupe = None if window is None else timedelta(seconds=window)
                done = [
                    (await journal.append([entry], now=at(second + n), dedupe=dedupe))[0]
                    for n, entry in enumerate(entries)
                ]
                return [n for n, appended in enumerate(done) if not appended.duplicate]

            everything = [*range(9)]
            # Long ones in front of the others, and more of them than one call prunes.
            assert [await new(kind, 0) for kind in windows] == [everything] * 3
            await self.prune(journal, dedupe_before=at(4), now=at(7))
            assert await new("short", 20) == [*range(6)]
            assert await new("plain", 20) == [*range(4)]
            assert await new("long", 20) == []
            await self.prune(journal, dedupe_before=at(10), now=at(105))
            assert await new("long", 200) == [*range(6)]
            assert await new("short", 200) == everything
            assert await new("plain", 200) == [*range(4, 9)]
            await self.prune(journal, dedupe_before=at(300), now=at(400))
            assert [await new(kind, 400) for kind in windows] == [everything] * 3
            found = await journal.event("short-8")  # each of them is still found by its id
            assert len(found) == 3

    async def test_what_is_withdrawn_may_come_again(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            event = make_event("a", trigger="t")
            [first] = await journal.append([Entry(event=event, runs=[make_run()])], now=NOW)
            await journal.withdraw([first.event_seq], trigger="t", positions={}, now=NOW)
            [again] = await journal.append([Entry(event=event, runs=[make_run()])], now=NOW)
            assert not again.duplicate and again.event_seq > first.event_seq

    async def test_an_event_whose_after_run_action_is_due_is_not_pruned(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            entry = Entry(
                event=make_event(), runs=[make_run(state=S.RUNNING)], after_run_action=True
            )
            claimed = claim_of(entry, (await journal.append([entry], now=NOW))[0])
            await finish(journal, claimed, ended())
            assert await self.prune(journal, finished_before=at(9)) == 0
            await journal.record_action(claimed.event_seq, None)
            assert await self.prune(journal, finished_before=at(9)) > 0

    # ---------------------------------------------------------------- health

    async def test_doctor_finds_nothing_wrong(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            claimed = await start(journal)
            await journal.record_step(claimed.claim, step("a#1"))
            await finish(journal, claimed, ended(S.FAILED))
            await put(journal, decisions=[Decision("bill", Reason.FILTERED)])
            await put(journal)
            found = [item async for item in journal.examine()]
            assert len(found) > 5
            assert {problem for _, problem in found} == {None}

    async def test_probe_and_size(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await journal.probe()
            assert journal.writable is None
            assert journal.size_bytes() > 0
