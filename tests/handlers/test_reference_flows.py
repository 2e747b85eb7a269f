"""Three flows everybody writes, as examples, and all that must hold of them.

A daily report, a flow whose data decides its way, and several sources into several places: on
failing services, at crashes, over restarts and with changed code. S2 and S4 are samples of
`handlers/coming_from/PREFECT.md`, S11 is the one over data; `test_coming_from.py` has others.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from tests.support import CHECKOUT
from tests.support.peer_server import REPORT, SALES, Stub, stub
from tests.support.program import Program, killed_once, supervised, turnout, until
from turnout import flow, task
from turnout.service.domain.run import RunState
from turnout.service.project.loader import load_file
from turnout.testing import file_event, run, serve

EXAMPLES = CHECKOUT / "handlers" / "examples"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    """Somebody else's services, and a working folder."""
    monkeypatch.chdir(tmp_path)
    with stub() as web:
        for name, path in ENVIRONMENT.items():
            monkeypatch.setenv(name, web.url + path)
        web.bodies["/data"] = SALES
        yield web


ENVIRONMENT = {"SALES_URL": "", "REPORT_URL": "/report", "ALERT_URL": "/alert", "SHOP_URL": ""}


daily = load_file(EXAMPLES / "data" / "sales_report.py").daily
etl = load_file(EXAMPLES / "data" / "etl.py").etl
dynamic = load_file(EXAMPLES / "dynamic.py").dynamic

pytestmark = pytest.mark.slow


def program(name: str, folder: Path, web: Stub, sabotage: str = "") -> Program:
    env = {variable: web.url + path for variable, path in ENVIRONMENT.items()}
    return Program(
        flows=EXAMPLES / f"{name}.py",
        data=folder / "data",
        log=folder / "log",
        env={**env, "MARKER": str(folder / "marker")},
        sabotage=sabotage,
        prefix=("env", "-C", str(folder)),
    )


def ended(started: Program, run_id: str) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        try:
            run: dict[str, Any] = started.api(f"/runs/{run_id}")
        except (AssertionError, FileNotFoundError):  # it is down
            return None
        return run if run["finished_at"] else None

    return until(over, 30, f"the end of {run_id}")


# ---------------------------------------------------------------- the daily report


def test_s2_a_failing_download_is_tried_again_after_one_and_two_seconds(web: Stub) -> None:
    web.statuses["/data"] = [500, 500, 200]
    result = run(daily)
    assert result.state is RunState.SUCCEEDED, result.error
    assert result.steps["download#1"].tries == 3
    assert result.took.total_seconds() == 3
    assert Path("daily_report.csv").read_text() == REPORT
    assert web.texts == ["Report ready: daily_report.csv"] and web.count("/alert") == 0


def test_s2_no_download_is_no_report_and_one_alert(web: Stub) -> None:
    web.statuses["/data"] = [500]
    result = run(daily)
    assert result.state is RunState.FAILED
    assert web.count("/data") == 4
    assert list(Path().glob("*.csv*")) == [] and web.count("/report") == 0
    assert len(web.texts) == web.count("/alert") == 1
    assert "download#1 failed" in web.texts[0]


def test_s2_an_alert_that_cannot_be_sent_changes_nothing_and_is_sent_again(web: Stub) -> None:
    web.statuses |= {"/data": [500], "/alert": [503, 200]}
    result = run(daily)
    assert result.error is not None and result.error.step == "download#1"
    assert web.count("/alert") == 2


