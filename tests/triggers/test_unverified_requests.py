"""Refused signatures: one line a minute, with how many there were."""

from __future__ import annotations

from tests.support.log_lines import logged
from turnout.triggers.unverified_requests import INTERVAL_SECONDS, UnverifiedRequests


def test_a_line_a_minute_says_how_many_there_were() -> None:
    now = 100.0
    refused = UnverifiedRequests("webhook:/a", ["NEW", "OLD"], clock=lambda: now)
    with logged() as lines:
        for _ in range(5):
            refused.tell("10.0.0.1", "the signature does not match")
        now += INTERVAL_SECONDS - 1
        refused.tell("10.0.0.1", "the signature does not match")
        now += 1
        refused.tell("10.0.0.2", "the signature does not match")
    told = [(line["message"], line["count"], line["client"]) for line in lines]
    assert told == [("webhook.unverified", 1, "10.0.0.1"), ("webhook.unverified", 6, "10.0.0.2")]
    assert lines[0]["hint"] == "compare secret NEW or OLD with the one that the sender uses"
    assert {line["level"] for line in lines} == {"warning"}
