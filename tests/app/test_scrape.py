"""What an operator's Prometheus reads of a real service: every answer is there, and well formed."""

from __future__ import annotations

import json
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.faults.load import Connection
from tests.support.injected_clock import InjectedClock
from tests.support.program import Program, until
from tests.support.prometheus import prometheus, promtool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

SENDERS = 16
LAST = "turnout_trigger_last_event_timestamp_seconds"

FLOWS = """
import time
from datetime import timedelta
from pathlib import Path
from turnout import every, flow, label, limit, metric, retry, sleep, webhook

rows = metric("rows", kind="counter", labels={"customer": ["1", "2"]})

@flow(on=webhook("/holds"))
def holds(data: dict) -> None:
    while not Path(data["until"]).exists():
        time.sleep(0.01)

@flow(on=webhook("/blocks"))
async def blocks(data: dict) -> None:
    time.sleep(0.6)  # twice as long as the loop's delay is looked at

@flow(on=webhook("/sleeps"))
async def sleeps(data: dict) -> None:
    await sleep(timedelta(seconds=data["seconds"]))

@flow(on=webhook("/asks", respond="100ms"))
async def asks(data: dict) -> None:
    await sleep(timedelta(seconds=300))

@flow(on=webhook("/quiet"))
async def quiet(data: dict) -> None: ...

@flow(
    on=webhook("/tells"),
    metrics={"region": label(lambda event: event.data["region"], values=["eu"])},
)
async def tells(data: dict) -> None: ...

@flow(on=webhook("/waits"), concurrency=1)
def waits(data: dict) -> None:
    while not Path(data["until"]).exists():
        time.sleep(0.01)

@flow(on=webhook("/fails"), retry=retry(1, delay="2h", jitter=False))
async def fails(data: dict) -> None:
    raise ConnectionError("no answer")

@flow(
    on=webhook("/orders"),
    ordered_by=lambda event: str(event.data["id"]),
    concurrency=limit(8, per=lambda event: event.data["id"]),
    metrics={"customer": label(lambda event: str(event.data["id"]), values=["1", "2"])},
)
async def orders(order: dict) -> None:
    rows.inc(customer=str(order["id"]))
    if order["id"] % 100 == 0:
        raise type(f"Error{order['id']}", (Exception,), {})

@flow(on=webhook("/tomorrow"))
async def tomorrow(data: dict) -> None:
    await sleep("1d")

@flow(on=every("100ms", name="beat"))
async def beat() -> None: ...
"""


def test_prometheus_reads_what_an_operator_asks(tmp_path: Path) -> None:
    flows, go_on = tmp_path / "flows.py", tmp_path / "go-on"
    flows.write_text(FLOWS)
    program = Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log")
    with program.start():
        program.ready()
        program.post("quiet", {})
        accepted_at = datetime.now(UTC).timestamp()
        program.stop()
        program.start().ready()
        program.post("holds", {"until": str(go_on)})
        for seconds in (30, 300):
            program.post("sleeps", {"seconds": seconds})
        program.post("blocks", {})
        for region in ("eu", "nowhere", "elsewhere"):
            program.post("tells", {"region": region})
        free = shutil.disk_usage(tmp_path).free
        with prometheus(tmp_path, scrapes=program.port) as operator:
            program.post("asks", {})
            sent = {"specversion": "1.0", "id": "1", "source": "s", "type": "t"}
            token = (program.data / "api-token").read_text().strip()
            program.ask(
                "/api/events",
                method="POST",
                body=json.dumps(sent).encode(),
                headers={
                    "Authorization": f"Bearer {token}",
                    "Content-Type": "application/cloudevents+json",
                },
            )
            for fact in (
                # How long do senders wait? Not those that ask for a result.
                'turnout_answer_seconds_bucket{trigger="webhook:/tells", le="0.25"} > 0',
                'turnout_answer_seconds_count{trigger="webhook:/tells"} == 3',
                'turnout_answer_seconds_count{trigger="webhook:/asks"} == 0',
                'turnout_answer_seconds_count{trigger="api"} == 1',
                # Is a thread or a process free, and how many are there?
                'turnout_pool_used{pool="flow threads"} == 1',
                'turnout_pool_max{pool="step threads"} == 32',
                # Is a process wanted: for the run that holds a thread and the one due soon?
                "turnout_wanted >= 2 < 4",
                # Do ticks come in time?
                'turnout_schedule_late_seconds_bucket{trigger="beat", le="5.0"} > 1',
                # When did a trigger last bring something, also before the restart?
                f'abs({LAST}{{trigger="webhook:/quiet"}} - {accepted_at}) < 2',
                f'time() - {LAST}{{trigger="beat"}} < 5',
                # Was the event loop held up?
                "turnout_loop_delay_seconds_count"
                ' - ignoring(le) turnout_loop_delay_seconds_bucket{le="0.1"} > 0',
                # Is the disk full, does it keep up, do queues take memory?
                f"abs(turnout_disk_free_bytes - {free}) < {2**30}",
                "turnout_journal_queued_writes < 100",
                "turnout_queue_memory_bytes < 1e6",
                # What ended where, by a flow's own label?
                'turnout_runs_total{flow="tells", region="eu"} == 1',
                'sum(turnout_runs_total{flow="tells"}) == 3',
                'turnout_runs_total{flow="tells", region="other"} == 2',
            ):
                operator.until(fact)
            go_on.touch()
            operator.until('turnout_pool_used{pool="flow threads"} == 0')
        scraped = program.ask("/metrics")
        assert scraped is not None
        promtool("check", "metrics", given=scraped.body)