async def test_s2_the_tries_are_counted_and_the_clock_and_a_call_start_it(web: Stub) -> None:
    web.statuses["/data"] = [500, 500, 200]
    async with serve(daily) as service:
        await service.run(daily)
        metrics = service.process.metrics
        outcomes = {
            each.labels["outcome"]: each.value
            for each in next(iter(metrics.steps.collect())).samples
            if each.name.endswith("_total") and each.labels["task"] == "download"
        }
    assert outcomes == {"retried": 2, "succeeded": 1}
    assert [trigger.name for trigger in daily.triggers] == [
        "cron:0 9 * * *", "webhook:/reports/daily",
    ]  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("sabotage", "calls", "messages"),
    [
        (
            "import pandas\nhonest = pandas.DataFrame.to_csv\n"
            "grouped = pandas.DataFrame.groupby\n"
            "def groupby(*args, **kwargs):\n"
            "    with Path('calls').open('a') as file: file.write('process ')\n"
            "    return grouped(*args, **kwargs)\n"
            "pandas.DataFrame.groupby = groupby\n"
            "def to_csv(*args, **kwargs):\n"
            "    with Path('calls').open('a') as file: file.write('save ')\n"
            "    die()\n"
            "    return honest(*args, **kwargs)\n"
            "pandas.DataFrame.to_csv = to_csv",
            ["process", "save", "save"],
            1,
        ),
        (
            "from turnout.service.journal.sqlite.journal import SqliteJournal\n"
            "honest = SqliteJournal.record_step\n"
            "async def record_step(self, claim, step):\n"
            "    if step.key == 'notify#1': die()\n"
            "    await honest(self, claim, step)\n"
            "SqliteJournal.record_step = record_step",
            None,
            2,
        ),
    ],
    ids=["while saving", "after sending"],
)
def test_s2_a_crash_repeats_only_the_step_it_cut_off(
    tmp_path: Path, web: Stub, sabotage: str, calls: list[str] | None, messages: int
) -> None:
    with program("data/sales_report", tmp_path, web, killed_once(sabotage)) as started:
        started.start()
        started.ready()
        with supervised(started, most_restarts=2) as deaths:
            answer = started.ask("/hooks/reports/daily", method="POST")
            assert answer is not None and answer.status == 202
            ended_run = ended(started, answer.json["runs"][0])
        assert deaths == [-9] and ended_run["state"] == "succeeded"
        assert started.stop() == 0
    assert web.count("/data") == 1
    assert (tmp_path / "daily_report.csv").read_text() == REPORT
    if calls is not None:
        assert (tmp_path / "calls").read_text().split() == calls
    assert len(web.texts) == messages and len(set(web.keys)) == 1
    assert all(len(key) == 32 for key in web.keys)


# ---------------------------------------------------------------- data decides


def shop(web: Stub, active: int = 3) -> None:
    web.bodies["/users"] = [{"active": True}] * active + [{"active": False}]
    web.bodies["/orders"] = [{"status": "completed"}, {"status": "open"}]


async def test_s4_both_are_fetched_at_once_and_not_again_within_the_hour(web: Stub) -> None:
    shop(web)
    web.together = threading.Barrier(2)
    async with serve(dynamic) as service:
        first = await service.run(dynamic)
        assert first.result == {"users": 3, "orders": 1}, first.error
        web.together = None
        again = await service.run(dynamic)
        assert [web.count("/users"), web.count("/orders")] == [1, 1]
        fetched = [step for step in again.steps.values() if step.task == "fetch"]
        assert [step.origin for step in fetched] == [first.id] * 2
        counted = service.process.metrics.steps.labels("dynamic", "fetch", "cached")
        assert counted.value == 2
        await service.restart()
        await service.run(dynamic)
        assert len(web.asked) == 2, "kept over a restart"
        await service.advance("61m")
        await service.run(dynamic)
        assert [web.count("/users"), web.count("/orders")] == [2, 2]


async def test_s4_two_events_at_once_on_nothing_kept_ask_once(web: Stub) -> None:
    shop(web)
    web.latency_seconds = 0.2
    async with serve(dynamic) as service:
        results = await asyncio.gather(service.run(dynamic), service.run(dynamic))
    assert [result.result for result in results] == [{"users": 3, "orders": 1}] * 2
    assert sorted(web.asked) == ["/orders", "/users"]


async def test_s4_a_failed_fetch_is_not_kept(web: Stub) -> None:
    shop(web)
    web.statuses["/users"] = [500] * 4 + [200]
    async with serve(dynamic) as service:
        assert (await service.run(dynamic)).state is RunState.FAILED
        assert (await service.run(dynamic)).state is RunState.SUCCEEDED
    assert web.count("/users") == 5


@pytest.mark.parametrize(("active", "way"), [(1000, "small#1"), (1001, "large#1")])
def test_s4_the_size_decides_the_way(web: Stub, active: int, way: str) -> None:
    shop(web, active)
    result = run(dynamic)
    assert result.result == {"users": active, "orders": 1}, result.error
    assert [key for key in result.steps if not key.startswith("fetch")] == [way]


