"""People are told of a cause at once, as it grows, each day, and when the flow has recovered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from tests.support.journal_contract import make_event, make_run
from turnout import cron, deadline, flow, notify, retry, sleep, task
from turnout.service.alerts import news as alert_news
from turnout.service.alerts.expectations import Judge, Judged
from turnout.service.alerts.watch import Alerts
from turnout.service.domain.alerts import AlertRule
from turnout.service.domain.run import RunState
from turnout.service.journal.records import Entry
from turnout.service.journal.sqlite import alerts
from turnout.service.operate.verbs import Pause
from turnout.service.project import AnyFlow
from turnout.testing import Service, serve
from turnout.testing.events import hand_event

CHAT = notify("https://chat.example/hook")
PAGER = notify.webhook("https://pager.example/alerts")


@task
async def charge(order: int) -> int:
    if order < 0:
        raise ConnectionError(f"no answer for order {order}")
    return order


@flow(on_failure=CHAT, retry=retry(2, delay="1m"), owner="payments", tags=["money"])
async def bill(order: int) -> int:
    return await charge(order)


def news(service: Service) -> Sequence[str]:
    return [told.document["news"] for told in service.alerts]


async def test_only_the_last_retry_is_told_and_then_each_tenfold() -> None:
    async with serve(bill) as service:
        for order in range(1, 12):
            await service.run(bill, -order)
            assert len(service.alerts) == 1 + (order >= 10), f"after {order}"
        first, tenth = service.alerts
        assert first.title == "bill failed: ConnectionError in charge"
        assert "no answer for order -1\n" in first.text
        assert "owner payments · tags money" in first.text
        assert first.document["run"] in first.text
        assert tenth.title == "bill failed: ConnectionError in charge (10 times)"
        assert tenth.channel == CHAT


async def test_a_retry_that_succeeds_tells_nobody() -> None:
    @flow(on_failure=CHAT, retry=3)
    async def works_later() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("not yet")

    tries: list[int] = []
    async with serve(works_later) as service:
        assert (await service.run(works_later)).state == "succeeded"
        assert service.alerts == []


async def test_it_has_recovered_once_a_later_run_succeeds_and_it_stays_quiet() -> None:
    async with serve(bill) as service:
        await service.run(bill, -1)
        await service.advance("1h")
        assert news(service) == ["opened"], "nothing has succeeded since"
        await service.run(bill, -2)
        await service.run(bill, 2)
        assert news(service) == ["opened"], "it may come back any moment"
        await service.advance("6m")
        assert news(service) == ["opened", "recovered"]
        assert service.alerts[1].title == "bill has recovered: it failed: ConnectionError in charge"
        assert "2 times since" in service.alerts[1].text
        await service.run(bill, -3)
        assert news(service) == ["opened", "recovered", "opened"]


async def test_what_goes_on_is_told_each_day() -> None:
    async with serve(bill) as service:
        await service.run(bill, -1)
        await service.advance("3d")
        assert news(service) == ["opened"], "nothing new"
        await service.run(bill, -2)
        await service.advance("1s")
        assert news(service) == ["opened", "repeated"]
        await service.run(bill, -3)
        await service.advance("23h")
        assert news(service) == ["opened", "repeated"]
        await service.advance("1h")
        assert news(service) == ["opened", "repeated", "repeated"]


async def test_each_cause_is_an_alert_of_its_own() -> None:
    @flow(on_failure=[CHAT, PAGER])
    async def two_ways(way: str) -> None:
        raise {"left": OSError, "right": ValueError}[way](way)

    async with serve(two_ways) as service:
        for way in ("left", "right", "left", "right"):
            await service.run(two_ways, way)
        told = sorted((each.document["cause"], each.channel == PAGER) for each in service.alerts)
        assert told == [
            (f"{cause} in two_ways", is_pager)
            for cause in ("OSError", "ValueError")
            for is_pager in (False, True)
        ]


async def test_a_flow_with_ever_new_causes_has_a_bounded_number_of_alerts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alerts, "MOST_OPEN", 4)

    @flow(on_failure=CHAT)
    async def creative(number: int) -> None:
        raise type(f"Error{number}", (Exception,), {})

    async with serve(creative) as service:
        for number in range(7):
            await service.run(creative, number)
        found = await service.journal.alerts()
        assert len(found) == 5
        assert (found[0].cause, found[0].count) == ("other causes", 3)


async def test_refused_data_is_told_too() -> None:
    @flow(on_failure=CHAT)
    async def takes_a_number(amount: int) -> int:
        return amount

    async with serve(takes_a_number) as service:
        await service.run(takes_a_number, "no number")
        await service.advance("1s")
        (told,) = service.alerts
        assert told.document["rule"] == "failure"


async def test_after_twenty_messages_in_an_hour_the_rest_comes_as_one() -> None:
    @flow(on_failure=CHAT)
    async def creative(number: int) -> None:
        raise type(f"Error{number}", (Exception,), {})

    async with serve(creative) as service:
        for number in range(24):
            await service.run(creative, number)
        assert len(service.alerts) == 20
        assert "what follows comes as one" in service.alerts[-1].text
        await service.advance("1h")
        assert news(service)[20:] == ["summary"]
        summary = service.alerts[20]
        assert summary.title == "4 alerts that were held back"
        assert "creative failed: Error20 in creative" in summary.text
        await service.run(creative, 24)
        assert news(service)[21:] == ["opened"]


async def test_what_recovers_together_is_one_message_that_names_the_flows() -> None:
    outage = [True]

    def fails_while_it_lasts(name: str) -> AnyFlow:
        @flow(name=name, on_failure=CHAT)
        async def creative(number: int) -> None:
            if outage:
                raise type(f"Error{number}", (Exception,), {})

        return creative

    flows = [fails_while_it_lasts(name) for name in ("bill", "ship")]
    async with serve(*flows) as service:
        for number in range(13):
            for each in flows:
                await service.run(each, number)
        await service.advance("1h")
        assert news(service) == ["opened"] * 20 + ["summary"]
        outage.clear()
        for each in flows:
            await service.run(each, 0)
        await service.advance("1h")
        assert news(service)[21:] == ["summary"]
        over = service.alerts[21]
        assert over.title == "bill, ship have recovered: 26 alerts are over"
        assert "ship has recovered: it failed: Error12 in creative\n" in over.text
        assert "and 6 more: turnout alerts --all" in over.text
        await service.advance("3h")
        assert len(service.alerts) == 22


async def test_a_restart_tells_nothing_twice_and_loses_nothing() -> None:
    async with serve(bill) as service:
        await service.run(bill, -1)
        await service.restart()
        await service.run(bill, -2)
        await service.advance("10m")
        assert news(service) == ["opened"]
        await service.run(bill, 1)
        await service.restart()
        await service.advance("10m")
        assert news(service) == ["opened", "recovered"]


async def test_a_process_that_has_died_looks_at_nothing_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[Alerts] = []
    recheck = Alerts.recheck

    def counted(self: Alerts) -> None:
        looks.append(self)
        recheck(self)

    monkeypatch.setattr(Alerts, "recheck", counted)
    monkeypatch.setattr(alert_news, "_SHORTEST_POLL", timedelta(milliseconds=1))
    async with serve(bill) as service:
        await service.run(bill, -1)
        await service._end()
        looks.clear()
        await asyncio.sleep(0.1)  # a look would come after 50 ms
        assert looks == []


# ---------------------------------------------------------------- expectations


@flow(on_failure=CHAT, expect_every="26h")
async def nightly() -> None: ...


async def test_a_flow_that_does_not_run_is_overdue_once_a_day_until_it_does() -> None:
    async with serve(nightly) as service:
        await service.advance("25h")
        await service.run(nightly)
        await service.advance("25h")
        assert service.alerts == []
        await service.advance("1h")
        (told,) = service.alerts
        assert told.title == "nightly is overdue"
        assert "no run has succeeded for 1d2h" in told.text
        assert "expected: a success every 1d2h" in told.text
        await service.advance("2d")
        assert news(service) == ["opened", "repeated", "repeated"]
        assert service.alerts[1].title == "nightly still is overdue"
        await service.run(nightly)
        await service.advance("1m")
        assert news(service)[3:] == ["recovered"]
        await service.advance("25h")
        assert len(service.alerts) == 4


async def test_what_retention_deletes_is_not_forgotten() -> None:
    @flow(on_failure=CHAT, expect_every="6d")
    async def weekly() -> None: ...

    async with serve(weekly, keep_finished="1d") as service:
        await service.advance("2d")
        await service.run(weekly)
        await service.advance("5d")
        await service.restart()
        assert service.alerts == []
        await service.advance("30h")
        assert news(service) == ["opened"]


BY_SIX = deadline("06:00", days="mon-fri")


@flow(on=cron("0 2 * * *"), on_failure=CHAT, deadline=BY_SIX)
async def books() -> None: ...


async def test_a_deadline_is_met_by_a_run_of_its_own_day() -> None:
    async with serve(books) as service:  # 1 January 2026 is a Thursday
        await service.advance("2d")
        assert service.alerts == []


async def test_a_missed_deadline_is_told_and_met_late() -> None:
    @flow(on_failure=CHAT, deadline=BY_SIX)
    async def by_hand() -> None: ...

    async with serve(by_hand) as service:
        await service.advance("5h")
        await service.run(by_hand)
        await service.advance("24h")
        assert service.alerts == [], "the next one is on Friday at six"
        await service.advance("1h")
        (told,) = service.alerts
        assert told.title == "by_hand has missed its deadline"
        assert "expected: a success by 06:00 UTC, mon tue wed thu fri" in told.text
        await service.advance("1h")
        await service.run(by_hand)
        await service.advance("1m")
        assert news(service) == ["opened", "recovered"]
        await service.advance("2d")
        assert len(service.alerts) == 2, "no deadline at the weekend"
        await service.advance("1d")
        assert news(service)[2:] == ["opened"], "what was late on Friday is not Monday's"


async def test_deadlines_that_passed_while_the_service_was_down_are_told_once() -> None:
    async with serve(books) as service:
        await service.advance("6h1m")
        assert service.alerts == []
        await service._end()
        service.clock.set(service.clock.now() + timedelta(days=6))
        service._death = type(service._death)()
        await service._begin()
        await service._quiet()
        (told,) = service.alerts
        assert told.document["count"] == 4, "Friday, Monday, Tuesday and Wednesday"
        await service.restart()
        await service._quiet()
        assert len(service.alerts) == 1


async def test_a_run_that_does_not_end_in_time_is_late() -> None:
    @flow(on_failure=CHAT, finish_within="30m")
    async def slow(minutes: int) -> None:
        await sleep(f"{minutes}m")

    async with serve(slow) as service:
        await service.run(slow, 29)
        assert service.alerts == []
        result = await service.run(slow, 33)
        (told,) = service.alerts
        assert told.title == "slow is late"
        assert result.id in told.text
        assert "a run has not ended within 30m" in told.text
        await service.advance("10m")
        assert news(service) == ["opened", "recovered"]


async def test_a_run_due_tomorrow_puts_off_no_look_at_those_that_come_meanwhile() -> None:
    @flow(on_failure=CHAT, finish_within="30m")
    async def slow() -> None: ...

    async with serve(slow) as service:
        now = service.clock.now()
        later = make_run("slow", state=RunState.SCHEDULED, due_at=now + timedelta(days=1))
        await service.journal.append([Entry(event=make_event(), runs=[later])], now=now)
        judge = Judge(service.journal, {}, now=now, wall=now)
        judged = await judge.judge(slow, AlertRule.FINISH_WITHIN, [], None)
        assert judged == Judged(is_well=True, next_at=now + timedelta(minutes=30))


EXPECTATIONS: list[Any] = [{"expect_every": "1h"}, {"deadline": deadline("06:00")},
                           {"finish_within": "6h"}]  # fmt: skip


@pytest.mark.parametrize("expects", EXPECTATIONS, ids=lambda each: next(iter(each)))
@pytest.mark.parametrize("is_down", [False, True], ids=["paused", "down"])
async def test_what_is_expected_is_missed_also_where_nothing_can_start(
    expects: Any, is_down: bool
) -> None:
    @flow(on_failure=CHAT, **expects)
    async def pulls() -> None: ...

    async with serve(pulls) as service:
        await service.process.operator.do(Pause("pulls"))
        await service.emit(hand_event(None, at=service.clock.now()), pulls)
        if is_down:
            await service._end()
            service.clock.set(service.clock.now() + timedelta(hours=7))
            service._death = type(service._death)()
            await service._begin()
            await service._quiet()
        else:
            await service.advance("7h")
        (told,) = service.alerts
        assert (told.document["news"], told.document["rule"]) == ("opened", *expects)
        assert "the flow is paused" in told.text


async def test_a_flow_without_channels_is_listed_and_logged() -> None:
    @flow(expect_every="1h")
    async def quiet() -> None: ...

    async with serve(quiet) as service:
        await service.advance("2h")
        assert service.alerts == []
        (alert,) = await service.journal.alerts()
        assert (alert.flow, alert.rule, alert.messages) == ("quiet", "expect_every", 1)
        assert alert.error is not None
        assert "1h: it was first expected at " in alert.error.message
