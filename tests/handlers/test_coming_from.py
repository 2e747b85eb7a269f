"""The pages for those who come from another scheduler: both forms of each sample, and their output.

The forms for turnout always run. Those for another system run with `--full`, in an environment of
its own (`tests/bench/peers`), which finds pandas and httpx in this one. The samples are numbered:
S1 a report every morning, S3 a pipeline every day; S2 and S4 are those of Prefect, whose forms for
turnout are examples and tested in `test_reference_flows.py`.
"""

from __future__ import annotations

import asyncio
import os
import re
import site
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import turnout
from tests.bench.peers import program_of, python_of, services
from tests.support import CHECKOUT
from tests.support.pages import blocks
from tests.support.peer_server import REPORT, SALES, Stub, stub
from tests.support.program import Program, environment, until
from tests.support.smtp_sink import Sink, smtp_sink
from tests.support.trigger_contract import RecordingEmitter
from tests.triggers.virtual_time import DAY, START, Wall, dues, passes, running, virtually
from turnout import cron, every, flow, task
from turnout.service.project.loader import load_file
from turnout.testing import Result, serve
from turnout.triggers.calendar import Cron
from turnout.triggers.missed_ticks import Missed

pytestmark = pytest.mark.slow

PAGES = CHECKOUT / "handlers" / "coming_from"
TOKEN = "the-token-of-this-test"
NINE = datetime(2026, 3, 2, 9, tzinfo=UTC)


def written(page: str, file: str, folder: Path) -> Path:
    """Write a block of a page to the file it names; returns that."""
    (block,) = (each for each in blocks((PAGES / page).read_text()) if each.file == file)
    path = folder / file
    path.write_text(block.text)
    return path


def rows(page: str) -> list[tuple[str, str]]:
    """Return the table of a page: what is written there, and here."""
    return re.findall(r"^\| `(.+?)` \| `(.+?)` \|$", (PAGES / page).read_text(), re.MULTILINE)


def timer_of(written: str) -> Any:
    return eval(written, vars(turnout))


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    """Somebody else's services, and a working folder."""
    monkeypatch.chdir(tmp_path)
    with stub() as web:
        web.bodies["/data"] = SALES
        monkeypatch.setenv("SALES_URL", web.url)
        monkeypatch.setenv("REPORT_URL", f"{web.url}/report")
        yield web


# ---------------------------------------------------------------- S1: a report every morning


@flow(on=every("1s"))
def failing() -> None:
    raise ValueError("again")


@pytest.mark.parametrize("page", ["SCHEDULE.md", "CELERY_BEAT.md"])
async def test_s1_at_nine_the_report_is_made_and_told_whatever_fails_beside_it(
    web: Stub, tmp_path: Path, page: str
) -> None:
    file = await asyncio.to_thread(written, page, "report.py", tmp_path)
    daily = (await asyncio.to_thread(load_file, file)).daily_report
    async with serve(daily, failing, start=NINE - timedelta(seconds=5)) as service:
        await service.advance("4s")
        assert await service.runs(daily) == []
        await service.advance("4s")
        (made,) = await service.runs(daily)
        assert made.state == "succeeded", made.error
        assert {each.state for each in await service.runs(failing)} == {"failed"}
    assert (tmp_path / "daily_report.csv").read_text() == REPORT
    assert web.texts == ["Report ready"] and web.count("/report") == 1


def schedule_of_s1(**options: Any) -> Any:
    return cron("0 9 * * *", tz="Europe/London", **options)


@pytest.mark.parametrize(
    ("policy", "away", "made_up"),
    [
        ("run_once", timedelta(seconds=121), [NINE]),
        ("skip", timedelta(seconds=121), []),
        ("run_all", 2 * DAY + timedelta(seconds=121), [NINE, NINE + DAY, NINE + 2 * DAY]),
    ],
)
def test_s1_what_was_due_while_it_was_down(
    policy: Missed, away: timedelta, made_up: list[datetime]
) -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        wall.set_by = NINE - timedelta(seconds=62) - START
        async with running(schedule_of_s1(missed=policy), emit):
            await passes(timedelta(seconds=1))
        wall.set_by += away
        async with running(schedule_of_s1(missed=policy), emit):
            await passes(timedelta(seconds=1))
        assert dues(emit) == made_up

    virtually(story)


def test_s1_ten_restarts_around_nine_start_it_once() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        wall.set_by = NINE - timedelta(seconds=1) - START
        for _ in range(10):
            async with running(schedule_of_s1(), emit):
                await passes(timedelta(seconds=0.2))
        assert dues(emit) == [NINE]

    virtually(story)


