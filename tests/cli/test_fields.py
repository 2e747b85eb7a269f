"""The fields of `--json` are documented: each has a meaning, and nothing else has one."""

from __future__ import annotations

from tests.support import CHECKOUT
from turnout.service.cli.fields import FIELDS, meaning

SNAPSHOT = (CHECKOUT / "tests/snapshots/json_fields.txt").read_text("utf-8")
FOUND = {line.strip() for line in SNAPSHOT.splitlines() if line.startswith(" ")}
FREE = {"answers[].via", "approved", "data_base64", "refusals"}
"""Fields of lists that are empty where the snapshot is taken, or that only some documents have."""


def test_every_field_that_is_answered_has_a_meaning() -> None:
    assert {field for field in FOUND if meaning(field) is None} == set()


def test_every_meaning_is_that_of_a_field() -> None:
    plain = {field.removeprefix("items[].").replace("[]", "") for field in FOUND}
    known = plain | {field.rpartition(".")[2] for field in plain}
    known |= {".".join(field.split(".")[-2:]) for field in plain}
    assert set(FIELDS) - known == FREE


def test_the_path_of_a_field_counts_before_its_name() -> None:
    assert meaning("runs[].error.step") == "the step that the error came from"
    assert meaning("history[].error.type") == "the type of the exception"
    assert meaning("nothing.at.all") is None
