"""Every statement of the journal compiles on a new one, and none is too long to stay prepared."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import apsw
import pytest

from turnout.service.domain.run import UNFINISHED, RunState
from turnout.service.journal import sqlite
from turnout.service.journal.sqlite import dedupe, events, outcomes, positions, runs, steps
from turnout.service.journal.sqlite.bulk import LONGEST_CACHED, BulkStatement
from turnout.service.journal.sqlite.connection import open_for_writing
from turnout.service.journal.sqlite.statements import load
from turnout.service.journal.sqlite.work_reads import (
    DUE,
    QUEUED_AT_KEY,
    QUEUED_IN_ORDER,
    queued_text,
)

ROOM = Path(str(sqlite.__file__)).parent
FILES = sorted(path.stem for path in (ROOM / "sql").glob("*.sql"))
NAMED = [(file, name) for file in FILES for name in load(file)]
BULK = {
    "events": events.INSERT,
    "columns": events.INSERT_COLUMNS,
    "deliveries": dedupe.INSERT,
    "runs": runs.INSERT,
    "attempts": outcomes.INSERT_ATTEMPTS,
    "outcomes": outcomes.RECORD,
    "steps": steps.RECORD,
    "positions": positions.STORE,
}
STATES = re.compile(r"state (?:NOT )?IN \(([^)?]*)\)")


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[apsw.Connection]:
    folder = tmp_path_factory.mktemp("statements")
    (folder / "journal").mkdir(mode=0o700)
    connection = open_for_writing(folder, synchronous="normal")
    yield connection
    connection.close()


def values_of(text: str) -> int:
    """Return how many values a statement takes."""
    numbers = [int(number) for number in re.findall(r"\?(\d+)", text)]
    return max(numbers, default=0) + len(re.findall(r"\?(?!\d)", text))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_each_statement_compiles_and_is_used(
    journal: apsw.Connection, file: str, name: str
) -> None:
    text = load(file)[name]
    journal.execute(f"EXPLAIN {text}", (None,) * values_of(text))
    assert len(text) <= LONGEST_CACHED
    modules = [path.read_text("utf-8") for path in ROOM.glob("*.py")]
    users = [text for text in modules if f'load("{file}")' in text]
    assert any(f'"{name}"' in text for text in users), "nobody uses it"


def test_a_statement_is_planned_once_whatever_its_values(journal: apsw.Connection) -> None:
    asked = "EXPLAIN QUERY PLAN SELECT 1 FROM runs WHERE dead = ?"
    plans = [journal.execute(asked, (value,)).fetchall() for value in (0, 1)]
    assert plans[0] == plans[1], "1 alone would fit the index of dead letters"


@pytest.mark.parametrize("name", BULK)
def test_bulk_statements_of_any_size_compile_and_stay_prepared(
    journal: apsw.Connection, name: str
) -> None:
    statement: BulkStatement = BULK[name]
    for rows in (1, 32, 256):
        text = statement.text(rows)
        journal.execute(f"EXPLAIN {text}", (None,) * values_of(text))
        assert len(text.encode()) <= LONGEST_CACHED


@pytest.mark.parametrize("file", FILES)
def test_states_in_statements_are_those_of_the_transition_table(file: str) -> None:
    for text in load(file).values():
        for listed in STATES.findall(text):
            states = {RunState(state.strip(" '")) for state in listed.split(",")}
            assert RunState.RUNNING not in states or states in (UNFINISHED, set(RunState)), text


@pytest.mark.parametrize(
    ("file", "name", "step"),
    [
        ("windows", "pull_back", "SEARCH windows USING INDEX windows_opened (opened_at>?)"),
        ("windows", "pull_back_members", "windows_opened (opened_at>?)"),
        ("reads", "orphans", "runs_by_state (state=? AND flow>?)"),
    ],
)
def test_a_start_walks_over_no_open_window_and_no_run_of_a_served_flow(
    journal: apsw.Connection, file: str, name: str, step: str
) -> None:
    text = load(file)[name]
    rows = journal.execute(f"EXPLAIN QUERY PLAN {text}", (None,) * values_of(text)).fetchall()
    steps = [str(row[3]) for row in rows]
    assert any(step in each for each in steps), steps
    assert not any(each.startswith(("SCAN windows", "SCAN runs")) for each in steps), steps


IN_ORDER = {
    DUE: ("runs_due (due_at=? AND rowid>?)", "runs_due (due_at>? AND due_at<?)"),
    queued_text(of_class=False): (
        "runs_by_state (state=? AND flow=? AND rowid>?",
        "runs_by_arrival",
    ),
    queued_text(of_class=True): ("runs_by_priority (flow=? AND priority=?", "runs_by_arrival"),
    QUEUED_IN_ORDER: ("runs_by_order (flow=? AND order_key=? AND <expr>>?)",),
    QUEUED_AT_KEY: (
        "PRIMARY KEY (flow=? AND place=? AND key=? AND run_seq>?)",
        "run_keys_by_arrival",
    ),
}


@pytest.mark.parametrize(("text", "indexes"), IN_ORDER.items(), ids=range(len(IN_ORDER)))
def test_runs_are_read_in_their_order_from_indexes(
    journal: apsw.Connection, text: str, indexes: Sequence[str]
) -> None:
    rows = journal.execute(f"EXPLAIN QUERY PLAN {text}", (None,) * values_of(text)).fetchall()
    steps = [str(row[3]) for row in rows]
    for index in indexes:
        assert any(index in each for each in steps), steps
    assert not any("TEMP B-TREE" in each or each.startswith("SCAN r") for each in steps), steps


@pytest.mark.parametrize("name", ["claim_untouched", "claim"])
def test_a_claim_looks_up_the_runs_it_names(journal: apsw.Connection, name: str) -> None:
    text = load("claims")[name]
    rows = journal.execute(f"EXPLAIN QUERY PLAN {text}", (None,) * values_of(text)).fetchall()
    assert str(rows[0][3]) == "SEARCH runs USING INTEGER PRIMARY KEY (rowid=?)"


@pytest.mark.parametrize(
    "step",
    [
        "SEARCH s USING COVERING INDEX flow_state_by_use (used_at<?)",
        "SEARCH r USING COVERING INDEX runs_by_order (flow=? AND order_key=?)",
        "SEARCH r USING INDEX runs_suspended_by_order (flow=? AND order_key=?)",
        "SEARCH r USING INDEX runs_by_state (state=?)",
    ],
)
def test_unused_states_are_found_whatever_the_number_of_unfinished_runs(
    journal: apsw.Connection, step: str
) -> None:
    text = load("flow_state")["unused"]
    rows = journal.execute(f"EXPLAIN QUERY PLAN {text}", (None,) * values_of(text)).fetchall()
    assert step in [str(row[3]) for row in rows], rows


def test_the_runs_whose_span_is_owed_are_found_without_looking_at_others(
    journal: apsw.Connection,
) -> None:
    text = load("traces")["owed"]
    rows = journal.execute(f"EXPLAIN QUERY PLAN {text}", (None,) * values_of(text)).fetchall()
    assert [row[3] for row in rows] == [
        "SEARCH t USING COVERING INDEX traced_runs_owed (run_seq>?)",
        "SEARCH r USING INTEGER PRIMARY KEY (rowid=?)",
    ]


def test_what_is_used_of_a_budget_is_added_up_from_its_index_alone(
    journal: apsw.Connection,
) -> None:
    text = load("budgets")["used"]
    rows = journal.execute(f"EXPLAIN QUERY PLAN {text}", (None,) * values_of(text)).fetchall()
    step = (
        "SEARCH budget_takes USING COVERING INDEX budget_takes_by_name (name=? AND at>? AND at<?)"
    )
    assert [row[3] for row in rows] == [step]