@pytest.mark.full
@pytest.mark.timeout(60)
def test_s4_other_code_asks_anew(web: Stub, tmp_path: Path) -> None:
    shop(web)
    source = (EXAMPLES / "dynamic.py").read_text()
    flows = tmp_path / "flows.py"
    flows.write_text(source)
    started = program("dynamic", tmp_path, web)
    started.flows = flows
    runs: list[str] = []
    for content, asked in ((source, 2), (source, 2), (source + "\n# edited\n", 4)):
        flows.write_text(content)
        with started.start():
            started.ready()
            answer = started.ask("/hooks/process", method="POST")
            assert answer is not None and answer.status == 202
            runs += answer.json["runs"]
            assert ended(started, runs[-1])["state"] == "succeeded"
            assert len(web.asked) == asked
            assert started.stop() == 0
    shown = turnout("show", runs[1], "--data", started.data).stdout
    assert len(re.findall(f"cached .* from run {runs[0]}", shown)) == 2


# ---------------------------------------------------------------- sources into places


def numbers(count: int) -> list[dict[str, int]]:
    return [{"id": number, "amount": number + 1} for number in range(count)]


def pipeline(web: Stub, folder: Path, **changes: Any) -> Path:
    """Lay out three sources of 100, 50 and 25 rows, and the file that joins them."""
    with sqlite3.connect(folder / "shop.db") as database:
        database.execute("CREATE TABLE sales (id INTEGER, amount INTEGER)")
        rows = numbers(100)
        database.executemany("INSERT INTO sales VALUES (:id, :amount)", rows)
    database.close()
    web.bodies["/rows"] = numbers(50)
    pd.DataFrame(numbers(25)).to_csv(folder / "rows.csv", index=False)
    plan = {
        "sources": [f"{folder}/shop.db#sales", f"{web.url}/rows", f"{folder}/rows.csv"],
        "positive": ["amount"],
        "destinations": [f"{folder}/all.duckdb", f"{folder}/all.parquet"],
    }
    (folder / "pipelines").mkdir(exist_ok=True)
    file = folder / "pipelines" / "plan.json"
    file.write_text(json.dumps(plan | changes))
    return file


def loaded(folder: Path) -> tuple[int, int]:
    with duckdb.connect(str(folder / "all.duckdb")) as database:
        (in_table,) = database.execute("SELECT count(*) FROM rows").fetchone() or (0,)
        query = f"SELECT count(*) FROM '{folder}/all.parquet'"
        (in_file,) = database.execute(query).fetchone() or (0,)
    return in_table, in_file


async def run_pipeline(file: Path) -> Any:
    event = await asyncio.to_thread(file_event, etl, file)
    async with serve(etl) as service:
        (result,) = await service.emit(event)
        return result


