"""Decisions as rows: what earlier versions stored is read as what this one stores."""

from __future__ import annotations

from turnout.service.journal.sqlite.decisions import unpack_decisions


def test_a_decision_of_an_earlier_version_has_a_reason() -> None:
    stored = '[{"flow":"bill","verdict":"awaited","detail":"why","at":"2025-03-01T12:00:00Z"}]'
    assert unpack_decisions(stored) == [
        {
            "flow": "bill",
            "reason": "awaited",
            "detail": "why",
            "facts": {},
            "at": "2025-03-01T12:00:00Z",
        }
    ]
