"""The real program tells people once: over restarts, missed deadlines and a clock that is set.

What operators see of it, and mute, is asked of the commands and of the API.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest
from click.testing import CliRunner

from tests.conftest import Say
from tests.support.injected_clock import InjectedClock
from tests.support.program import Program, until
from tests.support.smtp_sink import smtp_sink
from tests.support.stub_http import Reply, Stub, stubbed
from turnout.service.cli import cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

FLOWS = """
import os
from turnout import deadline, flow, notify, webhook

PAGER = notify.webhook(os.environ["PAGER"])

@flow(on=webhook("/bill"), on_failure=PAGER, owner="ann", tags=["money", "daily"],
      description="Sends bills.")
async def bill(order: dict[str, int]) -> None:
    if order["amount"] < 0:
        raise ConnectionError(f"no answer for {order['amount']}")

@flow(on=webhook("/ship"), on_failure=PAGER, owner="bob", tags=["daily"])
async def ship(order: dict[str, int]) -> None:
    if order["amount"] < 0:
        raise OSError(order["amount"])

@flow(on=webhook("/books"), on_failure=PAGER, deadline=deadline("06:00"))
async def books(data: dict[str, int]) -> None: ...

@flow(on=webhook("/pull"), on_failure=PAGER, expect_every="2h")
async def pull(data: dict[str, int]) -> None: ...
"""

OUTAGE = """
import os
from turnout import flow, notify, sleep, webhook

PAGER = notify.webhook(os.environ["PAGER"])

@flow(on=webhook("/asks"), on_failure=PAGER)
async def asks(order: dict[str, int]) -> None:
    if order["amount"] < 0:
        raise type(f"Error{-order['amount']}", (Exception,), {})

@flow(on=webhook("/slow"), on_failure=notify.email("ops@example.com"), finish_within="30m")
async def slow(data: dict[str, int]) -> None:
    await sleep("45m")
"""

ALL_RULES = """
import os
from turnout import deadline, flow, notify, webhook

@flow(on=webhook("/pull"), on_failure=notify.webhook(os.environ["PAGER"]),
      expect_every="2h", deadline=deadline("06:00"), finish_within="1h")
