"""Metrics that flow files declare: counted once where they are changed, in worker processes too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.program import Program, until
from tests.support.prometheus import promtool
from turnout import metric
from turnout.service.domain.errors import SetupError
from turnout.service.telemetry import own_metrics

FLOWS = """
from turnout import flow, metric, sleep, task, webhook

rows = metric("rows", kind="counter", text="Rows imported.")
depth = metric("depth", kind="gauge", labels={"table": ["orders", "bills"]})

@task
async def load(count: int) -> None:
    rows.inc(count)
    depth.set(count, table="orders")

@task
def load_in_a_thread(count: int) -> None:
    rows.inc(count)

@task(pool="process")
def load_apart(count: int, table: str) -> None:
    rows.inc(count)
    depth.set(count + 0.5, table=table)

@flow(on=webhook("/load"))
async def loads(data: dict) -> None:
    await load(2)
    await sleep("100ms")
    await load_in_a_thread.run(4)
    await load_apart.run(3, "of the event")
"""


@pytest.fixture(autouse=True)
def none_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_metrics, "_declared", {})


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_what_tasks_count_is_scraped_once(tmp_path: Path) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    program = Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log")
    with program.start():
        program.ready()
        assert program.metrics("turnout_own_rows_total") == {"": 0}
        assert program.metrics("turnout_own_depth") == {}
        program.post("load", {})
        until(lambda: program.metrics("turnout_own_rows_total") == {"": 9}, 20, "9 rows")
        program.quiet(20)
        assert program.metrics("turnout_own_rows_total") == {"": 9}
        depths = {'table="orders"': 2, 'table="other"': 3.5}
        assert program.metrics("turnout_own_depth") == depths
        scraped = program.ask("/metrics")
        assert scraped is not None
        promtool("check", "metrics", given=scraped.body)


def test_one_name_is_one_metric() -> None:
    first, again = (metric("files", kind="counter") for _ in range(2))
    first.inc()
    again.inc(2.5)
    (found,) = own_metrics.own_metrics()
    assert found.values == {(): 3.5}
    with pytest.raises(SetupError, match="is a gauge here and was declared before as a counter"):
        metric("files", kind="gauge")
    with pytest.raises(SetupError, match="one name is one metric"):
        metric("files", kind="counter", labels={"kind": ["big"]})


def test_names_made_of_data_come_to_an_end() -> None:
    for number in range(own_metrics.MOST_METRICS):
        metric(f"of_{number}", kind="counter")
    with pytest.raises(SetupError, match="there are 50 metrics already"):
        metric("of_one_more", kind="counter")


def test_values_that_are_not_declared_count_as_other() -> None:
    rows = metric("rows", kind="counter", labels={"table": ["orders"]})
    for number in range(1000):
        rows.inc(table=f"table-{number}")
    rows.inc(table="orders")
    (found,) = own_metrics.own_metrics()
    assert found.values == {("other",): 1000, ("orders",): 1}


TABLE = {"table": ["orders"]}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Rows", {"kind": "counter"}, "small letters, digits and _"),
        ("rows per day", {"kind": "counter"}, 'such as "rows"'),
        ("r" * 61, {"kind": "counter"}, "60 characters at most"),
        (7, {"kind": "counter"}, "a name has small letters"),
        ("rows_total", {"kind": "counter"}, "leave out _total"),
        ("turnout_rows", {"kind": "counter"}, "leave out turnout_"),
        ("rows", {"kind": "histogram"}, 'write kind="counter" or kind="gauge"'),
        ("rows", {"kind": "gauge", "text": "two\nlines"}, "write one line of text"),
        ("rows", {"kind": "gauge", "labels": ["table"]}, "write labels={"),
        (
            "rows",
            {"kind": "gauge", "labels": {"table": "orders"}},
            "labels['table']: list what it may be",
        ),
        ("rows", {"kind": "gauge", "labels": {"le": ["1"]}}, "names a label 'le'"),
        ("rows", {"kind": "gauge", "labels": {name: ["x"] for name in "abcd"}}, "3 at most"),
    ],
)
def test_what_cannot_be_a_metric_is_refused(
    name: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SetupError) as refused:
        metric(name, **options)
    assert message in str(refused.value)
    assert not own_metrics.own_metrics()


def test_what_cannot_change_a_metric_is_refused() -> None:
    rows = metric("rows", kind="counter", labels={"table": ["orders"]})
    depth = metric("depth", kind="gauge")
    changes: list[tuple[Any, str]] = [
        (lambda: rows.inc(-1, table="orders"), 'a counter only grows; declare kind="gauge"'),
        (lambda: rows.inc(float("nan"), table="orders"), "a number that is finite"),
        (lambda: rows.inc(1), "is changed with table=…, not with none"),
        (lambda: depth.set(1, table="orders"), "with no labels, not with table=…"),
        (lambda: depth.set("1"), "a number that is finite"),  # type: ignore[arg-type]
    ]
    for change, message in changes:
        with pytest.raises(SetupError) as refused:
            change()
        assert message in str(refused.value)
