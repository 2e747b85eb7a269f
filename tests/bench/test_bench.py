"""The bench tells what it could not measure, and which goals are not reached."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.bench import results
from tests.bench.__main__ import QUESTIONS
from tests.bench.measure import Spread, Unavailable, interleave, percentile, ratio
from tests.bench.peers import python_of
from tests.bench.report import Table, text_of
from tests.bench.results import KEPT, keep, write_page


def test_rounds_alternate_and_a_lost_peer_is_named() -> None:
    asked: list[str] = []

    def ours() -> Mapping[str, float]:
        asked.append("ours")
        return {"rate": 10.0}

    def peer() -> Mapping[str, float]:
        asked.append("peer")
        if len(asked) > 2:
            raise Unavailable("it fell over")
        return {"rate": 5.0}

    lost: dict[str, str] = {}
    found = interleave(3, {"ours": ours, "peer": peer}, lost)
    assert asked == ["ours", "peer", "ours", "peer", "ours"]
    assert found == {"ours": {"rate": [10.0, 10.0, 10.0]}}
    assert lost == {"peer": "it fell over"}


def test_what_nobody_may_lose_is_an_error() -> None:
    def ours() -> Mapping[str, float]:
        raise Unavailable("no wrk")

    with pytest.raises(Unavailable, match="no wrk"):
        interleave(1, {"ours": ours})


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratio([10, 40], [10, 20]) == Spread(1.5, 1.0, 2.0)
    assert ratio([10, 40, 30], [15]) == Spread(2.0, 2.0, 2.0)
    assert percentile(range(100), 0.99) == 99


def test_a_table_says_what_was_not_reached_or_not_measured() -> None:
    table = Table("z", "a title", ("what", "rate"))
    table.add("ours", Spread(2.0, 1.0, 3.0))
    table.at_least("x peer", 2.0, 3)
    table.lost["peer"] = "it fell over"
    text = text_of(table.kept())
    assert "| ours | 2.00 (1.00..3.00) |" in text
    assert "* goal: x peer ≥ 3: 2.00, **not reached**" in text
    assert "* **not measured**: peer: it fell over" in text


def test_the_page_is_made_of_all_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "KEPT", tmp_path / "results.json")
    monkeypatch.setattr(results, "PAGE", tmp_path / "RESULTS.md")
    for letter, found in (("y", 1.0), ("z", 5.0), ("y", 4.0)):
        table = Table(letter, f"question {letter}", ("what",))
        table.at_most("cost", found, 2)
        keep([table.kept()])
    write_page()
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| (y) | cost ≤ 2 | 4.00 | **not reached** |" in page
    assert page.count("### (y)") == 1 and page.count("### (z)") == 1


def test_every_question_can_be_asked() -> None:
    for module in set(QUESTIONS.values()):
        assert callable(importlib.import_module(f"tests.bench.{module}").run)
    assert KEPT.exists()


def test_a_peer_without_pins_is_refused() -> None:
    with pytest.raises(FileNotFoundError):
        python_of("nobody")
