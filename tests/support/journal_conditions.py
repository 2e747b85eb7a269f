"""What every journal must do about the conditions of new runs, written against the contract.

A test module subclasses `ConditionsContract` as it does `JournalContract`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from turnout.service.domain.conditions import Conditions, Mode
from turnout.service.domain.decisions import Reason
from turnout.service.domain.errors import Overloaded, PositionsMoved, QueueFull, Refused
from turnout.service.domain.run import Keys, Run, RunError, RunState
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import (
    NOTHING,
    REGISTERED,
    Appended,
    Decision,
    EndedEvent,
    Entry,
    Filter,
    Move,
    NewRun,
    Opening,
    StepRecord,
    StoredPause,
    run_topic,
)

from .journal_contract import (
    NOW,
    S,
    at,
    claim_all,
    claim_of,
    ended,
    expect_run,
    finish,
    make_event,
    make_run,
    put,
    step,
)

DONE = Conditions(unique="done")
WEEK = Conditions(unique=timedelta(days=7))
SKIP, REPLACE, LATEST = (Conditions(mode=mode) for mode in ("skip", "replace", "latest"))


def asked(
    conditions: Conditions, by: Keys = NOTHING, *, state: RunState = S.QUEUED, **keys: str | None
) -> NewRun:
    """A new run of flow `bill` with these keys, by rule."""
    return make_run(state=state, keys={**by, **keys}, conditions=conditions)


async def finished(journal: Journal, run: NewRun, state: RunState = S.SUCCEEDED) -> None:
    """Run a queued run to its end."""
    [claimed] = await claim_all(journal, [run.seq])
    error = RunError("Oops", "no") if state is S.FAILED else None
    await finish(journal, claimed, ended(state, error=error))


async def all_runs(journal: Journal) -> Mapping[str, Run]:
    return {run.id: run for run in await journal.runs(Filter(limit=1000))}


async def decisions_of(journal: Journal, event_id: str) -> list[Mapping[str, Any]]:
    [stored] = await journal.event(event_id)
    return list(stored.decisions)


def reasons(appended: Appended) -> Sequence[Reason]:
    return [made.reason for made in appended.decided]


class ConditionsContract:
    """Subclass and give `open`."""

    def open(self, folder: Path, **bounds: int) -> AbstractAsyncContextManager[Journal]:
        raise NotImplementedError

    # ---------------------------------------------------------------- unique

    async def test_the_second_to_ask_gets_the_first_run(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            first, second = (asked(DONE, unique="invoice-7") for _ in range(2))
            other, keyless = asked(DONE, unique="invoice-8"), asked(DONE, unique=None)
            await put(journal, first)
            refused = await put(journal, second)
            assert refused.runs == (first.id,)
            assert reasons(refused) == [Reason.UNIQUE]
            run = await expect_run(journal, second.id)
            assert (run.state, run.finished_at) == (S.SKIPPED, NOW)
            assert run.reason == f"run {first.id} was asked for the same first (unique='invoice-7')"
            [made] = await decisions_of(journal, refused.event)
            assert (made["flow"], made["reason"], made["detail"]) == ("bill", "unique", run.reason)
            assert made["facts"] == {
                "run": second.id, "other": first.id, "rule": "unique=", "key": "invoice-7",
            }  # fmt: skip
            for run_asked in (other, keyless, asked(DONE, unique=None)):
                assert not (await put(journal, run_asked)).refused
            assert [each.id for each in await journal.queued("bill", 0, 9)][:1] == [first.id]
            assert len(await journal.queued("bill", 0, 9)) == 4, "the refused run is not queued"

    async def test_the_second_deliverer_again_hears_of_the_first_run(self, tmp_path: Path) -> None:
        event = make_event("d-2")
        async with self.open(tmp_path) as journal:
            first = asked(DONE, unique="k")
            await put(journal, first)
            for _ in range(2):
                appended = await put(journal, asked(DONE, unique="k"), event=event)
                assert appended.runs == (first.id,)
            assert appended.duplicate and not appended.refused

    @pytest.mark.parametrize("state", [S.SUCCEEDED, S.FAILED, S.SKIPPED])
    async def test_done_holds_a_key_until_the_run_has_ended(
        self, tmp_path: Path, state: RunState
    ) -> None:
        async with self.open(tmp_path) as journal:
            first = asked(DONE, unique="k")
            await put(journal, first)
            [claimed] = await claim_all(journal, [first.seq])
            await finish(journal, claimed, ended(S.RETRYING, due_at=at(60)))
        async with self.open(tmp_path) as journal:
            assert (await put(journal, asked(DONE, unique="k"))).refused
            await finished(journal, first, state)
            assert not (await put(journal, asked(DONE, unique="k"))).refused

    async def test_a_duration_holds_a_key_from_acceptance(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            first = asked(WEEK, unique="k")
            await put(journal, first)
            await finished(journal, first)
        async with self.open(tmp_path) as journal:
            await self.prune_all(journal, now=at(86_400))
            assert first.id not in await all_runs(journal)
            for day, is_refused in ((6.99, True), (7, False), (13.9, True)):
                entry = Entry(event=make_event(), runs=[asked(WEEK, unique="k")])
                [appended] = await journal.append([entry], now=at(day * 86_400))
                assert bool(appended.refused) is is_refused, day
                if day < 7:
                    assert appended.runs == (first.id,)

    @pytest.mark.parametrize("fate", [S.FAILED, S.CANCELLED])
    async def test_a_duration_is_freed_by_failed_and_cancelled(
        self, tmp_path: Path, fate: RunState
    ) -> None:
        async with self.open(tmp_path) as journal:
            first = asked(WEEK, unique="k")
            await put(journal, first)
            if fate is S.CANCELLED:
                await journal.cancel(first.id, now=at(1))
            else:
                await finished(journal, first, fate)
            second = asked(WEEK, unique="k")
            assert not (await put(journal, second)).refused
            await journal.retry(first.id, None, now=at(2))
            assert (await put(journal, asked(WEEK, unique="k"))).runs == (second.id,)

    @pytest.mark.parametrize("reason", [Reason.START_TIMEOUT, Reason.LATEST, Reason.DROPPED])
    async def test_a_duration_is_freed_by_a_rule_that_ends_the_run_before_it_starts(
        self, tmp_path: Path, reason: Reason
    ) -> None:
        async with self.open(tmp_path) as journal:
            first = asked(replace(WEEK, mode="latest"), unique="k", mode="m")
            await put(journal, first)
            if reason is Reason.LATEST:
                newer = await put(journal, asked(LATEST, mode="m"))
                assert [run.id for run in newer.skipped] == [first.id]
            else:
                await journal.skip({first.seq: Decision("bill", reason, "no", {})}, now=at(1))
            assert (await expect_run(journal, first.id)).state is S.SKIPPED
            assert not (await put(journal, asked(WEEK, unique="k"))).refused

    async def test_a_duration_is_held_by_a_run_that_its_own_code_has_skipped(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            first = asked(WEEK, unique="k")
            await put(journal, first)
            await finished(journal, first, S.SKIPPED)
            assert (await put(journal, asked(WEEK, unique="k"))).runs == (first.id,)

    @pytest.mark.parametrize("conditions", [DONE, WEEK], ids=["done", "week"])
    async def test_a_replay_has_the_key_that_the_failed_run_has_given_up(
        self, tmp_path: Path, conditions: Conditions
    ) -> None:
        async with self.open(tmp_path) as journal:
            first = asked(conditions, unique="k")
            event = (await put(journal, first)).event_seq
            await finished(journal, first, S.FAILED)
            again = make_run(keys={"unique": "k"}, conditions=conditions.of_replay())
            await journal.replay(event, [again], now=at(86_400))
        async with self.open(tmp_path) as journal:
            second = await put(journal, asked(conditions, unique="k"))
            assert second.runs == (again.id,) and second.refused
            await finished(journal, again)
            for day, is_refused in ((7.9, True), (8, False)):
                entry = Entry(event=make_event(), runs=[asked(conditions, unique="k")])
                [appended] = await journal.append([entry], now=at(day * 86_400))
                assert bool(appended.refused) is (is_refused and conditions is WEEK)
                if conditions is DONE:
                    break
                assert appended.runs == (again.id,) or not is_refused

    @pytest.mark.parametrize("fate", [S.FAILED, S.SUCCEEDED])
    async def test_a_replay_takes_no_key_from_a_run_that_has_it(
        self, tmp_path: Path, fate: RunState
    ) -> None:
        async with self.open(tmp_path) as journal:
            first = asked(WEEK, unique="k")
            event = (await put(journal, first)).event_seq
            await finished(journal, first, fate)
            if fate is S.FAILED:
                first = asked(WEEK, unique="k")
                assert not (await put(journal, first)).refused
            again = make_run(keys={"unique": "k"}, conditions=WEEK.of_replay())
            assert not (await journal.replay(event, [again], now=at(1))).refused
            assert (await put(journal, asked(WEEK, unique="k"))).runs == (first.id,)
            await finished(journal, again, S.FAILED)
            assert (await put(journal, asked(WEEK, unique="k"))).runs == (first.id,)

    async def test_a_pruned_failure_holds_no_key(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            first = asked(WEEK, unique="k")
            await put(journal, first)
            await finished(journal, first, S.FAILED)
            await self.prune_all(journal, now=at(86_400))
            assert not (await put(journal, asked(WEEK, unique="k"))).refused

    async def test_a_key_goes_with_its_flow_to_a_new_name(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await put(journal, asked(WEEK, unique="k"))
            await journal.rename_flows({"bill": "invoice"})
            entry = make_run("invoice", keys={"unique": "k"}, conditions=WEEK)
            assert (await put(journal, entry)).refused

    # ---------------------------------------------------------------- mode

    async def test_skip_ends_the_new_run_while_another_is_under_way(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            first, waiting = asked(SKIP, mode="k"), asked(SKIP, mode="k")
            await put(journal, first)
            assert not (await put(journal, waiting)).refused, "nothing is under way yet"
            [claimed] = await claim_all(journal, [first.seq])
            for state in (None, S.RETRYING, S.WAITING):
                if state is not None:
                    await finish(journal, claimed, ended(state, due_at=at(60)))
                late = asked(SKIP, mode="k")
                appended = await put(journal, late)
                [made] = appended.refused.values()
                assert (made.reason, made.detail) == ("skip", f"run {first.id} was under way")
                assert made.facts["other"] == first.id
                assert not (await put(journal, asked(SKIP, mode="other"))).refused
                if state is not None:
                    [claimed] = await claim_all(journal, [first.seq])
            await finish(journal, claimed, ended())
            assert not (await put(journal, asked(SKIP, mode="k"))).refused

    async def test_a_run_the_process_died_under_is_still_under_way(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            first = asked(SKIP, mode="k", state=S.RUNNING)
            await put(journal, first)
        async with self.open(tmp_path) as journal:
            await journal.rescue(now=at(1))
            assert (await expect_run(journal, first.id)).state is S.QUEUED
            assert (await put(journal, asked(SKIP, mode="k"))).refused

    async def test_replace_cancels_every_older_run_with_its_children(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            running = asked(REPLACE, mode="k", state=S.RUNNING)
            entry = Entry(event=make_event(), runs=[running])
            [appended] = await journal.append([entry], now=NOW)
            claim = claim_of(entry, appended).claim
            child = make_run("child")
            await journal.record_with(
                claim, step("call", "waiting", origin=child.id),
                entries=[Entry(event=make_event(), runs=[child])],
                opening=Opening(topic=run_topic(child.id)), now=NOW,
            )  # fmt: skip
            other = asked(REPLACE, mode="other")
            await put(journal, other)
            new = asked(REPLACE, mode="k")
            replaced = await put(journal, new)
            assert [run.id for run in replaced.cancelled] == [running.id, child.id]
            assert reasons(replaced) == [Reason.REPLACED]
            old = await expect_run(journal, running.id)
            assert (old.state, old.reason) == (S.CANCELLED, f"replaced by run {new.id}")
            [made] = await decisions_of(journal, appended.event)
            assert made["reason"] == "replaced" and made["facts"]["other"] == new.id
            queued = [run.id for run in await journal.queued("bill", 0, 9)]
            assert queued == [other.id, new.id]
            newest = asked(REPLACE, mode="k")
            assert [run.id for run in (await put(journal, newest)).cancelled] == [new.id]

    async def test_a_replaced_run_with_steps_to_undo_is_undone(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            running = asked(REPLACE, mode="k", state=S.RUNNING)
            entry = Entry(event=make_event(), runs=[running])
            [appended] = await journal.append([entry], now=NOW)
            undo = StepRecord(
                key="~on#1", task=REGISTERED, state="succeeded", tries=1, started_at=NOW
            )
            await journal.record_step(claim_of(entry, appended).claim, undo)
            new, newest = asked(REPLACE, mode="k"), asked(REPLACE, mode="k")
            [queued] = (await put(journal, new)).cancelled
            assert (queued.id, queued.state) == (running.id, S.QUEUED), "for its undo"
            [cancelled] = (await put(journal, newest)).cancelled
            assert cancelled.id == new.id, "one that is being undone is left to that"

    async def test_latest_leaves_one_waiting_run(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            running = asked(LATEST, mode="k", state=S.RUNNING)
            await put(journal, running)
            waiting = asked(LATEST, mode="k")
            first = await put(journal, waiting)
            assert not first.decided
            newer = asked(LATEST, mode="k")
            appended = await put(journal, newer)
            assert [run.id for run in appended.skipped] == [waiting.id] and not appended.cancelled
            old = await expect_run(journal, waiting.id)
            assert (old.state, old.reason) == (S.SKIPPED, f"run {newer.id} took its place")
            [made] = await decisions_of(journal, first.event)
            assert made["reason"] == "latest"
            assert (made["facts"]["run"], made["facts"]["other"]) == (waiting.id, newer.id)
            assert (await expect_run(journal, running.id)).state is S.RUNNING
            assert [run.id for run in await journal.queued("bill", 0, 9)] == [newer.id]
            assert not await claim_all(journal, [waiting.seq]), "it can start no more"

    async def test_what_an_operator_has_queued_again_waits(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            again = asked(LATEST, mode="k")
            await put(journal, again)
            await finished(journal, again, S.FAILED)
            await journal.retry(again.id, None, now=at(3))
            skipped = (await put(journal, asked(LATEST, mode="k"))).skipped
            assert [run.id for run in skipped] == [again.id]

    async def test_an_operators_retry_obeys_the_mode(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            old, new = asked(SKIP, mode="k"), asked(SKIP, mode="k", state=S.RUNNING)
            await put(journal, old)
            await finished(journal, old, S.FAILED)
            await put(journal, new)
            with pytest.raises(Refused, match=f"run {new.id} was under way .*--force"):
                await journal.retry(old.id, None, mode="skip", now=at(2))
            assert (await expect_run(journal, old.id)).state is S.FAILED
            retried = await journal.retry(old.id, None, mode="replace", now=at(2))
            assert retried.run.state is S.QUEUED
            assert [run.id for run in retried.cancelled] == [new.id]
            assert [made.reason for made in retried.decided] == [Reason.REPLACED]

    async def test_a_retry_obeys_the_mode_of_a_flow_that_was_renamed(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            old, new = asked(LATEST, mode="k"), asked(LATEST, mode="k")
            await put(journal, old)
            await finished(journal, old)
            await put(journal, new)
            await journal.rename_flows({"bill": "charge"})
            retried = await journal.retry(old.id, None, mode="latest", flow="charge", now=at(2))
            assert [run.id for run in retried.skipped] == [new.id]

    @pytest.mark.parametrize("mode", ["replace", None])
    async def test_a_new_run_finds_one_that_is_retried_after_its_flow_was_renamed(
        self, tmp_path: Path, mode: Mode | None
    ) -> None:
        async with self.open(tmp_path) as journal:
            old = asked(REPLACE, mode="k")
            await put(journal, old)
            await finished(journal, old)
            await journal.rename_flows({"bill": "charge"})
            retried = await journal.retry(old.id, None, mode=mode, flow="charge", now=at(2))
            assert retried.run.flow == "charge"
            new = make_run("charge", keys={"mode": "k"}, conditions=REPLACE)
            assert [run.id for run in (await put(journal, new)).cancelled] == [old.id]

    async def test_a_forced_retry_has_no_key_of_its_mode(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            old, new = asked(SKIP, mode="k"), asked(SKIP, mode="k", state=S.RUNNING)
            await put(journal, old)
            await finished(journal, old, S.FAILED)
            await put(journal, new)
            run = (await journal.retry(old.id, None, mode="skip", force=True, now=at(2))).run
            assert run.state is S.QUEUED
            run = await expect_run(journal, old.id)
            assert run.forced and run.keys == {"mode": None}
            [queued] = await journal.queued("bill", 0, 9)
            assert queued.keys == {"mode": None}

    async def test_a_replay_asks_the_mode_alone(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            running = asked(SKIP, mode="k", state=S.RUNNING)
            first = await put(journal, running)
            for force in (False, True):
                again = asked(SKIP, mode="k")
                if force:
                    again.start_past_mode()
                replayed = await journal.replay(first.event_seq, [again], now=at(1))
                assert replayed.runs == (again.id,)
                assert bool(replayed.refused) is not force
                run = await expect_run(journal, again.id)
                assert run.forced is force
                assert run.state is (S.QUEUED if force else S.SKIPPED)

    async def test_a_run_without_a_key_shares_nothing(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            for conditions in (SKIP, REPLACE, LATEST):
                for _ in range(2):
                    new = asked(conditions, mode=None, state=S.RUNNING)
                    appended = await put(journal, new)
                    assert not appended.decided and not appended.cancelled

    # ---------------------------------------------------------------- cancel_on

    async def test_an_event_cancels_the_runs_before_it(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            early, other = (make_run(keys={"cancel_on": key}) for key in ("7", "8"))
            await put(journal, early)
            await put(journal, other)
            own, late = (make_run(keys={"cancel_on": "7"}) for _ in range(2))
            appended = await put(
                journal, own, event=make_event("c-1"), cancels=[("bill", "7"), ("ship", "7")]
            )
            assert [run.id for run in appended.cancelled] == [early.id]
            run = await expect_run(journal, early.id)
            assert (run.state, run.reason) == (S.CANCELLED, "cancelled by event c-1")
            assert run.cancelled_by == "webhook:/orders"
            await put(journal, late)
            states = {run.id: run.state for run in (await all_runs(journal)).values()}
            assert states[own.id] == states[late.id] == states[other.id] == S.QUEUED

    # ---------------------------------------------------------------- the bound

    async def test_a_full_queue_refuses_a_delivery_as_a_whole(self, tmp_path: Path) -> None:
        few = Conditions(max_queued=2)
        async with self.open(tmp_path) as journal:
            for _ in range(2):
                await put(journal, asked(few))
            before = await all_runs(journal), await self.counts_of(journal)
            entries = [
                Entry(event=make_event("plain"), runs=[make_run("ship")]),
                Entry(event=make_event("both"), runs=[make_run("ship"), asked(few)]),
            ]
            with pytest.raises(QueueFull, match="flow 'bill' has 2 runs queued, and max_queued=2"):
                await journal.append(
                    entries, trigger="t", positions={"0": Move(None, "9")}, now=at(1)
                )
            assert (await all_runs(journal), await self.counts_of(journal)) == before
            assert await journal.positions("t") == {}
            assert not await journal.event("plain") and not await journal.event("both")
            again = await journal.append(
                entries[:1], trigger="t", positions={"0": Move(None, "9")}, now=at(2)
            )
            assert not again[0].duplicate, "nothing was remembered of it either"
            [first, *_] = await journal.queued("bill", 0, 9)
            await claim_all(journal, [first.seq])
            assert not (await put(journal, asked(few))).refused

    async def test_a_refused_delivery_gives_its_class_to_no_later_run_of_the_key(
        self, tmp_path: Path
    ) -> None:
        few = Conditions(max_queued=1)
        async with self.open(tmp_path) as journal:
            await put(journal, asked(few))
            low, high = (make_run("ship", order_key="a", priority=level) for level in (3, 1))
            refused = journal.append(
                [Entry(event=make_event("refused"), runs=[low, asked(few)])], now=at(1)
            )
            taken = journal.append([Entry(event=make_event("taken"), runs=[high])], now=at(1))
            with pytest.raises(QueueFull):
                await refused
            await taken
            assert [run.priority for run in await journal.queued("ship", 0, 9)] == [1]

    async def test_a_full_queue_takes_what_starts_at_once_and_what_is_paused(
        self, tmp_path: Path
    ) -> None:
        few = Conditions(max_queued=1)
        async with self.open(tmp_path) as journal:
            await put(journal, asked(few))
            await put(journal, asked(few, state=S.RUNNING))
            with pytest.raises(QueueFull):
                await put(journal, asked(few))
            await journal.pause(StoredPause(name="flow:bill", since=NOW))
            await put(journal, asked(few))
            await journal.resume("flow:bill")
            with pytest.raises(QueueFull):
                await put(journal, asked(few))

    async def test_a_delivery_larger_than_the_bound_is_taken_where_the_queue_is_not_full(
        self, tmp_path: Path
    ) -> None:
        few = Conditions(max_queued=2)
        async with self.open(tmp_path) as journal:
            poll = [Entry(event=make_event(f"r-{n}"), runs=[asked(few)]) for n in range(5)]
            await journal.append(poll, now=at(0))
            assert len(await journal.queued("bill", 0, 9)) == 5
            with pytest.raises(QueueFull):
                await put(journal, asked(few))

    async def test_senders_come_again_when_a_tenth_is_free(self, tmp_path: Path) -> None:
        few = Conditions(max_queued=100)

        async def refusal(journal: Journal, second: float) -> int:
            entry = Entry(event=make_event(), runs=[asked(few)])
            with pytest.raises(QueueFull) as refused:
                await journal.append([entry], now=at(second))
            return refused.value.retry_after_seconds

        async with self.open(tmp_path) as journal:
            entries = [Entry(event=make_event(), runs=[asked(few)]) for _ in range(120)]
            await journal.append(entries[:100], now=at(0))
            assert await refusal(journal, 0.1) == 5, "the rate is not known yet"
            assert await refusal(journal, 10) == 300, "nothing leaves it"
            waiting = await journal.queued("bill", 0, 200)
            await claim_all(journal, [run.seq for run in waiting[:20]])
            await journal.append(
                entries[100:], now=at(20)
            )  # one delivery, over the bound at its end
            # 20 in 20 s have left, and of 100 there are 10 too many.
            assert await refusal(journal, 20) == 10

    async def test_the_bound_on_all_runs_tells_when_to_come_again(self, tmp_path: Path) -> None:
        async with self.open(tmp_path, max_unfinished_runs=10) as journal:
            runs = [make_run() for _ in range(10)]
            for run in runs:
                await put(journal, run)
            with pytest.raises(Overloaded) as refused:
                await put(journal, make_run())
            assert not isinstance(refused.value, QueueFull)
            assert refused.value.retry_after_seconds == 5
            for run in runs[:2]:
                await finished(journal, run)
            for run in (make_run(), make_run()):
                await put(journal, run)
            with pytest.raises(Overloaded) as refused:
                entry = Entry(event=make_event(), runs=[make_run()])
                await journal.append([entry], now=at(30))
            assert refused.value.retry_after_seconds == 15  # 2 in 30 s, and one too many

    # ---------------------------------------------------------------- together

    async def test_a_delivery_that_comes_again_decides_nothing(self, tmp_path: Path) -> None:
        event = make_event("d-1")
        async with self.open(tmp_path) as journal:
            await put(journal, asked(REPLACE, mode="k"), event=event, cancels=[("ship", "7")])
            running = asked(REPLACE, mode="k", state=S.RUNNING)
            await put(journal, running)
            shipped = make_run("ship", keys={"cancel_on": "7"})
            await put(journal, shipped)
            before = await all_runs(journal)
            again = await put(
                journal, asked(REPLACE, mode="k"), event=event, cancels=[("ship", "7")]
            )
            assert again.duplicate and not again.cancelled
            assert await all_runs(journal) == before

    async def test_one_refusal_in_a_batch_harms_nothing_else(self, tmp_path: Path) -> None:
        few = Conditions(unique="done", max_queued=3)
        async with self.open(tmp_path) as journal:
            runs = [asked(few, unique=str(index % 4)) for index in range(8)]
            others = [make_run("ship") for _ in range(8)]
            entries = [Entry(event=make_event(), runs=[run]) for run in (*runs, *others)]
            mixed = [each for pair in zip(entries[:8], entries[8:], strict=True) for each in pair]
            writes = [journal.append([entry], now=NOW) for entry in mixed]
            fates: dict[str, str] = {}
            for entry, write in zip(mixed, writes, strict=True):
                try:
                    [appended] = await write
                except QueueFull:
                    fates[entry.runs[0].id] = "full"
                else:
                    fates[entry.runs[0].id] = "refused" if appended.refused else "stored"
            assert [fates[run.id] for run in others] == ["stored"] * 8
            # The fourth key finds the queue full both times.
            assert [fates[run.id] for run in runs] == [
                *["stored"] * 3, "full", *["refused"] * 3, "full",
            ]  # fmt: skip

    async def test_what_was_submitted_before_is_seen(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            entry = Entry(event=make_event(), runs=[asked(SKIP, mode="k", state=S.RUNNING)])
            [appended] = await journal.append([entry], now=NOW)
            late: list[Appended] = []

            async def end() -> None:
                await finish(journal, claim_of(entry, appended), ended())

            async def ask() -> None:
                late.append(await put(journal, asked(SKIP, mode="k")))

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(end())
                tasks.create_task(ask())
            assert not late[0].refused

    async def test_positions_that_have_moved_undo_what_was_decided(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            running = asked(REPLACE, mode="k", state=S.RUNNING)
            await put(journal, running)
            before = await all_runs(journal)
            entry = Entry(event=make_event(), runs=[asked(REPLACE, mode="k")])
            with pytest.raises(PositionsMoved):
                await journal.append([entry], trigger="t", positions={"0": Move("7", "9")}, now=NOW)
            assert await all_runs(journal) == before

    async def test_an_event_tells_that_a_run_of_it_was_refused(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await put(journal, asked(DONE, unique="k"))
            entry = Entry(
                event=make_event(), runs=[asked(DONE, unique="k"), make_run("ship")],
                after_run_action=True,
            )  # fmt: skip
            [appended] = await journal.append([entry], now=NOW)
            assert await journal.event_ended(appended.event_seq) is None, "ship has not ended"
            await finished(journal, entry.runs[1])
            due = EndedEvent(appended.event_seq, entry.event, None, is_refused=True)
            assert await journal.event_ended(appended.event_seq) == due
            assert await journal.due_actions(0, 9) == [due]

    # ---------------------------------------------------------------- what a driver gives

    async def counts_of(self, journal: Journal) -> Mapping[str, int]:
        return {state: count for state, count in journal.counts()[0].items() if count}

    async def prune_all(self, journal: Journal, *, now: Any) -> None:
        await journal.prune(
            finished_before=now, failed_before=now, unmatched_before=now, dedupe_before=now,
            now=now, limit=1000,
        )  # fmt: skip
