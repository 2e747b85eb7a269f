"""An old journal with many more runs, as a service has that was never pruned."""

from __future__ import annotations

from pathlib import Path

import apsw

from turnout.service.journal.sqlite.files import FILE_NAME, journal_folder

_BODY = """CAST('{"order": 4711, "customer": "c-4711", "lines": [1, 2, 3]}' AS BLOB)"""


def grow(data: Path, runs: int) -> None:
    """Add so many finished runs to a journal, each with its event and one step.

    They are copies of an event, a run and a step of the journal, so any version will do.
    """
    connection = apsw.Connection(str(journal_folder(data) / FILE_NAME))
    connection.pragma("synchronous", "off")
    with connection:
        last = connection.execute(
            "SELECT max(seq) FROM (SELECT seq FROM events UNION SELECT seq FROM runs"
            " UNION SELECT seq FROM steps)"
        ).get
        connection.execute(
            "CREATE TEMP TABLE numbers AS WITH RECURSIVE counted (n) AS"
            " (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < ?) SELECT n FROM counted",
            (runs,),
        )
        seq = f"{last} + n"
        for table, model, chosen in (
            ("events", "1", {"id": "'grown-' || n", "body": _BODY, "by_id": "1"}),
            ("runs", "state = 'succeeded'", {"id": "'grown-run-' || n", "event_seq": seq}),
            ("steps", "state = 'succeeded'", {"run_seq": seq}),
        ):
            new = {"seq": seq, **chosen}
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            values = ", ".join(new.get(name, f"old.{name}") for name in columns)
            connection.execute(
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM numbers,"
                f" (SELECT * FROM {table} WHERE {model} LIMIT 1) AS old"
            )
    connection.close()