def ticks_of_day(fields: str, zone: str, day: str) -> list[datetime]:
    schedule, midnight = Cron(fields, zone), Cron("0 0 * * *", zone)
    begin = midnight.next_after(datetime.fromisoformat(f"{day}T00:00Z") - timedelta(hours=12))
    assert begin is not None
    end, due = midnight.next_after(begin), schedule.next_after(begin - timedelta(seconds=1))
    assert end is not None
    found = []
    while due is not None and due < end:
        found.append(due)
        due = schedule.next_after(due)
    return found


@pytest.mark.parametrize(
    ("fields", "zone", "due"),
    [
        # A time that is skipped is due at the end of the gap, one that comes twice the first time.
        ("30 1 * * *", "Europe/London", "2026-03-29T01:00Z"),
        ("30 1 * * *", "Europe/London", "2026-10-25T00:30Z"),
        ("30 2 * * *", "America/New_York", "2026-03-08T07:00Z"),
        ("30 1 * * *", "America/New_York", "2026-11-01T05:30Z"),
    ],
)
def test_s1_on_the_days_when_the_clock_changes_it_is_due_once(
    fields: str, zone: str, due: str
) -> None:
    assert ticks_of_day(fields, zone, due[:10]) == [datetime.fromisoformat(due)]


@pytest.mark.parametrize(("day", "ticks"), [("2026-03-29", 46), ("2026-10-25", 50)])
def test_s1_half_hours_are_those_that_pass(day: str, ticks: int) -> None:
    assert len(ticks_of_day("*/30 * * * *", "Europe/London", day)) == ticks


@pytest.mark.alone
@pytest.mark.timeout(60)
def test_s1_a_slow_service_does_not_hold_up_turnout(web: Stub, tmp_path: Path, full: bool) -> None:
    web.latency_seconds = 5.0 if full else 0.5
    with Program(
        flows=written("SCHEDULE.md", "report.py", tmp_path),
        data=tmp_path / "data",
        log=tmp_path / "log",
        env={"SALES_URL": web.url, "REPORT_URL": f"{web.url}/report", "TURNOUT_API_TOKEN": TOKEN},
        sabotage=f"import os; os.chdir({str(tmp_path)!r})",
    ).start() as program:
        program.ready()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        path = "/api/triggers/cron%3A0%209%20%2A%20%2A%20%2A/fire"
        fired = program.ask(path, method="POST", headers=headers)
        assert fired is not None and fired.status in (200, 202), fired
        until(lambda: web.asked, 10, "the request")
        answered = []
        while not web.count("/report"):
            started = time.monotonic()
            answer = program.ask("/healthz")
            answered.append(time.monotonic() - started)
            assert answer is not None and answer.status == 200
            time.sleep(0.005)
        program.quiet(10)
    assert (tmp_path / "daily_report.csv").read_text() == REPORT
    assert sorted(answered)[int(len(answered) * 0.99)] < 0.1


@pytest.mark.parametrize("page", ["SCHEDULE.md", "CELERY_BEAT.md"])
def test_each_timer_of_a_table_is_one(page: str) -> None:
    assert len(rows(page)) >= 5
    for _, ours in rows(page):
        timer_of(ours).check()


# ---------------------------------------------------------------- S3: a pipeline every day

FIFTH = datetime(2026, 1, 5, tzinfo=UTC)