def post_all(program: Program, path: str, count: int, *, accepted: int = 202) -> None:
    """Post so many events, each with an id of its own, over a few connections."""

    def send(first: int) -> None:
        connection = Connection(program.port)
        for number in range(first, count, SENDERS):
            body = json.dumps({"id": number}).encode()
            headers = {"Content-Type": "application/json", "Idempotency-Key": f"key-{number}"}
            answer = connection.post(path.format(number), body, headers)
            assert answer is not None and answer.status == accepted, answer
        connection.close()

    with ThreadPoolExecutor(SENDERS) as senders:
        list(senders.map(send, range(SENDERS)))


def test_of_many_runs_only_the_one_that_waits_for_its_turn_is_due(tmp_path: Path) -> None:
    flows, go_on, clock = tmp_path / "flows.py", tmp_path / "go-on", InjectedClock(tmp_path)
    flows.write_text(FLOWS)
    program = Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log", env=clock.env)
    with program.start():
        program.ready()
        post_all(program, "/hooks/tomorrow", 1000)
        post_all(program, "/hooks/fails", 10)
        program.post("waits", {"until": str(go_on)})
        before = time.monotonic()
        program.post("waits", {"until": str(go_on)})
        after = time.monotonic()

        def are_as_they_stay() -> bool:
            states = program.metrics("turnout_runs")
            return [states.get(f'state="{each}"') for each in ("waiting", "retrying")] == [1000, 10]

        until(are_as_they_stay, 40, "1,000 runs that sleep and 10 that back off")
        clock.set("+60s")

        def oldest() -> tuple[float, float, float]:
            """Return for how long the oldest run has been due, and the bounds of what is right."""
            at_least = 60 + time.monotonic() - after
            found = program.metrics("turnout_oldest_due_seconds")['flow="waits"']
            return at_least, found, 60 + time.monotonic() - before

        until(lambda: oldest()[1] >= 60, 10, "the clock is seen")
        at_least, found, at_most = oldest()
        assert at_least - 1 <= found <= at_most + 1
        due = program.metrics("turnout_due_runs")
        assert {labels: number for labels, number in due.items() if number} == {'flow="waits"': 1}
        assert program.metrics("turnout_scheduled_runs")['flow="fails"'] == 10
        waits = program.metrics("turnout_run_wait_seconds_bucket")
        bounds = {float(labels.rpartition('le="')[2][:-1]) for labels in waits}
        assert (min(bounds), max(bounds - {math.inf})) == (0.005, 3600)
        go_on.touch()


@pytest.mark.timeout(600)
def test_no_number_of_distinct_values_makes_many_series(
    tmp_path: Path, full: bool, say: Say
) -> None:
    flows, events = tmp_path / "flows.py", 100_000 if full else 1_000
    flows.write_text(FLOWS)
    program = Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log")

    with program.start():
        program.ready()
        post_all(program, "/hooks/orders", events)
        post_all(program, "/nowhere-{}", events // 10, accepted=404)
        program.quiet(120)
        counted = program.metrics("turnout_own_rows_total")
        assert counted == {'customer="1"': 1, 'customer="2"': 1, 'customer="other"': events - 2}
        scraped = program.ask("/metrics")
        assert scraped is not None
    series = sum(not line.startswith(b"#") for line in scraped.body.splitlines())
    say(f"{events} distinct values: {series} series")
    assert series <= 2000
