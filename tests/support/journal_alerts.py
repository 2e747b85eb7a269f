"""What every journal must do about alerts, written against the contract.

A test module subclasses `AlertsContract` as it does `JournalContract`.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from turnout.service.domain.alerts import AlertRule
from turnout.service.domain.errors import NotFound, Refused
from turnout.service.domain.run import RunError
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import (
    Expectation,
    Filter,
    FlowAbout,
    NewMessage,
    StoredAlert,
    StoredMessage,
    Taken,
)

from .journal_contract import NOW, S, at, ended, finish, make_run, put, start

FAILURE, OVERDUE = AlertRule.FAILURE, AlertRule.EXPECT_EVERY
HOUR = timedelta(hours=1)


def error(kind: str = "OSError", text: str = "no answer") -> RunError:
    return RunError(kind, text, "charge#1")


async def fail(journal: Journal, kind: str = "OSError", *, flow: str = "bill") -> str:
    """Let a run fail for good; returns its id."""
    run = await start(journal, flow)
    await finish(journal, run, ended(S.FAILED, error=error(kind)))
    return run.claim.run_id


async def opened(journal: Journal, *, flow: str = "bill", **more: Any) -> StoredAlert:
    """Open an alert that has not been told of."""
    await journal.raise_alert(flow, OVERDUE, now=NOW, detail="is overdue", **more)
    return (await journal.alerts())[0]


async def told(
    journal: Journal, *keys: str, channel: str = "chat", seconds: float = 0, flow: str = "bill"
) -> None:
    """Tell of an alert by messages with these keys."""
    await opened(journal, flow=flow)
    for key in keys:
        (alert,) = [each for each in await journal.alerts() if each.flow == flow]
        message = NewMessage(channel=channel, key=key, document={"news": "opened", "key": key})
        assert await journal.tell(alert, [message], now=at(seconds))


async def take(journal: Journal, seconds: float, *, most: int = 20, channel: str = "chat") -> Taken:
    """Claim a message for a minute."""
    return await journal.take_message(
        channel, now=at(seconds), until=at(seconds + 60), most=most, since=at(seconds) - HOUR
    )


async def taken(journal: Journal, seconds: float, **more: Any) -> StoredMessage:
    message = (await take(journal, seconds, **more)).message
    assert message is not None
    return message


class AlertsContract:
    """Subclass and give `open`."""

    def open(self, folder: Path, **bounds: int) -> AbstractAsyncContextManager[Journal]:
        raise NotImplementedError

    # ---------------------------------------------------------------- counting

    async def test_final_failures_are_counted_by_cause_and_found_again(
        self, tmp_path: Path
    ) -> None:
        heard: list[None] = []
        async with self.open(tmp_path) as journal:
            journal.count_failures(["bill"], lambda: heard.append(None))
            await fail(journal)
            assert heard
            last = await fail(journal)
            await fail(journal, "ValueError")
            await fail(journal, flow="other")
            again = await start(journal)
            await finish(journal, again, ended(S.RETRYING, error=error(), due_at=at(9)))
        async with self.open(tmp_path) as journal:
            one, two = sorted(await journal.alerts(), key=lambda each: each.id)
            assert (one.flow, one.rule, one.cause) == ("bill", FAILURE, "OSError in charge")
            assert (one.count, one.run_id, one.error) == (2, last, error())
            assert (one.opened_at, one.told_at, one.messages) == (at(1), None, 0)
            assert (two.count, two.cause) == (1, "ValueError in charge")

    async def test_nothing_is_counted_unless_it_is_asked_for(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await fail(journal)
            journal.count_failures(["bill"], lambda: None)
            journal.count_failures([], lambda: None)
            await fail(journal)
            assert await journal.alerts() == []

    async def test_an_alert_counts_at_least_what_it_is_told(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await opened(journal, add=0, at_least=3)
            assert (await opened(journal, add=0, at_least=2)).count == 3
            assert (await opened(journal)).count == 4

    # ---------------------------------------------------------------- telling

    async def test_an_alert_is_told_of_once_and_ends_once(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            seen = await opened(journal)
            message = NewMessage(channel="chat", key="k", document={"news": "opened"})
            assert await journal.tell(seen, [message], now=at(1))
            assert not await journal.tell(seen, [message], now=at(2))
            (now_told,) = await journal.alerts()
            assert (now_told.messages, now_told.told_count, now_told.told_at) == (1, 1, at(1))
            await opened(journal)
            assert not await journal.tell(now_told, [message], now=at(3), ended="recovered")
            (grown,) = await journal.alerts()
            assert await journal.tell(grown, [message], now=at(4), ended="recovered")
            assert not await journal.tell(grown, [message], now=at(5), ended="recovered")
            assert await journal.pending_messages() == {"chat": 2}
            assert await journal.alerts() == []
            (over,) = await journal.alerts(ended=True)
            assert (over.ended, over.ended_at, over.count) == ("recovered", at(4), 2)
            assert (await opened(journal)).id != over.id, "it is another one"

    async def test_an_open_alert_is_muted_and_no_other_one(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            alert = await opened(journal)
            await journal.mute_alert(alert.id, until=at(60), by="ops", note="known")
            (muted,) = await journal.alerts()
            assert (muted.muted_until, muted.muted_by, muted.note) == (at(60), "ops", "known")
            assert await journal.open_alert(alert.id) == muted
            await journal.tell(muted, [], now=at(1), ended="recovered")
            with pytest.raises(Refused, match="has ended: recovered"):
                await journal.mute_alert(alert.id, until=at(60))
            with pytest.raises(NotFound, match="there is no alert 99"):
                await journal.mute_alert(99, until=at(60))

    async def test_what_no_flow_declares_any_more_is_withdrawn(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await told(journal, "k", channel="gone")
            await journal.expect("bill", OVERDUE, since=NOW, seen_at=NOW)
            assert await journal.withdraw_alerts({"bill": [OVERDUE]}, now=at(1)) == 0
            assert await journal.withdraw_alerts({"bill": [FAILURE]}, now=at(1)) == 1
            (alert,) = await journal.alerts(ended=True)
            assert alert.ended == "withdrawn"
            assert await journal.expectations() == {}
            assert await journal.release_messages(["chat"], now=at(1)) == 1
            assert await journal.pending_messages() == {}

    # ---------------------------------------------------------------- messages

    async def test_a_message_is_claimed_sent_and_never_found_again(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await told(journal, "a")
            await told(journal, "b", flow="ship")
            first = await taken(journal, 1)
            assert (first.key, first.tries, first.document["key"]) == ("a", 1, "a")
            assert (await taken(journal, 1)).key == "b"
            assert await take(journal, 1) == Taken(None, at(61))
            await journal.message_sent(first.seq, now=at(2))
            assert await journal.pending_messages() == {"chat": 1}
            again = await taken(journal, 61)
            assert (again.key, again.tries) == ("b", 2), "the claim of b is over"

    async def test_a_start_ends_the_claims_of_the_process_before(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await told(journal, "a")
            await taken(journal, 1)
        async with self.open(tmp_path) as journal:
            assert (await take(journal, 2)).message is None
            assert await journal.release_messages(["chat"], now=at(2)) == 0
            again = await taken(journal, 2)
            assert (again.key, again.tries) == ("a", 2)

    async def test_a_message_that_failed_is_put_off_or_dropped(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await told(journal, "a")
            message = await taken(journal, 1)
            await journal.message_failed(message.seq, error="refused", due_at=at(9))
            assert await take(journal, 8) == Taken(None, at(9))
            assert (await taken(journal, 9)).key == "a"
            await journal.message_failed(message.seq, error="refused", due_at=None)
            assert await take(journal, 100) == Taken(None)

    async def test_no_message_of_an_alert_overtakes_another(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await told(journal, "opened", "recovered")
            message = await taken(journal, 1)
            await journal.message_failed(message.seq, error="refused", due_at=at(600))
            assert await take(journal, 2) == Taken(None, at(600)), "it looks again when that is due"
            await told(journal, "another", flow="ship")
            await told(journal, "elsewhere", channel="mail", flow="pack")
            assert (await taken(journal, 3)).key == "another", "what is not of it need not wait"
            assert (await taken(journal, 3, channel="mail")).key == "elsewhere"
            assert (await taken(journal, 600)).key == "opened"
            await journal.message_failed(message.seq, error="refused", due_at=None)
            assert (await taken(journal, 601)).key == "recovered", "the one before was dropped"

    async def test_what_a_channel_may_not_send_yet_becomes_one(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await told(journal, "a", "b", "c", "d")
            for number in (1, 2):
                message = await taken(journal, number, most=2)
                assert message.is_last == (number == 2)
                await journal.message_sent(message.seq, now=at(number))
            free_at = at(1) + HOUR
            assert await take(journal, 3, most=2) == Taken(None, free_at)
            assert (await take(journal, 3, most=2, channel="other")).next_at is None
            found = await take(journal, 3602, most=2)
            assert found.message is not None and found.summarised == 2
            assert [part["key"] for part in found.message.document["parts"]] == ["c", "d"]

    async def test_a_summary_that_is_held_is_part_of_no_other_one(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            for key in ("sent", "a", "b"):
                await told(journal, key, flow=key)
            await journal.message_sent((await taken(journal, 1, most=1)).seq, now=at(1))
            assert (await take(journal, 2, most=1)).message is None
            summary = await taken(journal, 3602, most=1)
            await journal.message_failed(summary.seq, error="refused", due_at=at(4000))
            await told(journal, "c", flow="c")
            await journal.message_sent((await taken(journal, 3603, most=1)).seq, now=at(3603))
            await told(journal, "d", flow="d")
            assert (await take(journal, 4000, most=1)).message is None
            summary = await taken(journal, 7204, most=1)
            assert [part["key"] for part in summary.document["parts"]] == ["a", "b", "d"]

    async def test_recoveries_that_wait_become_one(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            for flow in ("a", "b", "c", "d"):
                await told(journal, flow, flow=flow)
            for _ in range(3):
                await journal.message_sent((await taken(journal, 1)).seq, now=at(1))
            refused = await taken(journal, 1)
            await journal.message_failed(refused.seq, error="refused", due_at=at(9))
            for alert in await journal.alerts():
                document = {"news": "recovered", "flow": alert.flow}
                over = NewMessage(channel="chat", key=f"{alert.flow} is well", document=document)
                assert await journal.tell(alert, [over], now=at(2), ended="recovered")
            found = await take(journal, 3)
            assert found.message is not None and found.summarised == 3
            parts = found.message.document["parts"]
            assert {part["flow"] for part in parts} == {"a", "b", "c"}, "nobody knows that d failed"
            await journal.message_sent(found.message.seq, now=at(3))
            assert (await taken(journal, 9)).key == "d"
            await journal.message_sent(refused.seq, now=at(9))
            assert (await taken(journal, 10)).key == "d is well", "one alone stays as it is"

    async def test_what_was_refused_becomes_one_too_and_what_was_cut_off_does_not(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            for key in ("refused", "cut off", "sent", "new"):
                await told(journal, key, flow=key)
            refused = await taken(journal, 1, most=1)
            await journal.message_failed(refused.seq, error="refused", due_at=at(9))
            assert (await taken(journal, 1, most=1)).key == "cut off"
            await journal.message_sent((await taken(journal, 1, most=1)).seq, now=at(1))
            assert (await take(journal, 100, most=1)).message is None
            found = await take(journal, 3602, most=1)
            assert found.summarised == 2
            assert found.message is not None and found.message.key == "cut off"
            await journal.message_sent(found.message.seq, now=at(3602))
            summary = await taken(journal, 7203, most=1)
            assert [part["key"] for part in summary.document["parts"]] == ["refused", "new"]

    @pytest.mark.parametrize("claimed", [True, False])
    async def test_a_clock_that_was_ahead_holds_no_message_back(
        self, tmp_path: Path, claimed: bool
    ) -> None:
        async with self.open(tmp_path) as journal:
            ahead = timedelta(days=30).total_seconds()
            await told(journal, "a", seconds=ahead)
            message = await taken(journal, ahead)
            if not claimed:
                await journal.message_failed(message.seq, error="e", due_at=at(ahead + 600))
            assert (await taken(journal, 0)).key == "a"
            await journal.message_sent(message.seq, now=at(ahead))
            await told(journal, "b")
            assert (await taken(journal, 0, most=1)).key == "b", "it is not one of the last hour"

    # ---------------------------------------------------------------- expectations

    async def test_what_is_expected_is_noted_with_what_was_missed(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await journal.expect("bill", OVERDUE, since=NOW, seen_at=NOW)
            await opened(journal, seen_at=at(7))
        async with self.open(tmp_path) as journal:
            assert await journal.expectations() == {("bill", OVERDUE): Expectation(NOW, at(7))}

    async def test_successes_and_late_runs_are_found(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            await finish(journal, await start(journal), ended())
            await fail(journal)
            assert [each.finished_at for each in await journal.successes("bill")] == [at(1)]
            assert await journal.successes("other") == []
            assert (await journal.late_runs("bill", before=at(99))).first is None
            await put(journal, later := make_run(state=S.SCHEDULED, due_at=at(50)))
            late = await journal.late_runs("bill", before=at(49))
            assert (late.first, late.due_at, late.count) == (later.id, at(50), 0)
            await put(journal, soon := make_run())
            late = await journal.late_runs("bill", before=at(50))
            assert (late.first, late.due_at, late.count) == (soon.id, NOW, 2)

    async def test_a_late_run_is_found_among_many_that_are_not(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            for due_at in [at(9000)] * 100 + [at(50), at(40)]:
                await put(journal, last := make_run(state=S.SCHEDULED, due_at=due_at))
            late = await journal.late_runs("bill", before=at(60))
            assert (late.first, late.due_at, late.count) == (last.id, at(40), 2)
            late = await journal.late_runs("bill", before=at(30))
            assert (late.first, late.due_at, late.count) == (last.id, at(40), 0)

    # ---------------------------------------------------------------- what flows say of themselves

    async def test_runs_are_found_by_owner_and_tag(self, tmp_path: Path) -> None:
        bill = FlowAbout("ann", ("money", "daily"), "Bills.")
        async with self.open(tmp_path) as journal:
            await journal.describe_flows({"bill": bill, "ship": FlowAbout("bob", ("daily",))})
            for flow in ("bill", "ship", "mute"):
                await put(journal, make_run(flow))
            await journal.describe_flows({"mute": FlowAbout()})
        async with self.open(tmp_path) as journal:
            assert (await journal.flows_about())["bill"] == bill

            async def found(**which: str) -> list[str]:
                return sorted(run.flow for run in await journal.runs(Filter(**which)))  # type: ignore[arg-type]

            assert await found(owner="ann") == ["bill"]
            assert await found(tag="daily") == ["bill", "ship"]
            assert await found(owner="bob", tag="money") == []
            await journal.describe_flows({"bill": FlowAbout()})
            assert set(await journal.flows_about()) == {"ship"}
            assert await found(tag="daily") == ["ship"]

    # ---------------------------------------------------------------- retention

    async def test_only_what_has_ended_is_pruned(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            for channel in ("a", "b", "c"):
                await told(journal, channel, channel=channel)
            for channel in ("a", "b"):
                message = await taken(journal, 1, channel=channel)
                await journal.message_sent(message.seq, now=at(2 if channel == "a" else 3))
            (alert,) = await journal.alerts()
            assert await journal.prune_alerts(ended_before=at(1), limit=9) == 0
            assert await journal.prune_alerts(ended_before=at(2), limit=9) == 1
            assert await journal.alerts() == [alert]
            await journal.tell(alert, [], now=at(3), ended="recovered")
            assert await journal.prune_alerts(ended_before=at(3), limit=9) == 2
            assert await journal.prune_alerts(ended_before=at(9), limit=9) == 0
            assert await journal.alerts(ended=True) == []
            assert await journal.pending_messages() == {"c": 1}
