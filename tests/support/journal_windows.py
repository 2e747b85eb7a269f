"""What every journal must do about windows, written against the contract.

A test module subclasses `WindowsContract` as it does `JournalContract`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from turnout.service.domain.conditions import Conditions
from turnout.service.domain.errors import ClaimLost, NotFound, QueueFull
from turnout.service.domain.event import Event
from turnout.service.domain.run import Outcome, RunError, RunState
from turnout.service.domain.windows.absent import absent
from turnout.service.domain.windows.batch import batch
from turnout.service.domain.windows.count import count
from turnout.service.domain.windows.debounce import debounce
from turnout.service.domain.windows.firing import Firing, firing_of
from turnout.service.domain.windows.window import MOST_MEMBERS, WindowSettings
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import Appended, ClaimedRun, Entry, Filter, Move, NewMember
from turnout.triggers.webhook import webhook

from .journal_contract import NOW, S, at, claim_all, ended, finish, make_event, make_run

HOOK = webhook("/orders")
QUIET = debounce(HOOK, "5s").settings
QUIET_ALL = debounce(HOOK, "5s", keep="all").settings
PAIR = batch(HOOK, 2, "10s").settings
MANY = batch(HOOK, MOST_MEMBERS, "10s").settings
FLOWS = {"bill": Firing()}


def member(settings: WindowSettings, key: str | None = "", **more: Any) -> NewMember:
    chosen: dict[str, Any] = {"flow": "bill", "part": HOOK.name, "firing": Firing()}
    return NewMember(settings=settings, key=key, **(chosen | more))


async def offer(
    journal: Journal,
    settings: WindowSettings,
    seconds: float = 0,
    *,
    event: Event | None = None,
    **more: Any,
) -> Appended:
    """Append an event that is offered to a window of flow `bill`, at a time after `NOW`."""
    entry = Entry(event=event or make_event(), members=[member(settings, **more)])
    return (await journal.append([entry], now=at(seconds)))[0]


async def decisions_of(journal: Journal, event_id: str) -> list[tuple[str, str]]:
    [stored] = await journal.event(event_id)
    return [(made["flow"], made["reason"]) for made in stored.decisions]


def seqs(appended: Appended) -> Sequence[int]:
    return [fired.queued.seq for fired in appended.fired]


FAULT = RunError("Fault", "it is broken")


async def fired_batch(journal: Journal, number: int) -> ClaimedRun:
    """Return the claimed run of a batch of so many events."""
    settings = batch(HOOK, number, "10s").settings
    *_, last = [await offer(journal, settings, at) for at in range(number)]
    [run] = await claim_all(journal, seqs(last))
    return run


class WindowsContract:
    """Subclass and give `open`."""

    def open(self, folder: Path, **bounds: int) -> AbstractAsyncContextManager[Journal]:
        raise NotImplementedError

    # ---------------------------------------------------------------- joining and firing

    async def test_a_debounce_has_a_scheduled_run_that_is_queued_at_the_deadline(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            first = await offer(journal, QUIET)
            second = await offer(journal, QUIET, 3)
            assert first.runs == second.runs and first.windows == second.windows
            assert (first.deadline, second.deadline) == (at(5), at(8))
            [run] = await journal.runs(Filter())
            assert (run.state, run.due_at, run.events) == (S.SCHEDULED, at(8), 2)
            assert journal.counts()[0]["scheduled"] == 1
        async with self.open(tmp_path) as journal:
            early = await journal.close_due(FLOWS, now=at(7), limit=9)
            assert (early.fired, early.next_due_at) == ((), at(8))
            closed = await journal.close_due(FLOWS, now=at(8), limit=9)
            [fired] = closed.fired
            assert (fired.queued.id, closed.next_due_at) == (run.id, None)
            [claimed] = await claim_all(journal, [fired.queued.seq])
            assert claimed.members is not None and claimed.members.count == 2
            [last] = await journal.member_events(claimed.members.seqs)
            assert last.id == claimed.event.id == second.event
            assert not (await journal.close_due(FLOWS, now=at(99), limit=9)).fired
            assert journal.counts()[0].get("scheduled", 0) == 0

    async def test_a_run_gets_all_members_in_the_order_of_arrival(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            events = [make_event(body=f'{{"n": {number}}}'.encode()) for number in range(5)]
            for event in events:
                await offer(journal, QUIET_ALL, event=event)
            [fired] = (await journal.close_due(FLOWS, now=at(5), limit=9)).fired
            [claimed] = await claim_all(journal, [fired.queued.seq])
            assert claimed.members is not None
            assert await journal.member_events(claimed.members.seqs) == events
            assert claimed.event == events[0]
            assert await journal.member_events(claimed.members.seqs[3:1:-1]) == events[3:1:-1]

    async def test_the_member_that_fills_a_batch_queues_its_run(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            first = await offer(journal, PAIR)
            assert (first.runs, first.fired) == ((), ())
            second = await offer(journal, PAIR)
            assert len(second.fired) == 1 and second.runs == (second.fired[0].queued.id,)
            assert second.windows == first.windows
            third = await offer(journal, PAIR)
            assert third.windows != first.windows
            [run] = await journal.runs(Filter())
            assert (run.state, run.event_id, run.events) == (S.QUEUED, first.event, 2)
            assert await journal.open_windows() == {"bill": 1}

    async def test_windows_of_keys_and_flows_are_apart(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await offer(journal, PAIR, key="a")
            await offer(journal, PAIR, key="b")
            await offer(journal, PAIR, key="a", flow="ship")
            assert await journal.open_windows() == {"bill": 2, "ship": 1}
            [first, *_] = await journal.windows()
            assert first.due_at is not None
            assert await journal.due_windows(first.due_at) == {"bill": 2, "ship": 1}
            assert await journal.due_windows(first.due_at - timedelta(microseconds=1)) == {}
            alone = await offer(journal, PAIR, key=None)
            assert len(alone.fired) == 1, "an event without a key waits for nobody"
            assert await journal.open_windows() == {"bill": 2, "ship": 1}

    async def test_one_append_may_open_fill_and_open_again(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            entries = [Entry(event=make_event(), members=[member(PAIR)]) for _ in range(5)]
            appended = await journal.append(entries, now=NOW)
            assert [len(each.fired) for each in appended] == [0, 1, 0, 1, 0]
            assert [run.events for run in await journal.runs(Filter())] == [2, 2]

    async def test_a_window_is_full_at_ten_thousand_members(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            entries = [
                Entry(event=make_event(), members=[member(QUIET)]) for _ in range(MOST_MEMBERS)
            ]
            for start in range(0, MOST_MEMBERS, 1000):
                await journal.append(entries[start : start + 1000], now=NOW)
            assert len(await journal.windows()) == 1
            more = await offer(journal, QUIET)
            [fired] = more.fired
            [claimed] = await claim_all(journal, [fired.queued.seq])
            assert claimed.members is not None and claimed.members.count == MOST_MEMBERS
            first = entries[0].event.id
            assert await decisions_of(journal, first) == [("bill", "windowed")]
            [window] = await journal.windows()
            assert window.members == 1

    async def test_a_duplicate_is_no_member(self, tmp_path: Path) -> None:
        event = make_event("d-1")
        async with self.open(tmp_path) as journal:
            first = await offer(journal, PAIR, event=event)
            again = await offer(journal, PAIR, event=event)
            assert again.duplicate and not again.fired
            [window] = await journal.windows()
            assert window.members == 1 and {"bill": window.id} == dict(first.windows)

    async def test_a_window_that_is_due_fires_before_a_late_event_opens_the_next(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            first = await offer(journal, QUIET)
            late = await offer(journal, QUIET, 6)
            assert [fired.queued.id for fired in late.fired] == list(first.runs)
            assert late.windows != first.windows

    async def test_another_kind_lets_the_old_window_fire_as_it_was(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            first = await offer(journal, QUIET)
            second = await offer(journal, PAIR, 1)
            assert [fired.queued.id for fired in second.fired] == list(first.runs)
            [window] = await journal.windows()
            assert window.settings == PAIR

    # ---------------------------------------------------------------- conditions

    async def test_conditions_are_decided_when_a_window_fires(self, tmp_path: Path) -> None:
        unique = firing_of("", Conditions(unique="done"))
        async with self.open(tmp_path) as journal:
            for key in "ab":
                await offer(journal, QUIET, key=key, keys={"unique": "k"}, firing=unique)
            closed = await journal.close_due({"bill": unique}, now=at(5), limit=9)
            assert (len(closed.fired), len(closed.skipped)) == (1, 1)
            [skipped] = closed.skipped
            assert await decisions_of(journal, skipped.event_id) == [("bill", "unique")]

    async def test_a_firing_is_never_refused_at_a_bound(self, tmp_path: Path) -> None:
        full = Conditions(max_queued=1)
        async with self.open(tmp_path) as journal:
            run = make_run(conditions=full)
            await journal.append([Entry(event=make_event(), runs=[run])], now=NOW)
            with pytest.raises(QueueFull):
                other = make_run(conditions=full)
                await journal.append([Entry(event=make_event(), runs=[other])], now=NOW)
            await offer(journal, PAIR, firing=firing_of("", full))
            assert (await offer(journal, PAIR, firing=firing_of("", full))).fired

    async def test_a_refused_delivery_joins_no_window(self, tmp_path: Path) -> None:
        full = Conditions(max_queued=1)
        async with self.open(tmp_path) as journal:
            await journal.append(
                [Entry(event=make_event(), runs=[make_run(conditions=full)])], now=NOW
            )
            delivery = [
                Entry(event=make_event(), members=[member(PAIR)]),
                Entry(event=make_event(), runs=[make_run(conditions=full)]),
            ]
            many = [Entry(event=make_event()) for _ in range(500)]
            journal.append(many, now=NOW)  # so that the next two share a transaction
            refused = journal.append(delivery, now=NOW)
            taken = journal.append([Entry(event=make_event(), members=[member(PAIR)])], now=NOW)
            with pytest.raises(QueueFull):
                await refused
            assert not (await taken)[0].fired
            [window] = await journal.windows()
            assert window.members == 1

    async def test_a_position_that_has_moved_leaves_no_member(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            entry = Entry(event=make_event(), members=[member(PAIR)])
            moves = {"0": Move("5", "6")}
            with pytest.raises(Exception, match="position"):
                await journal.append([entry], trigger="t", positions=moves, now=NOW)
            assert await journal.windows() == []

    # ---------------------------------------------------------------- operators, flows, ends

    async def test_a_window_is_fired_or_dropped_by_hand_once(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            one, two = await offer(journal, PAIR, key="a"), await offer(journal, PAIR, key="b")
            fired = await journal.fire_window(one.windows["bill"], Firing(), now=at(1), by="ana")
            assert len(fired.fired) == 1
            await journal.drop_window(two.windows["bill"], now=at(1), by="ana")
            assert await decisions_of(journal, two.event) == [("bill", "dropped")]
            for window in (one.windows["bill"], two.windows["bill"]):
                with pytest.raises(NotFound):
                    await journal.fire_window(window, Firing(), now=at(1))
                with pytest.raises(NotFound):
                    await journal.drop_window(window, now=at(1))

    async def test_windows_of_flows_that_are_not_served_stay_open(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await offer(journal, QUIET)
            closed = await journal.close_due({"other": Firing()}, now=at(60), limit=9)
            assert (closed.fired, closed.next_due_at) == ((), None)
            await journal.rename_flows({"bill": "invoice"})
            assert await journal.open_windows() == {"invoice": 1}
            [fired] = (await journal.close_due({"invoice": Firing()}, now=at(60), limit=9)).fired
            assert fired.queued.flow == "invoice"

    async def test_cancelling_the_run_drops_its_window(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            first = await offer(journal, QUIET)
            await journal.cancel(first.runs[0], now=at(1))
            assert await journal.windows() == []
            assert not (await journal.close_due(FLOWS, now=at(60), limit=9)).fired
            assert await decisions_of(journal, first.event) == [("bill", "dropped")]

    async def test_an_event_has_ended_once_no_window_holds_it_and_no_run_is_left(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            entries = [
                Entry(event=make_event(), members=[member(PAIR)], after_run_action=True)
                for _ in range(3)
            ]
            appended = await journal.append(entries, now=NOW)
            assert await journal.due_actions(0, 9) == []
            [claimed] = await claim_all(journal, seqs(appended[1]))
            assert await journal.due_actions(0, 9) == []
            await finish(journal, claimed, ended())
            due = await journal.due_actions(0, 9)
            assert [each.event.id for each in due] == [each.event for each in appended[:2]]
            await journal.drop_window(appended[2].windows["bill"], now=at(3))
            last = (await journal.due_actions(0, 9))[-1]
            assert last.event.id == appended[2].event and last.is_refused
            of_run = await journal.due_actions(0, 9, of_run=claimed.claim.run_seq)
            assert of_run == due

    async def test_not_all_is_done_with_an_event_that_a_window_let_go(self, tmp_path: Path) -> None:
        two = count(HOOK, 2, "10s").settings
        async with self.open(tmp_path) as journal:
            aged, *pair = [
                Entry(event=make_event(), members=[member(two)], after_run_action=True)
                for _ in range(3)
            ]
            await journal.append([aged], now=NOW)
            for entry in pair:
                [appended] = await journal.append([entry], now=at(11))
            assert await decisions_of(journal, aged.event.id) == [("bill", "expired")]
            [claimed] = await claim_all(journal, seqs(appended))
            await finish(journal, claimed, ended())
            due = {each.event.id: each.is_refused for each in await journal.due_actions(0, 9)}
            assert due == {aged.event.id: True, **{entry.event.id: False for entry in pair}}

    async def test_a_clock_that_was_ahead_leaves_a_window_the_time_it_had(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            await offer(journal, QUIET, 3600)
            await journal.rescue(now=NOW)
            assert not (await journal.close_due(FLOWS, now=at(4), limit=9)).fired
            assert (await journal.close_due(FLOWS, now=at(5), limit=9)).fired

    # ---------------------------------------------------------------- single items

    async def test_the_next_attempt_has_only_the_members_that_are_left(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            run = await fired_batch(journal, 4)
            again = Outcome(state=RunState.RETRYING, due_at=at(3), error=FAULT, left=[1, 3])
            await journal.record(run, again, started_at=at(2), now=at(2))
        async with self.open(tmp_path) as journal:  # it is stored
            [second] = await journal.claim([run.claim.run_seq], now=at(3))
            assert run.members is not None and second.members is not None
            assert (second.members.count, second.members.round) == (4, 1)
            assert second.members.indexes == [1, 3]
            assert second.members.seqs == [run.members.seqs[1], run.members.seqs[3]]
            again = Outcome(state=RunState.RETRYING, due_at=at(4), error=FAULT, left=[3])
            await journal.record(second, again, started_at=at(3), now=at(3))
            [third] = await journal.claim([run.claim.run_seq], now=at(4))
            assert third.members is not None and third.event.id == run.event.id
            assert (third.members.indexes, third.members.round) == ([3], 2)

    async def test_a_member_that_has_failed_is_a_dead_letter_of_its_own(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            run = await fired_batch(journal, 3)
            assert run.members is not None
            failed_items = [(run.members.seqs[1], FAULT)]
            [event] = await journal.member_events(run.members.seqs[1:2])
            done = Outcome(state=RunState.SUCCEEDED, reason="1 of 3", failed_items=failed_items)
            await journal.record(run, done, started_at=at(2), now=at(2))
            [letter] = await journal.runs(Filter(dead=True))
            assert (letter.event_id, letter.error) == (event.id, FAULT)
            assert (letter.replay, letter.events, letter.flow) == (1, 1, "bill")
            whole = await journal.run(run.claim.run_id)
            assert whole is not None and (whole.state, whole.events) == (RunState.SUCCEEDED, 3)
            assert journal.counts()[1] == {"bill": 1}

    async def test_who_has_lost_the_run_leaves_and_buries_nothing(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            lost = await fired_batch(journal, 3)
            assert lost.members is not None
            handed_back = Outcome(state=RunState.QUEUED, counts=False)
            await journal.record(lost, handed_back, started_at=at(2), now=at(2))
            [run] = await journal.claim([lost.claim.run_seq], now=at(3))
            fates = [
                Outcome(state=RunState.RETRYING, due_at=at(4), error=FAULT, left=[0]),
                Outcome(state=RunState.SUCCEEDED, failed_items=[(lost.members.seqs[0], FAULT)]),
            ]
            for fate in fates:
                with pytest.raises(ClaimLost):
                    await journal.record(lost, fate, started_at=at(2), now=at(3))
            again = Outcome(state=RunState.RETRYING, due_at=at(4), error=FAULT)
            await journal.record(run, again, started_at=at(3), now=at(3))
            [last] = await journal.claim([lost.claim.run_seq], now=at(4))
            assert last.members is not None and last.members.indexes == range(3)
            assert await journal.runs(Filter(dead=True)) == []

    # ---------------------------------------------------------------- as they went

    async def test_windows_are_told_as_they_were_at_an_instant(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            first = await offer(journal, PAIR, 1, keys={"mode": "k"}, priority=1)
            second = await offer(journal, PAIR, 3)
            other = await offer(journal, PAIR, 4)
            of_events = await journal.arrivals(
                "bill", [HOOK.name], since=at(0), until=at(9), limit=10
            )
            [fired, still_open] = await journal.windows_across(
                "bill", since=at(2), opened_before=at(9), until=at(9)
            )
            [before] = await journal.past_windows("bill", [fired.seq], until=at(2))
            across = await journal.windows_across(
                "bill", since=at(2), opened_before=at(2), until=at(9)
            )
            members = await journal.past_members(fired.seq, until=at(3))
        assert [each.window for each in of_events] == [fired.seq, fired.seq, still_open.seq]
        assert [each.runs for each in of_events] == [[], [], []]
        assert (fired.state, fired.opened_at, fired.closed_at) == ("fired", at(1), at(3))
        assert fired.run is not None and fired.run.id == second.runs[0]
        assert (still_open.state, still_open.members, still_open.run) == ("open", 1, None)
        assert other.windows == {"bill": still_open.id}
        assert (before.state, before.members, before.closed_at) == ("open", 1, None)
        assert [each.seq for each in across] == [fired.seq]
        [member] = members
        assert (member.event_seq, member.at, member.keys, member.priority) == (
            first.event_seq, at(1), {"mode": "k"}, 1,
        )  # fmt: skip

    async def test_it_is_known_whether_a_flow_ever_had_a_window_without_an_event(
        self, tmp_path: Path
    ) -> None:
        silence = absent(HOOK, "1h").settings
        async with self.open(tmp_path) as journal:
            assert not await journal.was_opened("bill")
            await journal.open_window("bill", silence, due_at=at(9), now=at(0))
            assert await journal.was_opened("bill")
            closed = await journal.close_due(FLOWS, now=at(9), limit=10)
            [window] = await journal.windows_across(
                "bill", since=at(0), opened_before=at(10), until=at(10)
            )
            members = await journal.past_members(window.seq, until=at(10))
        assert window.run is not None and window.run.id == closed.runs[0]
        assert members == [], "the event that says so is no member that came"
