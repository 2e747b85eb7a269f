"""The alerts: each fires for what it is about, resolves after it, and has a section that helps.

promtool plays the metrics, a value a minute: what is wrong at first ends after a while.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.support import CHECKOUT
from tests.support.prometheus import promtool

pytestmark = pytest.mark.slow

RULES = CHECKOUT / "deploy" / "turnout.rules.yml"
RUNBOOK = CHECKOUT / "deploy" / "README.md"
ANSWERS = 'turnout_answer_seconds_{}{{trigger="webhook:/orders"{}}}'
WAITS = 'turnout_run_wait_seconds_{}{{flow="bill",cause="slot"{}}}'


class Case(NamedTuple):
    """Series that make an alert fire after `fires` minutes, and no longer after `resolved`."""

    series: dict[str, str]
    fires: int
    resolved: int
    labels: dict[str, str] = {}


def refused(fast: int) -> dict[str, str]:
    """Return events of which `fast` of 100 a minute are refused for a while."""
    minutes = 40 if fast > 1 else 90
    return {
        'turnout_events_total{trigger="t",result="accepted"}': "0+99x200",
        'turnout_events_total{trigger="t",result="refused"}': (
            f"0+{fast}x{minutes} {fast * minutes}x110"
        ),
    }


def answered_late(share: int) -> dict[str, str]:
    """Return accepted requests of which `share` of 100 a minute are answered late for a while."""
    minutes = 40 if share > 1 else 90
    after = (100 - share) * minutes
    return {
        ANSWERS.format("count", ""): "0+100x200",
        ANSWERS.format("bucket", ',le="0.25"'): (
            f"0+{100 - share}x{minutes} {after + 100}+100x110"
        ),
    }


def started_late(share: int) -> dict[str, str]:
    """Return runs of which `share` of 100 a minute start late for a while."""
    minutes = 40 if share > 10 else 90
    after = 100 * minutes - share * minutes
    return {
        WAITS.format("count", ""): "0+100x200",
        WAITS.format("bucket", ',le="5.0"'): (f"0+{100 - share}x{minutes} {after + 100}+100x110"),
    }


LATE = "turnout_schedule_late_seconds_{}"
DELAY = "turnout_loop_delay_seconds_{}"
MISSED = 'turnout_events_total{trigger="nightly",result="missed"}'
STARTED = "turnout_start_timestamp_seconds"
BREAKER = 'turnout_breaker_state{dependency="crm"}'
FILTERS = 'turnout_filter_errors_total{flow="bill"}'
DEAD = 'turnout_dead_letters{flow="bill"}'

CASES = {
    "TurnoutDown": Case({'up{job="turnout"}': "0x5 1x60"}, 2, 10, {"job": "turnout"}),
    "TurnoutTriggerDown": Case({'turnout_trigger_up{trigger="files"}': "0x10 1x60"}, 8, 20,
                               {"trigger": "files"}),
    "TurnoutDeadLetters": Case({DEAD: "0x20 3x60"}, 25, 45,
                               {"flow": "bill"}),
    "TurnoutUndoFailed": Case({'turnout_undo_failed{flow="bill"}': "1x10 0x60"}, 5, 15,
                              {"flow": "bill"}),
    "TurnoutBacklog": Case(
        {
            'turnout_run_wait_seconds_bucket{flow="bill",cause="slot",le="60.0"}': "0x30 0+60x90",
            'turnout_run_wait_seconds_bucket{flow="bill",cause="slot",le="300.0"}': "0+60x120",
            'turnout_run_wait_seconds_bucket{flow="bill",cause="slot",le="+Inf"}': "0+60x120",
        },
        25, 60, {"flow": "bill"},
    ),
    "TurnoutSlowDisk": Case(
        {
            'turnout_journal_commit_seconds_bucket{le="0.25"}': "0x30 0+60x90",
            'turnout_journal_commit_seconds_bucket{le="1.0"}': "0+60x120",
            'turnout_journal_commit_seconds_bucket{le="+Inf"}': "0+60x120",
        },
        25, 60,
    ),
    "TurnoutClockBehind": Case({"turnout_clock_behind_seconds": "3600x20 0x60"}, 15, 30),
    "TurnoutRestarts": Case({STARTED: "0x3 240x3 480x3 720x3 960x90"}, 20, 60),
    "TurnoutRefusesFast": Case(refused(5), 30, 60),
    "TurnoutRefusesSlowly": Case(refused(1), 80, 130),
    "TurnoutAnswersLateFast": Case(answered_late(5), 30, 60),
    "TurnoutAnswersLateSlowly": Case(answered_late(1), 80, 130),
    "TurnoutStartsLateFast": Case(started_late(50), 30, 60),
    "TurnoutStartsLateSlowly": Case(started_late(8), 80, 130),
    "TurnoutTicksLate": Case(
        {
            LATE.format('bucket{trigger="nightly",le="60.0"}'): "0+1x10 10x10 11+1x60",
            LATE.format('count{trigger="nightly"}'): "0+1x10 11+1x10 22+1x60",
        },
        20, 60, {"trigger": "nightly"},
    ),
    "TurnoutTicksMissed": Case({MISSED: "0x20 4x60"}, 25, 50,
                               {"trigger": "nightly", "result": "missed"}),
    "TurnoutLoopBlocked": Case(
        {
            DELAY.format('bucket{le="1.0"}'): "0+235x20 4700+240x60",
            DELAY.format("count"): "0+240x80",
        },
        15, 40,
    ),
    "TurnoutBackupOld": Case({"turnout_backup_age_seconds": "90000x90 60x60"}, 70, 100),
    "TurnoutDiskFilling": Case(
        {"turnout_disk_free_bytes": "4000000000-20000000x60 2800000000x90"}, 50, 130
    ),
    "TurnoutWritesQueue": Case({"turnout_journal_queued_writes": "5000x10 3x60"}, 8, 20),
    "TurnoutPoolBusy": Case({'turnout_pool_waiting{pool="processes"}': "2x20 0x60"}, 15, 30,
                            {"pool": "processes"}),
    "TurnoutBreakerOpen": Case({BREAKER: "2x9 1 2x9 1 2x9 0x60"}, 20, 40, {"dependency": "crm"}),
    "TurnoutFilterErrors": Case({FILTERS: "0x20 1x60"}, 25, 50, {"flow": "bill"}),
    "TurnoutRunsFail": Case(
        {
            'turnout_runs_total{flow="bill",outcome="failed"}': "0+20x40 800x200",
            'turnout_runs_total{flow="bill",outcome="succeeded"}': "0+80x240",
        },
        40, 110, {"flow": "bill"},
    ),
}  # fmt: skip

RESTARTED = "0x20 stale _x1 1380x60"
SECOND_CAUSES = [
    # Runs that do not start at all tell nothing of how late they started.
    ("TurnoutBacklog", Case({'turnout_oldest_due_seconds{flow="bill"}': "0+60x30 0x60"}, 15, 45,
                            {"flow": "bill"})),
    # A process counts as it starts, after minute 20: as much as the one before had counted.
    ("TurnoutTicksMissed", Case({MISSED: "4x20 stale _x1 4x60", STARTED: RESTARTED}, 25, 45,
                                {"trigger": "nightly", "result": "missed"})),
    ("TurnoutFilterErrors", Case({FILTERS: "1x20 stale _x1 1x60", STARTED: RESTARTED}, 25, 45,
                                 {"flow": "bill"})),
    # Nobody was there for longer than the alert looks back.
    ("TurnoutTicksLate", Case(
        {
            LATE.format('bucket{trigger="nightly",le="60.0"}'): "9x20 stale _x28 0x60",
            LATE.format('count{trigger="nightly"}'): "9x20 stale _x28 1x60",
            STARTED: "0x20 stale _x28 3000x60",
        },
        55, 70, {"trigger": "nightly"},
    )),
    ("TurnoutTicksLate", Case(  # but the process: it had been stopped
        {
            LATE.format('bucket{trigger="nightly",le="60.0"}'): "9x20 stale _x28 9x60",
            LATE.format('count{trigger="nightly"}'): "9x20 stale _x28 10x60",
            STARTED: "0x20 stale _x28 0x60",
        },
        55, 70, {"trigger": "nightly"},
    )),
]  # fmt: skip

AT_NIGHT = "0x25 1x10 9x60"
FEW = {
    "Refuses": {
        'turnout_events_total{trigger="t",result="accepted"}': AT_NIGHT,
        'turnout_events_total{trigger="t",result="refused"}': AT_NIGHT,
    },
    "AnswersLate": {
        ANSWERS.format("count", ""): "0x25 2x10 18x60",
        ANSWERS.format("bucket", ',le="0.25"'): AT_NIGHT,
    },
    "StartsLate": {
        WAITS.format("count", ""): "0x25 2x10 18x60",
        WAITS.format("bucket", ',le="5.0"'): AT_NIGHT,
    },
}
A_STOP = "stale _x1"
SILENT = [
    # What was there before a stop, or a scrape that failed, is not new a quarter of an hour later.
    ("TurnoutDeadLetters", {DEAD: f"3x40 {A_STOP} 3x60"}),
    ("TurnoutTicksMissed", {MISSED: f"3x40 {A_STOP} 3x60", STARTED: f"0x40 {A_STOP} 0x60"}),
    ("TurnoutFilterErrors", {FILTERS: f"3x40 {A_STOP} 3x60", STARTED: f"0x40 {A_STOP} 0x60"}),
    # One of two, or nine of eighteen, is no pace.
    *(
        (f"Turnout{what}{pace}", series)
        for what, series in FEW.items()
        for pace in ("Fast", "Slowly")
    ),
    # A breaker that is tried and closes.
    ("TurnoutBreakerOpen", {BREAKER: "0x50 2x5 1x2 0x60"}),
]


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def played(name: str, case: Case) -> dict[str, Any]:
    """Return the test of one alert as promtool reads it."""
    rule = alerts()[name]
    told = {
        key: re.sub(r"{{ \$labels\.(\w+) }}", lambda found: case.labels[found[1]], text)
        for key, text in rule["annotations"].items()
    }
    fired = [{"exp_labels": {**rule["labels"], **case.labels}, "exp_annotations": told}]
    return {
        "interval": "1m",
        "input_series": [{"series": key, "values": value} for key, value in case.series.items()],
        "alert_rule_test": [
            {"alertname": name, "eval_time": f"{case.fires}m", "exp_alerts": fired},
            {"alertname": name, "eval_time": f"{case.resolved}m", "exp_alerts": []},
        ],
    }


def silent(name: str, series: dict[str, str]) -> dict[str, Any]:
    """Return a test in which an alert fires at no minute, once a service has run for a while."""
    return {
        "interval": "1m",
        "input_series": [{"series": key, "values": value} for key, value in series.items()],
        "alert_rule_test": [
            {"alertname": name, "eval_time": f"{minute}m", "exp_alerts": []}
            for minute in range(20, 80)
        ],
    }


def test_the_rules_are_rules_and_each_alert_is_played() -> None:
    assert CASES.keys() == alerts().keys()
    promtool("check", "rules", RULES)


@pytest.mark.full
@pytest.mark.timeout(180)  # promtool takes 10 s of a processor, which others may use too
def test_each_alert_fires_and_resolves(tmp_path: Path) -> None:
    tests = [played(name, case) for name, case in [*CASES.items(), *SECOND_CAUSES]]
    tests += [silent(name, series) for name, series in SILENT]
    file = tmp_path / "rules_test.yml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests})
    )
    promtool("test", "rules", file)


def test_each_alert_has_a_section_that_says_what_to_do() -> None:
    sections = re.findall(r"^### (Turnout\w+)\n\n\S", RUNBOOK.read_text("utf-8"), re.MULTILINE)
    assert sections == list(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook"] == f"deploy/README.md#{name.lower()}"