async def test_s11_sources_are_read_at_once_and_every_place_holds_all(
    web: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_three = threading.Barrier(3)
    for name in ("read_csv", "read_json", "read_sql"):
        monkeypatch.setattr(pd, name, read_with_others(getattr(pd, name), all_three))
    result = await run_pipeline(await asyncio.to_thread(pipeline, web, tmp_path))
    assert result.result == "Processed 175 records", result.error
    assert loaded(tmp_path) == (175, 175)


async def test_s11_places_of_one_kind_are_loaded_at_once_each_at_its_first_try(
    web: Stub, tmp_path: Path
) -> None:
    places = [f"{tmp_path}/{number}.parquet" for number in range(8)]
    file = await asyncio.to_thread(pipeline, web, tmp_path, destinations=places)
    web.bodies["/rows"] = numbers(50_000)
    result = await run_pipeline(file)
    assert result.error is None
    tries = [step.tries for key, step in result.steps.items() if key.startswith("load.map#1[")]
    assert tries == [1] * 8


async def test_s11_a_database_that_is_missing_is_not_made(web: Stub, tmp_path: Path) -> None:
    missing = f"{tmp_path}/other.db#sales"
    file = await asyncio.to_thread(pipeline, web, tmp_path, sources=[missing])
    result = await run_pipeline(file)
    assert result.error is not None and "unable to open" in result.error.message
    assert not (tmp_path / "other.db").exists()


def read_with_others(read: Any, others: threading.Barrier) -> Any:
    def wait_and_read(*args: Any, **kwargs: Any) -> Any:
        others.wait(10)  # for those that read at the same time; then it fails
        return read(*args, **kwargs)

    return wait_and_read


async def test_s11_no_rows_fail_the_run_at_once_and_load_nothing(web: Stub, tmp_path: Path) -> None:
    file = await asyncio.to_thread(pipeline, web, tmp_path)
    (tmp_path / "rows.csv").write_text("id,amount\n")
    result = await run_pipeline(file)
    assert result.error is not None and result.error.message == "Data cannot be empty"
    assert result.attempts == 1 and result.steps["validate#3"].tries == 1
    assert not (tmp_path / "all.duckdb").exists() and not (tmp_path / "all.parquet").exists()


@pytest.mark.parametrize(("rows", "good"), [(10, False), (11, True)])
async def test_s11_less_than_a_tenth_of_the_rows_may_lack_a_field(
    web: Stub, tmp_path: Path, rows: int, good: bool
) -> None:
    file = await asyncio.to_thread(pipeline, web, tmp_path)
    frame = pd.DataFrame(numbers(rows)).astype({"amount": "Int64"})
    frame.loc[0, "amount"] = pd.NA
    frame.to_csv(tmp_path / "rows.csv", index=False)
    result = await run_pipeline(file)
    assert (result.state is RunState.SUCCEEDED) is good, result.error
    if not good:
        assert result.error.message == f"Too many empty fields: 1 in {rows} rows"


async def test_s11_a_place_that_is_down_is_tried_again_by_itself(
    web: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await asyncio.to_thread(pipeline, web, tmp_path)
    connect, tries = duckdb.connect, []

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        if args:  # without, it is the memory that writes the Parquet file
            tries.append(args)
            if len(tries) < 3:
                raise OSError("the database is down")
        return connect(*args, **kwargs)

    monkeypatch.setattr(duckdb, "connect", sometimes)
    result = await run_pipeline(file)
    monkeypatch.undo()
    assert result.state is RunState.SUCCEEDED, result.error
    assert [result.steps[f"load.map#1[{number}]"].tries for number in (0, 1)] == [3, 1]
    assert loaded(tmp_path) == (175, 175)


@pytest.mark.timeout(60)
def test_s11_a_crash_between_the_loads_leaves_all_in_each(web: Stub, tmp_path: Path) -> None:
    sabotage = (
        "import duckdb\nhonest = duckdb.DuckDBPyRelation.write_parquet\n"
        "def write_parquet(*args, **kwargs):\n"
        "    honest(*args, **kwargs)\n"
        "    die()\n"
        "duckdb.DuckDBPyRelation.write_parquet = write_parquet"
    )
    (tmp_path / "pipelines").mkdir()
    with program("data/etl", tmp_path, web, killed_once(sabotage)) as started:
        started.start()
        started.ready()
        with supervised(started, most_restarts=2) as deaths:
            pipeline(web, tmp_path)
            until(lambda: deaths, 20, "the crash")
            until(lambda: started.alive and started.ask("/readyz"), 40, "the restart")
            (found,) = until(lambda: started.api("/runs")["items"], 10, "the run")
            ended_run = ended(started, found["id"])
        assert ended_run["result"] == "Processed 175 records", ended_run["error"]
        assert started.stop() == 0
    assert web.count("/rows") == 1, "what was read is not read again"
    assert loaded(tmp_path) == (175, 175)


@task
def typed_frame() -> pd.DataFrame:
    frame = pd.DataFrame({"day": ["2026-01-01", "2026-01-02"], "kind": ["a", "b"], "n": [1, None]})
    return frame.astype({"day": "datetime64[ns]", "kind": "category", "n": "Int64"})


@task
def described(frame: pd.DataFrame) -> list[str]:
    return [str(kind) for kind in frame.dtypes] + [str(frame.equals(typed_frame.function()))]


@flow
async def keeps_frames() -> list[str]:
    return await described.run(await typed_frame.run())


def test_a_frame_comes_back_as_it_was_after_a_crash() -> None:
    result = run(keeps_frames, crash_at=2)
    assert result.crashes == 1 and result.steps["typed_frame#1"].encoding == "pickle"
    assert result.result == ["datetime64[ns]", "category", "Int64", "True"]


@pytest.mark.full
@pytest.mark.timeout(60)
def test_s11_rules_hold_in_optimised_python_too(web: Stub, tmp_path: Path) -> None:
    file = pipeline(web, tmp_path)
    (tmp_path / "rows.csv").write_text("id,amount\n")
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from turnout.service.project.loader import load_file\n"
        "from turnout.testing import file_event, serve\n"
        "assert False, 'it is not optimised'\n"
        "etl = load_file(Path(sys.argv[1])).etl\n"
        "async def main():\n"
        "    async with serve(etl) as service:\n"
        "        (run,) = await service.emit(file_event(etl, Path(sys.argv[2])))\n"
        "    print(run.attempts, run.error.message, list(run.steps))\n"
        "asyncio.run(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLES / "data" / "etl.py"), str(file)],
        env={**os.environ, "PYTHONOPTIMIZE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("1 Data cannot be empty ['extract.map#1"), done.stderr
    assert "load" not in done.stdout and not (tmp_path / "all.duckdb").exists()