async def pull() -> None: ...
"""


@pytest.fixture
def pager() -> Iterator[Stub]:
    with stubbed() as stub:
        yield stub


@pytest.fixture
def clock(tmp_path: Path) -> InjectedClock:
    return InjectedClock(tmp_path)


@pytest.fixture
def program(tmp_path: Path, pager: Stub, clock: InjectedClock) -> Iterator[Program]:
    (tmp_path / "flows.py").write_text(FLOWS)
    env = {"PAGER": pager.says("/pager", Reply()), **clock.env}
    with Program(
        flows=tmp_path / "flows.py", data=tmp_path / "data", log=tmp_path / "log", env=env
    ) as program:
        yield program


def told(pager: Stub, flow: str) -> list[dict[str, Any]]:
    """Return what people were told of a flow, in order."""
    documents = [json.loads(asked.body) for asked in pager.to("/pager")]
    return [each for each in documents if each["flow"] == flow]


def news(pager: Stub, flow: str) -> list[str]:
    return [each["news"] for each in told(pager, flow)]


def is_told(pager: Stub, flow: str, *expected: str) -> None:
    """Wait until people have been told this, and no more."""
    until(lambda: len(told(pager, flow)) >= len(expected), 15, f"{flow}: {expected}")
    assert news(pager, flow) == [*expected]


def fails(program: Program, flow: str, times: int = 1) -> None:
    """Let runs of a flow fail, and wait until they have."""
    for number in range(times):
        program.post(flow, {"amount": -1 - number})
    program.quiet(30)


def succeeds(program: Program, flow: str) -> None:
    program.post(flow, {"amount": 1})
    program.quiet(30)


def seconds_to(hours: float, *, days: int = 0) -> str:
    """Return what sets the clock to an hour of a day from today, UTC."""
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    by = midnight + timedelta(days=days, hours=hours) - now
    return f"{'-' if by < timedelta(0) else '+'}{abs(round(by.total_seconds()))}s"


# ---------------------------------------------------------------- once


@pytest.mark.timeout(600)
def test_failures_of_one_cause_over_a_restart_are_few_messages_and_one_recovery(
    program: Program, pager: Stub, clock: InjectedClock, full: bool, say: Say
) -> None:
    failures = 10_000 if full else 300
    program.start().ready()

    def fail(number: int) -> None:
        program.post("bill", {"amount": -number})

    with ThreadPoolExecutor(8) as senders:
        list(senders.map(fail, range(1, failures // 2 + 1)))
        assert program.stop(60) == 0
        program.start().ready()
        list(senders.map(fail, range(failures // 2 + 1, failures + 1)))
    program.quiet(300)
    clock.set("+6m")
    succeeds(program, "bill")
    until(lambda: news(pager, "bill")[-1:] == ["recovered"], 15, "a recovery")
    said = told(pager, "bill")
    assert [each["news"] for each in said[:-1]] == ["opened"] + ["grown"] * (len(said) - 2)
    assert len(said) - 1 <= 1 + math.floor(math.log10(failures)) <= 5
    assert said[-1]["count"] == failures
    assert len({asked.headers["idempotency-key"] for asked in pager.asked}) == len(said)
    say(f"{failures} failures over a restart: {len(said) - 1} messages and one recovery")


def test_what_goes_on_is_told_each_day_also_by_another_process(
    program: Program, pager: Stub, clock: InjectedClock
) -> None:
    program.start().ready()
    until(lambda: expected(program, "pull"), 15, "runs are expected")
    fails(program, "bill")
    is_told(pager, "bill", "opened")
    clock.set("+23h")
    fails(program, "bill")
    is_told(pager, "pull", "opened")
    fails(program, "ship")
    is_told(pager, "ship", "opened")
    assert news(pager, "bill") == ["opened"], "a day has not passed"
    assert program.stop() == 0
    clock.set("+25h")
    program.start().ready()
    is_told(pager, "bill", "opened", "repeated")
    assert told(pager, "bill")[1]["count"] == 2
    clock.set("+50h")
    is_told(pager, "pull", "opened", "repeated")
    fails(program, "ship")
    is_told(pager, "ship", "opened", "repeated")
    assert news(pager, "bill") == ["opened", "repeated"], "it has not shown again"
    fails(program, "bill")
    is_told(pager, "bill", "opened", "repeated", "repeated")


def test_an_outage_is_twenty_messages_and_a_summary_and_its_end_is_one(
    program: Program, pager: Stub, clock: InjectedClock
) -> None:
    program.flows.write_text(OUTAGE)
    program.start().ready()
    fails(program, "asks", 26)
    until(lambda: rows(program, "alert_messages WHERE held = 1") == 6, 15, "6 are held back")
    clock.set("+61m")
    until(lambda: len(pager.to("/pager")) >= 21, 15, "a summary")
    succeeds(program, "asks")
    clock.set("+70m")
    until(lambda: len(pager.to("/pager")) >= 22, 15, "a recovery")
    said = [json.loads(asked.body) for asked in pager.to("/pager")]
    assert [each["news"] for each in said] == ["opened"] * 20 + ["summary"] * 2
    assert said[20]["text"].startswith("6 alerts that were held back\n")
    assert said[21]["text"].startswith("asks has recovered: 26 alerts are over\n")


def test_a_run_that_is_late_is_told_by_mail(program: Program, clock: InjectedClock) -> None:
    program.flows.write_text(OUTAGE)
    with smtp_sink() as sink:
        program.env = {**program.env, "SMTP_URL": f"smtp://127.0.0.1:{sink.port}"}
        program.start().ready()
        run = program.post("slow", {})
        until(lambda: program.metrics("turnout_runs").get('state="waiting"') == 1, 15, "it sleeps")
        clock.set("+31m")
        until(lambda: sink.mails, 15, "a mail")
        clock.set("+46m")
        program.quiet(15)
        clock.set("+60m")
        until(lambda: len(sink.mails) == 2, 15, "another one")
    late, over = sink.mails
    assert (late["To"], late["Subject"]) == ("ops@example.com", "slow is late")
    assert run in str(late.get_payload())
    assert over["Subject"] == "slow has recovered: it is late"


def test_deadlines_that_passed_while_it_was_down_are_told_once_within_5_s_of_the_start(
    program: Program, pager: Stub, clock: InjectedClock
) -> None:
    clock.set(seconds_to(5))
    program.start().ready()
    until(lambda: expected(program, "books"), 15, "the deadline is expected")
    succeeds(program, "books")  # for the deadline of today
    assert program.stop() == 0
    clock.set(seconds_to(7, days=3))
    program.start().ready()
    until(lambda: told(pager, "books"), 5, "what was missed is told")
    (said,) = told(pager, "books")
    assert (said["news"], said["count"]) == ("opened", 3), "today's was met"
    assert program.stop() == 0
    program.start().ready()
    succeeds(program, "books")
    clock.set(seconds_to(7.1, days=3))  # so that it looks at once, and not in 15 s
    is_told(pager, "books", "opened", "recovered")


@pytest.mark.parametrize("is_down", [False, True], ids=["paused", "paused and down"])
def test_each_rule_tells_once_what_a_paused_flow_misses(
    program: Program, pager: Stub, clock: InjectedClock, is_down: bool
) -> None:
    program.flows.write_text(ALL_RULES)
    clock.set(seconds_to(5))
    program.start().ready()
    until(lambda: expected(program, "pull") == 2, 15, "runs are expected")
    typed(program, "pause", "pull")
    program.post("pull", {})
    if is_down:
        assert program.stop() == 0
    clock.set(seconds_to(8))
    if is_down:
        program.start().ready()
    rules = ["deadline", "expect_every", "finish_within"]
    until(lambda: rules_told(pager, "opened") == rules, 5, "each rule has told")
    assert all(
        each["paused"] and "the flow is paused" in each["text"] for each in told(pager, "pull")
    )
    typed(program, "resume", "pull")
    program.quiet(15)
    clock.set(seconds_to(8.1))
    until(lambda: rules_told(pager, "recovered") == rules, 15, "each rule has told that it is over")
    assert rules_told(pager, "opened") == rules


def rules_told(pager: Stub, news: str) -> list[str]:
    """Return the rules that told such news, as often as they did; a message may tell of several."""
    documents = [json.loads(asked.body) for asked in pager.to("/pager")]
    parts = [part for each in documents for part in each.get("parts", [each])]
    return sorted(each["rule"] for each in parts if each["news"] == news)


def expected(program: Program, flow: str) -> int:
    """Return how many things are expected of a flow, as the journal knows it."""
    return rows(program, "expectations WHERE flow = ?", flow)


def rows(program: Program, which: str, *values: str) -> int:
    """Return how many such rows the journal has."""
    path = str(program.data / "journal" / "journal.db")
    with closing(apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        connection.set_busy_timeout(5000)
        return int(connection.execute(f"SELECT count(*) FROM {which}", values).get)


def test_a_clock_set_back_at_a_restart_opens_nothing_twice_and_holds_nothing_back(
    program: Program, pager: Stub, clock: InjectedClock
) -> None:
    clock.set("+30d")
    program.start().ready()
    until(lambda: expected(program, "pull"), 15, "runs are expected")
    fails(program, "bill")
    is_told(pager, "bill", "opened")
    clock.set("+723h")  # three hours later
    is_told(pager, "pull", "opened")
    assert program.stop() == 0
    clock.set("+0s")
    program.start().ready()
    fails(program, "bill", 9)
    is_told(pager, "bill", "opened", "grown")
    succeeds(program, "pull")
    clock.set("+1m")
    # When it was told is not to be believed: what goes on is told once more.
    is_told(pager, "pull", "opened", "repeated", "recovered")
    succeeds(program, "bill")
    clock.set("+7m")
    is_told(pager, "bill", "opened", "grown", "recovered")
    clock.set("+3h")
    is_told(pager, "pull", "opened", "repeated", "recovered", "opened")
    assert len(told(pager, "bill")) == 3


# ---------------------------------------------------------------- what operators see


def typed(program: Program, *words: str) -> str:
    """Type a command, in this process; returns what it prints."""
    done = CliRunner().invoke(cli, [*words, "--data", str(program.data)], env=dict(program.env))
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.stdout


def listed(program: Program, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in typed(program, *words, "--json").splitlines()]


def flows_of(rows: list[dict[str, Any]], name: str = "flow") -> list[str]:
    return sorted(row[name] for row in rows)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"owner": "ann"}, ["bill"]),
        ({"tag": "money"}, ["bill"]),
        ({"tag": "daily"}, ["bill", "ship"]),
        ({"owner": "bob", "tag": "daily"}, ["ship"]),
        ({"owner": "bob", "tag": "money"}, []),
        ({"owner": "nobody"}, []),
    ],
)
def test_alerts_runs_and_flows_are_found_by_owner_and_tag(
    failed: Program, filters: dict[str, str], found: list[str]
) -> None:
    options = [word for name, value in filters.items() for word in (f"--{name}", value)]
    query = "&".join(f"{name}={value}" for name, value in filters.items())
    for what, name in (("alerts", "flow"), ("runs", "flow"), ("flows", "name")):
        assert flows_of(listed(failed, what, *options), name) == found, what
        assert flows_of(failed.api(f"/{what}?{query}")["items"], name) == found, what


def test_alerts_flows_and_runs_say_whose_flow_it_is_and_what_for(failed: Program) -> None:
    about = {"owner": "ann", "tags": ["money", "daily"], "description": "Sends bills."}
    (run,) = failed.api("/runs?flow=bill")["items"]
    for found in (
        failed.api("/alerts?flow=bill")["items"][0],
        *(each for each in failed.api("/flows")["items"] if each["name"] == "bill"),
        failed.api(f"/runs/{run['id']}"),
    ):
        assert {name: found[name] for name in about} == about
    assert "Sends bills." in typed(failed, "show", run["id"])
    (listed_flow,) = listed(failed, "flows", "--owner", "ann")
    assert {name: listed_flow[name] for name in about} == about


def test_alerts_are_found_by_flow(failed: Program) -> None:
    assert flows_of(listed(failed, "alerts", "--flow", "ship")) == ["ship"]
    assert flows_of(failed.api("/alerts?flow=ship")["items"]) == ["ship"]
    (row,) = listed(failed, "alerts", "--flow", "bill")
    assert (row["owner"], row["tags"], row["state"]) == ("ann", ["money", "daily"], "open")


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A program in which a run of two flows has failed."""
    folder = tmp_path_factory.mktemp("failed")
    (folder / "flows.py").write_text(FLOWS)
    with stubbed() as pager:
        env = {"PAGER": pager.says("/pager", Reply())}
        with Program(
            flows=folder / "flows.py", data=folder / "data", log=folder / "log", env=env
        ).start() as program:
            program.ready()
            for flow in ("bill", "ship"):
                fails(program, flow)
            yield program


