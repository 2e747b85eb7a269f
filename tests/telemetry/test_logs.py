"""Log lines: one per record, whoever writes it, with the run it belongs to."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog

from tests.support.attempts import attempts
from turnout import current, flow, task
from turnout.service.domain.run import RunState
from turnout.service.telemetry import logs
from turnout.service.telemetry.log_lines import MAX_FIELD

AT = datetime(2025, 3, 1, 9, 15, 2, 123000, tzinfo=UTC)
UNSEEN = "\u202e\u2066\u200b\u200d\ufeff\xad\U000e0041"
HOSTILE = f"line\r\nforged: \x1b[31mred\x1b[0m \x9b1m \u2028 \x7f \ud800 {UNSEEN}"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    undo = logs.configure("auto", "info", stream, now=lambda: AT)
    yield stream
    undo()


def records(stream: io.StringIO) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in stream.getvalue().split("\n") if line]


def in_a_run() -> logs.RunLog:
    return logs.RunLog(
        lambda: {
            "flow": "bill",
            "run": "r1",
            "attempt": 2,
            "trigger": "t",
            "event": "e",
            "tenant": "x",
        }
    )


def test_a_record_is_a_line_of_json_when_nobody_watches(stream: io.StringIO) -> None:
    logs.get_logger("here").info("order.charged", receipt="r", event="kept", message="also kept")
    logs.get_logger().debug("not.shown")
    assert records(stream) == [
        {
            "at": "2025-03-01T09:15:02.123Z", "level": "info", "message": "order.charged",
            "logger": "here", "receipt": "r", "event": "kept", "message_": "also kept",
        }
    ]  # fmt: skip


def test_a_record_is_readable_on_a_terminal() -> None:
    stream = Terminal()
    undo = logs.configure("auto", "info", stream, now=lambda: AT)
    token = logs.running.set(in_a_run())
    logs.get_logger("here").warning("order.late", minutes=5, reason="a queue")
    logs.running.reset(token)
    undo()
    assert stream.getvalue() == (
        '09:15:02.123 warning order.late  minutes=5  reason="a queue"  [bill r1 #2]\n'
    )


@pytest.mark.parametrize("format", ["json", "console"])
def test_no_value_can_forge_a_line_or_a_terminal_sequence(format: logs.Format) -> None:
    stream = io.StringIO()
    undo = logs.configure(format, "info", stream)
    logs.get_logger().error(
        HOSTILE, value=HOSTILE, nested=[HOSTILE], raw=HOSTILE.encode("utf8", "replace")
    )
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logs.get_logger().exception("it.failed")
    logging.getLogger("lib").warning(HOSTILE)
    undo()
    text = stream.getvalue()
    assert text.count("\n") == len(text.splitlines()) == 3
    assert not set(text) & set(f"\r\x1b\x9b\u2028\x7f\ud800{UNSEEN}")
    assert "forged" in text


def test_what_is_not_seen_is_still_the_same_document(stream: io.StringIO) -> None:
    logs.get_logger().info(f"a {UNSEEN} 👩‍💻")
    text = stream.getvalue()
    assert text.isprintable() or text.rstrip("\n").isprintable()
    assert records(stream)[0]["message"] == f"a {UNSEEN} 👩‍💻"


def test_an_exception_says_what_and_where(stream: io.StringIO) -> None:
    try:
        raise ValueError("bad amount")
    except ValueError:
        logs.get_logger().exception("order.failed")
    (record,) = records(stream)
    assert record["error"].startswith("ValueError: bad amount (at ")
    assert "Traceback" in record["traceback"]


def test_standard_logging_structlog_and_print_become_records_of_the_run(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    run = in_a_run()
    undo = logs.configure("json", "info", stream)  # again: pytest swaps stdout between phases
    token = logs.running.set(run)
    logging.getLogger("lib").warning("%s left", 3)
    structlog.get_logger().info("cart.filled", items=2)
    print("one\ntwo", end="")  # noqa: T201  under test
    print("", 3)  # noqa: T201  under test
    logs.running.reset(token)
    undo()
    found = [(each["message"], each["level"], each["run"]) for each in records(stream)]
    assert found == [
        ("3 left", "warning", "r1"), ("cart.filled", "info", "r1"),
        ("one", "info", "r1"), ("two 3", "info", "r1"),
    ]  # fmt: skip
    kept = run.as_bytes()
    assert kept is not None and kept.count(b"\n") == 4


def test_print_outside_a_run_is_left_alone(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sys.stdout
    undo = logs.configure("json", "info", stream)
    print("plain")  # noqa: T201  under test
    undo()
    assert sys.stdout is before
    assert stream.getvalue() == ""
    assert capsys.readouterr().out == "plain\n"


def test_fields_of_the_run_win_over_an_author_s(stream: io.StringIO) -> None:
    token = logs.running.set(in_a_run())
    logs.get_logger().info("order.charged", run="mine")
    logs.running.reset(token)
    (record,) = records(stream)
    assert (record["run"], record["run_"]) == ("r1", "mine")


@flow
async def talks() -> None:
    current().log.info("first.line", n=1)
    print("printed")  # noqa: T201  under test


@flow
def talks_in_a_thread() -> None:
    logging.getLogger("lib").info("from a thread")
    steps_talk()


@task
def steps_talk() -> None:
    print("from a step")  # noqa: T201  under test


@flow
async def floods() -> None:
    for n in range(1000):
        current().log.info("flood.line", n=n, text="x" * 100)


@flow
async def quiet() -> int:
    return 1


async def test_a_run_s_lines_are_kept_with_its_attempt(tmp_path: Path, stream: io.StringIO) -> None:
    undo = logs.configure("json", "info", stream)  # again: pytest swaps stdout between phases
    async with attempts(tmp_path) as run:
        outcome = await run.first(talks)
        assert outcome.log is not None
        kept = [orjson.loads(line) for line in outcome.log.splitlines()]
        assert [(each["message"], each["level"]) for each in kept] == [
            ("first.line", "info"),
            ("printed", "info"),
        ]
        outcome = await run.first(talks_in_a_thread, id="e2")
        assert outcome.log is not None and outcome.log.count(b"\n") == 2
        attempt = (await run.journal.attempts(run.claimed.claim.run_seq if run.claimed else 0))[0]
        assert attempt.log == outcome.log
    undo()
    last = records(stream)[-1]
    assert (last["message"], last["flow"], last["event"]) == (
        "from a step",
        "talks_in_a_thread",
        "e2",
    )


@task(pool="process")
def process_talks() -> None:
    print("from a process")  # noqa: T201  under test


@flow
async def all_talk() -> None:
    current().log.info("from.the.flow")
    await steps_talk.run()
    await steps_talk.run()
    await process_talks.run()


async def test_a_line_names_the_step_that_says_it(tmp_path: Path, stream: io.StringIO) -> None:
    undo = logs.configure("json", "info", stream)
    async with attempts(tmp_path) as run:
        outcome = await run.first(all_talk)
    undo()
    told = [None, "steps_talk#1", "steps_talk#2", "process_talks#1"]
    assert [each.get("step") for each in records(stream)] == told
    kept = [orjson.loads(line) for line in (outcome.log or b"").splitlines()]
    assert [each.get("step") for each in kept] == told


async def test_of_a_flood_the_last_lines_are_kept(tmp_path: Path, stream: io.StringIO) -> None:
    async with attempts(tmp_path) as run:
        outcome = await run.first(floods)
    assert outcome.log is not None
    lines = [orjson.loads(line) for line in outcome.log.splitlines()]
    assert len(lines) == logs.MAX_LINES + 1 and len(outcome.log) < logs.MAX_BYTES + 200
    assert (lines[0]["message"], lines[0]["dropped"]) == ("log.truncated", 800)
    assert lines[-1]["message"] == records(stream)[-1]["message"]
    assert len(records(stream)) == 1000


async def test_a_run_that_succeeds_says_nothing(tmp_path: Path, stream: io.StringIO) -> None:
    async with attempts(tmp_path) as run:
        outcome = await run.first(quiet)
    assert (outcome.state, outcome.log, stream.getvalue()) == (RunState.SUCCEEDED, None, "")


def test_a_closed_stream_stops_nobody() -> None:
    stream = io.StringIO()
    undo = logs.configure("json", "info", stream)
    stream.close()
    logs.get_logger().info("nobody.hears")
    undo()


def test_no_field_fills_the_log(stream: io.StringIO) -> None:
    long = ["x" * 5000, {"y": "y" * 5000}]
    logs.get_logger().info(
        "much", text="z" * 20_000, nested=long, raw=b"r" * 20_000, small=["kept", {"as": 1}]
    )
    [line] = records(stream)
    assert len(stream.getvalue()) < 4 * MAX_FIELD
    assert line["text"].endswith("z… (20000 characters)")
    assert line["nested"].startswith('["xxx') and line["nested"].endswith("y… (10013 characters)")
    assert line["small"] == ["kept", {"as": 1}]


def test_odd_values_are_written_somehow(stream: io.StringIO) -> None:
    class Rude:
        def __str__(self) -> str:
            raise RuntimeError("no")

    loop: list[Any] = []
    loop.append(loop)
    logs.get_logger().info("odd.values", rude=Rude(), loop=loop, big=2**70, when=AT, keys={1: 2})
    (record,) = records(stream)
    assert record["rude"] == "<Rude: RuntimeError>"
    assert record["big"] == str(2**70)