@pytest.fixture
def mails(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    with smtp_sink() as sink:
        monkeypatch.setenv("SMTP_HOST", "127.0.0.1")
        monkeypatch.setenv("SMTP_PORT", str(sink.port))
        yield sink


async def pipeline_of_a_day(web: Stub, folder: Path, failures: int) -> Result:
    """Have the tick of 5 January come, with a `transform` that fails so often; return its run."""
    web.bodies["/data/2026-01-05"] = SALES
    file = await asyncio.to_thread(written, "AIRFLOW.md", "etl.py", folder)
    module = await asyncio.to_thread(load_file, file)
    left = iter([True] * failures)
    honest = module.transform.function

    @task(retry=module.patient)
    def transform(sales: list[dict[str, Any]]) -> dict[str, int]:
        if next(left, False):
            raise ValueError("no sums today")
        return dict(honest(sales))

    vars(module)["transform"] = transform
    async with serve(module.etl_pipeline, start=FIFTH - timedelta(seconds=5)) as service:
        await service.advance("10s")
        (started,) = await service.runs(module.etl_pipeline)
        return await service.ended(started.id)


async def test_s3_the_tick_of_a_day_runs_the_pipeline_of_that_day(
    web: Stub, mails: Sink, tmp_path: Path
) -> None:
    run = await pipeline_of_a_day(web, tmp_path, failures=0)
    assert run.state == "succeeded", run.error
    assert web.asked == ["/data/2026-01-05"]
    assert (tmp_path / "daily_report.csv").read_text() == REPORT
    assert list(run.steps) == ["extract#1", "transform#1", "load#1"]


async def test_s3_a_step_that_fails_twice_waits_five_minutes_each_time_and_tells_nobody(
    web: Stub, mails: Sink, tmp_path: Path
) -> None:
    run = await pipeline_of_a_day(web, tmp_path, failures=2)
    assert run.state == "succeeded", run.error
    assert run.took == timedelta(seconds=600) and run.steps["transform#1"].tries == 3
    assert web.asked == ["/data/2026-01-05"] and mails.mails == []


async def test_s3_a_step_that_fails_for_good_sends_one_mail_and_loads_nothing(
    web: Stub, mails: Sink, tmp_path: Path
) -> None:
    run = await pipeline_of_a_day(web, tmp_path, failures=3)
    assert run.state == "failed"
    (mail,) = mails.mails
    assert mail["Subject"] == "etl_pipeline of data-team failed"
    text = mail.get_payload(decode=True)
    assert isinstance(text, bytes)
    assert text.decode().split() == ["transform#1:", "no", "sums", "today", "run", run.id]
    assert not any(key.startswith("load") for key in run.steps)
    assert not (tmp_path / "daily_report.csv").exists()


@pytest.mark.parametrize(("policy", "days"), [("run_once", [5]), ("run_all", [2, 3, 4, 5])])
def test_s3_what_was_due_in_four_days_off(policy: Missed, days: list[int]) -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        wall.set_by = FIFTH - 4 * DAY - START
        async with running(cron("@daily", missed=policy), emit):
            await passes(timedelta(seconds=1))
        wall.set_by += 4 * DAY
        async with running(cron("@daily", missed=policy), emit):
            await passes(timedelta(seconds=1))
        assert [due.day for due in dues(emit)] == days

    virtually(story)


# ---------------------------------------------------------------- in the other system


def run_there(system: str, code: str, folder: Path, *words: str) -> str:
    """Run code in another system's environment, in a folder; returns what it prints."""
    behind = f"import sys; sys.path += ['.', {site.getsitepackages()[0]!r}]\n"
    done = subprocess.run(
        [python_of(system), "-c", behind + code, *words],
        cwd=folder, env=environment({"TZ": "UTC"}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def told(web: Stub, folder: Path) -> tuple[str, Sequence[str]]:
    return (folder / "daily_report.csv").read_text(), web.texts


@pytest.mark.full
@pytest.mark.timeout(600)
def test_s1_with_schedule_has_the_same_output(web: Stub, tmp_path: Path) -> None:
    written("SCHEDULE.md", "report_schedule.py", tmp_path)
    code = "import report_schedule, schedule; print(schedule.jobs); schedule.run_all()"
    assert "1 day at 09:00:00" in run_there("schedule", code, tmp_path)
    assert told(web, tmp_path) == (REPORT, ["Report ready"])


@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_table_for_schedule_says_when(tmp_path: Path) -> None:
    fixed = [(theirs, timer_of(ours)) for theirs, ours in rows("SCHEDULE.md") if "at(" in theirs]
    code = (
        "from schedule import every\n"
        "for text in sys.argv[1:]:\n"
        "    print(eval(text).do(print).next_run.isoformat())"
    )
    now = datetime.now(UTC)
    said = run_there("schedule", code, tmp_path, *(theirs for theirs, _ in fixed)).split()
    for text, (theirs, timer) in zip(said, fixed, strict=True):
        due = datetime.fromisoformat(text).replace(tzinfo=UTC)
        assert due in (timer.next_at(now, {}), timer.next_at(datetime.now(UTC), {})), theirs


@pytest.mark.full
@pytest.mark.timeout(600)
def test_s1_with_celery_beat_has_the_same_output(web: Stub, tmp_path: Path) -> None:
    written("CELERY_BEAT.md", "report_beat.py", tmp_path)
    (tmp_path / "at_once.py").write_text(
        f"import sys\nsys.path.append({site.getsitepackages()[0]!r})\n"
        "from report_beat import app\n"
        "(entry,) = app.conf.beat_schedule.values()\n"
        "assert str(entry['schedule']).startswith('<crontab: 0 9 * * *'), entry\n"
        "entry['schedule'] = 1.0\n"
    )
    with services.redis(tmp_path) as url:
        command = [program_of("celery", "celery"), "-A", "at_once", "worker", "--beat"]
        with services.running(
            [*command, "--concurrency=1"], tmp_path / "worker.log",
            ready=lambda: bool(web.texts), env={"CELERY_URL": url}, cwd=tmp_path,
        ):  # fmt: skip
            pass
    report, texts = told(web, tmp_path)
    assert report == REPORT and set(texts) == {"Report ready"}


@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_table_for_celery_beat_says_when(tmp_path: Path) -> None:
    fixed = [(there, timer_of(ours)) for there, ours in rows("CELERY_BEAT.md") if "cron" in there]
    code = (
        "from datetime import datetime, timezone\n"
        "from celery import Celery\n"
        "from celery.schedules import crontab\n"
        "app, now = Celery(), datetime(2026, 3, 2, 9, 1, tzinfo=timezone.utc)\n"
        "for text in sys.argv[1:]:\n"
        "    due = eval(text)\n"
        "    due.app, due.nowfun = app, lambda: now\n"
        "    print((now + due.remaining_estimate(now)).isoformat())"
    )
    said = run_there("celery", code, tmp_path, *(theirs for theirs, _ in fixed)).split()
    for text, (theirs, timer) in zip(said, fixed, strict=True):
        assert datetime.fromisoformat(text) == timer.next_at(START, {}), theirs


def airflow(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Airflow's environment, on a database of its own."""
    binaries = python_of("airflow").parent
    env = {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PATH": f"{binaries}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [binaries / words[0], *words[1:]],
        cwd=folder, env=environment(env), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.mark.full
@pytest.mark.timeout(900)
def test_s3_with_airflow_has_the_same_output(web: Stub, mails: Sink, tmp_path: Path) -> None:
    written("AIRFLOW.md", "etl_dag.py", tmp_path)
    web.bodies["/data/2026-01-05"] = SALES
    airflow(tmp_path, "airflow", "db", "migrate")
    code = (
        "from datetime import datetime, timedelta, timezone\n"
        "from airflow.dag_processing.dagbag import DagBag\n"
        "(dag,) = DagBag('.').dags.values()\n"
        "assert {task.retries for task in dag.tasks} == {2}\n"
        "assert {task.retry_delay for task in dag.tasks} == {timedelta(minutes=5)}\n"
        "order = [task.task_id for task in dag.topological_sort()]\n"
        "assert (order, dag.catchup) == (['extract', 'transform', 'load'], False)\n"
        "assert type(dag.timetable).__name__ == 'CronTriggerTimetable'\n"
        "print(dag.test(logical_date=datetime(2026, 1, 5, tzinfo=timezone.utc)).state)"
    )
    assert "success" in airflow(tmp_path, "python", "-c", code).stdout
    assert (tmp_path / "daily_report.csv").read_text() == REPORT
    assert web.asked == ["/data/2026-01-05"] and mails.mails == []
    (tmp_path / "daily_report.csv").unlink()
    web.bodies["/data/2026-01-05"] = [{"no": "category"}]
    dag = tmp_path / "etl_dag.py"
    dag.write_text(dag.read_text().replace('"retries": 2', '"retries": 0'))
    code = code.replace("== {2}", "== {0}")
    assert "failed" in airflow(tmp_path, "python", "-c", code).stdout
    assert [mail["Subject"] for mail in mails.mails] == ["etl_pipeline of data-team failed"]
    assert not (tmp_path / "daily_report.csv").exists()


@pytest.mark.full
@pytest.mark.timeout(900)
def test_s2_and_s4_with_prefect_have_the_same_output(
    web: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("PREFECT.md", "sales_prefect.py", tmp_path)
    written("PREFECT.md", "dynamic_prefect.py", tmp_path)
    web.statuses["/data"] = [500, 500, 200]
    web.bodies["/users"] = [{"active": True}] * 3 + [{"active": False}]
    web.bodies["/orders"] = [{"status": "completed"}, {"status": "open"}]
    for name, value in {
        "SHOP_URL": web.url,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }.items():
        monkeypatch.setenv(name, value)
    code = (
        "import dynamic_prefect, sales_prefect\n"
        "said = [sales_prefect.daily(), dynamic_prefect.dynamic(), dynamic_prefect.dynamic()]\n"
        "print(said)"
    )
    counted = {"users": 3, "orders": 1}
    assert str(["daily_report.csv", counted, counted]) in run_there("prefect", code, tmp_path)
    assert told(web, tmp_path) == (REPORT, ["Report ready: daily_report.csv"])
    assert [web.count(path) for path in ("/data", "/users", "/orders")] == [3, 1, 1]
