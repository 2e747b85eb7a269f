"""The whole program takes new flow files while it serves, or says why not and serves on."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import Program, environment, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

HELPER = "WORD = 'old'\n"
FLOWS = """
from pathlib import Path
from typing import Annotated

from helper_of_flows import WORD
from turnout import flow, resource, secret, webhook

@resource
def opened():
    if not Path(__file__).with_name("opens").exists():
        raise OSError("no route")
    return "it"

@flow(on=webhook("/word", respond=True), pool="process")
def word() -> str:
    return WORD
"""
OPENS = """
@flow(on=webhook("/more", respond=True))
def more(thing: Annotated[str, opened]) -> str:
    return thing
"""
SIGNED = """
@flow(on=webhook("/signed", verify="github", secret=secret("NO_SUCH_SECRET_HERE")))
def signed() -> None: ...
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    folder = tmp_path / "flows"
    folder.mkdir()
    (folder / "helper_of_flows.py").write_text(HELPER)
    (folder / "flows.py").write_text(FLOWS)
    program = Program(flows=folder / "flows.py", data=tmp_path / "data", log=tmp_path / "log")
    with program.start():
        program.ready()
        yield program


def ask(program: Program, path: str) -> Any:
    answer = program.ask(f"/hooks{path}?wait=20s", method="POST", timeout=30)
    assert answer is not None
    return answer.status, json.loads(answer.body)


def reload(program: Program, text: str, outcome: str) -> str:
    program.flows.write_text(text)
    before = program.log_text().count('"reload.')
    program.signal(signal.SIGHUP)
    until(lambda: program.log_text().count('"reload.') > before, 20, "a word on the reload")
    (line,) = [line for line in program.log_text().splitlines() if '"reload.' in line][before:]
    assert f'"reload.{outcome}"' in line
    return line


def test_sighup_brings_new_code_of_every_kind(program: Program) -> None:
    assert ask(program, "/word") == (200, "old")  # in a worker, which goes on living
    program.flows.with_name("helper_of_flows.py").write_text("WORD = 'new'\n")
    program.flows.with_name("opens").touch()
    assert ask(program, "/more")[0] == 404
    reload(program, FLOWS + OPENS, "done")
    assert ask(program, "/word") == (200, "new")
    assert ask(program, "/more") == (200, "it")
    assert program.stop() == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (FLOWS + OPENS, "resource 'opened' did not start: OSError: no route"),
        (FLOWS + SIGNED, "NO_SUCH_SECRET_HERE"),
        (FLOWS + "def f(:\n", "syntax error"),
        (FLOWS.replace("/word", "/words") + "\nword.nothing()\n", "AttributeError"),
    ],
)
def test_a_reload_that_cannot_be_changes_nothing(program: Program, text: str, reason: str) -> None:
    assert reason in reload(program, text, "failed")
    assert ask(program, "/word") == (200, "old")
    assert ask(program, "/more")[0] == ask(program, "/words")[0] == 503  # the new files may have it
    ready = program.ask("/readyz")
    assert ready is not None and ready.status == 200
    assert reason in ready.json["warnings"][0]
    reload(program, FLOWS, "done")
    assert ask(program, "/words")[0] == 404
    ready = program.ask("/readyz")
    assert ready is not None and ready.json["warnings"] == []
    assert program.metrics("turnout_trigger_up") == {'trigger="webhook:/word"': 1.0}
    assert program.stop() == 0


WANDERS = """
import os
from turnout import flow, webhook

@flow(on=webhook("/wander", respond=True))
def wander() -> str:
    os.chdir("/")
    return os.getcwd()
"""


def test_a_flow_that_goes_elsewhere_takes_nothing_along(tmp_path: Path) -> None:
    (tmp_path / "flows.py").write_text(WANDERS)
    child = subprocess.Popen(
        [sys.executable, "-m", "turnout.service.cli", "serve", "flows.py", "--port", "0"],
        env=environment({}), cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stderr is not None
        started = json.loads(child.stderr.readline())
        port = int(started["url"].rpartition(":")[2])
        data = tmp_path / "turnout-data"
        assert started["data"] == str(data)
        program = Program(flows=tmp_path, data=data, log=tmp_path / "log", port=port)
        assert ask(program, "/wander") == (200, "/")
        for _ in range(10):  # every reading thread opens the journal anew
            assert len(program.api("/runs")["items"]) == 1
        child.send_signal(signal.SIGHUP)
        assert any('"reload.done"' in line for line in child.stderr)
        child.terminate()
        assert child.wait(15) == 0
    finally:
        child.kill()
        child.wait(10)
        if child.stderr is not None:
            child.stderr.close()


def test_a_program_without_standard_streams_serves(tmp_path: Path) -> None:
    (tmp_path / "flows.py").write_text(FLOWS)
    (tmp_path / "helper_of_flows.py").write_text(HELPER)
    program = Program(flows=tmp_path / "flows.py", data=tmp_path / "data", log=tmp_path / "log")
    command = [sys.executable, "-m", "turnout.service.cli", "serve", str(program.flows)]
    command += ["--data", str(program.data), "--port", str(program.port)]
    closed = f"exec {shlex.join(command)} <&- >&- 2>&-"
    child = subprocess.Popen(["/bin/sh", "-c", closed], env=environment({}))
    try:
        until(lambda: program.ask("/readyz") is not None, 20, "an answer")
        assert ask(program, "/word") == (200, "old")
        child.terminate()
        assert child.wait(15) == 0
    finally:
        child.kill()
        child.wait(10)
    program.check_journal()


SLOW = """
import asyncio
from typing import Annotated
from turnout import flow, resource, webhook

@resource
async def slow():
    print("slow begins", flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        print("slow ends", flush=True)
    yield "it"

@flow(on=webhook("/slow"))
def slow_flow(it: Annotated[str, slow]) -> str:
    return it
"""


def test_a_start_that_takes_for_ever_is_stopped(tmp_path: Path) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text(SLOW)
    program = Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log")
    with program.start():
        program.said("slow begins", 20)
        assert program.stop() == 0
        program.said("slow ends", 1)
        program.said("service.stopped", 1)


def test_a_reload_that_takes_for_ever_is_stopped(program: Program) -> None:
    program.flows.write_text(SLOW)
    program.signal(signal.SIGHUP)
    program.said("slow begins", 20)
    assert program.stop() == 0
    program.said("slow ends", 1)


def test_a_program_that_loses_its_terminal_stops(tmp_path: Path) -> None:
    (tmp_path / "flows.py").write_text(FLOWS)
    (tmp_path / "helper_of_flows.py").write_text(HELPER)
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "turnout.service.cli", "serve", tmp_path / "flows.py",
         "--port", "0", "--data", tmp_path / "data"],
        env=environment({}), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    try:
        os.close(theirs)
        said = b""
        while b"service.started" not in said:
            said += os.read(ours, 4096)
        child.send_signal(signal.SIGHUP)
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait(10)
        os.close(ours)