def test_a_muted_alert_is_quiet_for_a_while_and_its_end_is_told(
    program: Program, pager: Stub, clock: InjectedClock
) -> None:
    program.start().ready()
    fails(program, "bill")
    is_told(pager, "bill", "opened")
    (alert,) = program.api("/alerts")["items"]
    words = ("alerts", "mute", str(alert["id"]), "--for", "2h", "--note", "known", "--by", "ops")
    assert "is muted until" in typed(program, *words)
    (muted,) = listed(program, "alerts")
    assert (muted["state"], muted["muted_by"], muted["note"]) == ("muted", "ops", "known")
    fails(program, "bill", 10)
    fails(program, "ship")  # told after what comes before it
    is_told(pager, "ship", "opened")
    assert news(pager, "bill") == ["opened"]
    clock.set("+3h")
    is_told(pager, "bill", "opened", "grown")
    for rows in (listed(program, "alerts", "--flow", "bill"), program.api("/alerts")["items"][-1:]):
        assert [(row["flow"], row["state"]) for row in rows] == [("bill", "open")]
    path = f"/api/alerts/{alert['id']}/mute"
    bearer = (program.data / "api-token").read_text().strip()
    headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
    answer = program.ask(path, method="POST", body=b"{}", headers=headers)
    assert answer is not None and (answer.status, answer.json["state"]) == (200, "muted")
    succeeds(program, "bill")
    clock.set("+4h")
    is_told(pager, "bill", "opened", "grown", "recovered")
    assert flows_of(listed(program, "alerts", "--owner", "ann")) == []
    (over,) = listed(program, "alerts", "--owner", "ann", "--all")
    assert over["state"] == "recovered"
    answer = program.ask(path, method="POST", body=b"{}", headers=headers)
    assert answer is not None and answer.status == 409
