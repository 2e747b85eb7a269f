"""Whatever a served flow writes, and however, is a line of JSON that names its run and step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import Program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

FLOWS = """
import asyncio, logging, sys, threading, traceback, warnings
import structlog
from turnout import current, flow, secret, task, webhook

PASSWORD = "correct-horse-battery"

def say(where):
    logging.getLogger("shop").info("std %s", where, extra={"rows": 3, "name_": PASSWORD})
    structlog.get_logger().info(f"structlog {where}", rows=3)
    print(f"print {where}")
    print(f"stderr {where}", file=sys.stderr)
    warnings.warn(f"warned {where} {PASSWORD}", stacklevel=1)
    current().log.info(f"own {where}", rows=3)

@task
async def on_loop():
    say("loop")
    await asyncio.to_thread(say, "to_thread")

@task
def in_thread():
    say("thread")

@task(pool="process")
def in_process():
    secret("SHOP_TOKEN").reveal()
    say("process")
    thread = threading.Thread(target=say, args=("thread of process",))
    thread.start()
    thread.join()

@flow(on=webhook("/say", respond=True))
async def says() -> None:
    secret("SHOP_TOKEN").reveal()
    await on_loop()
    await in_thread.run()
    await in_process.run()
    def broken():
        raise ValueError("no thread")
    thread = threading.Thread(target=broken, name="own")
    thread.start()
    thread.join()
    try:
        1 / 0
    except ZeroDivisionError:
        traceback.print_exc()
"""


def test_every_line_is_json_and_names_its_run(tmp_path: Path) -> None:
    (tmp_path / "flows.py").write_text(FLOWS)
    program = Program(
        flows=tmp_path / "flows.py", data=tmp_path / "data", log=tmp_path / "log",
        env={"TURNOUT_LOG_FORMAT": "json", "SHOP_TOKEN": "correct-horse-battery"},
    )  # fmt: skip
    with program.start():
        program.ready()
        answer = program.ask("/hooks/say?wait=30s", method="POST", body=b"{}", timeout=40)
        assert answer is not None and answer.status == 200, answer
        assert program.stop() == 0
    assert "correct-horse" not in program.log_text()
    lines = [json.loads(line) for line in program.log_text().splitlines()]
    for where, step in (
        ("loop", "on_loop#1"), ("to_thread", "on_loop#1"), ("thread", "in_thread#1"),
        ("process", "in_process#1"), ("thread of process", "in_process#1"),
    ):  # fmt: skip
        for source in ("std", "structlog", "print", "stderr", "warned", "own"):
            line = _the_one(lines, f"{source} {where}")
            assert (line["flow"], line["step"]) == ("says", step), line
            if source in ("std", "structlog", "own"):
                assert line["rows"] == 3, line
            if source == "warned":
                assert (line["level"], line["category"]) == ("warning", "UserWarning")
    assert _the_one(lines, "thread.failed")["error"].startswith("ValueError: no thread (at ")
    assert _the_one(lines, "ZeroDivisionError: division by zero")["flow"] == "says"


def _the_one(lines: list[dict[str, Any]], message: str) -> dict[str, Any]:
    (line,) = [each for each in lines if each["message"].removesuffix(" ********") == message]
    return line
