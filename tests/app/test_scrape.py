"""What an operator's Prometheus reads of a real service: every answer is there, and well formed."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.program import Program
from tests.support.prometheus import prometheus, promtool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

LAST = "turnout_trigger_last_event_timestamp_seconds"

FLOWS = """
import time
from datetime import timedelta
from pathlib import Path
from turnout import every, flow, label, sleep, webhook

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
