"""What leaves a service by its standard streams: masked, whoever writes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.inside import forget_secrets
from tests.support.program import Program, environment, turnout, until
from turnout.service.governance import secrets

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

VALUE = "supersecretvalue1"

FLOWS = """
import asyncio, os, subprocess, sys, threading, warnings
from turnout import flow, secret, task, webhook

def tell(who):
    value = secret("TOKEN").reveal()
    sys.stderr.write(f"{who} stderr {value}\\n")
    warnings.warn(f"{who} warning {value}")
    os.write(2, f"{who} raw {value}\\n".encode())
    subprocess.run(["sh", "-c", f"echo {who} child $TOKEN >&2; echo {who} output $TOKEN"])
    halves = f"printf '{who} halves supersec' >&2; sleep 0.05; echo retvalue1 >&2"
    subprocess.run(["sh", "-c", f"{halves}; printf x$TOKEN | base64 >&2"])
    thread = threading.Thread(target=fail, args=(f"{who} thread {value}",))
    thread.start()
    thread.join()

def fail(text):
    raise ValueError(text)

@task(pool="process")
def tells_in_a_process():
    tell("process")

@task
def tells_in_a_thread():
    tell("thread")

@flow(on=webhook("/tell"))
async def tells(data: dict) -> str:
    await tells_in_a_process.run()
    await tells_in_a_thread.run()
    child = await asyncio.create_subprocess_exec("sh", "-c", "echo loop child $TOKEN >&2")
    await child.wait()
    return "done"
"""

SAID = [
    f"{who} {what} {secrets.MASK}"
    for who in ("process", "thread")
    for what in ("stderr", "warning", "raw", "child", "output", "halves", "thread")
] + [f"loop child {secrets.MASK}"]


@pytest.fixture
def flows(tmp_path: Path) -> Path:
    file = tmp_path / "flows.py"
    file.write_text(FLOWS)
    return file


@pytest.fixture
def program(flows: Path, tmp_path: Path) -> Iterator[Program]:
    env = {"TOKEN": VALUE}
    with Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log", env=env) as program:
        yield program


def missing(program: Program) -> list[str]:
    text = program.log_text()
    return [line for line in SAID if line not in text]


def test_nothing_a_served_flow_or_its_children_write_shows_a_secret(program: Program) -> None:
    program.start().ready()
    answer = program.ask("/hooks/tell", method="POST", body=b"{}")
    assert answer is not None and answer.status == 202
    program.quiet(30)
    try:
        until(lambda: not missing(program), 10, "all that was said")
    except AssertionError:
        raise AssertionError(f"{missing(program)} not in {program.log_text()}") from None
    assert program.stop() == 0
    assert VALUE not in program.log_text()
    assert "service.stopped" in program.log_text()


IN_PARTS = """
import asyncio, os, sys
from turnout import current, flow, secret, webhook

@flow(on=webhook("/parts"))
async def parts(data: dict) -> None:
    secret("TOKEN").reveal()
    for number in range(20):
        os.write(2, f"stderr {number} of ".encode())
        os.write(1, f"stdout {number} of ".encode())
        await asyncio.sleep(0.01)  # the beginnings have been read from the pipes
        current().log.info("flow.between", number=number)
        os.write(1, b"20\\n")
        os.write(2, b"20\\n")
    os.write(2, b"waits without end")
"""


def test_a_line_written_in_parts_is_not_broken_by_another_writer(
    flows: Path, program: Program
) -> None:
    flows.write_text(IN_PARTS)
    program.start().ready()
    program.post("parts", {})
    program.said("waits without end", 10)
    program.said("stderr 19 of 20", 10)
    program.said("stdout 19 of 20", 10)
    lines = program.log_text().splitlines()
    for number in range(20):
        for stream in ("stderr", "stdout"):
            assert f"{stream} {number} of 20" in lines
    assert sum("flow.between" in line and line.startswith("{") for line in lines) == 20


def test_what_is_held_back_is_written_at_the_end_though_a_child_lives_on(
    flows: Path, tmp_path: Path
) -> None:
    flows.write_text(
        "import os, subprocess\nfrom turnout import flow, secret\n\n"
        "@flow\ndef last() -> None:\n"
        "    secret('TOKEN').reveal()\n"
        "    subprocess.Popen(['sleep', '60'], stdin=subprocess.DEVNULL)\n"
        "    os.write(2, b'the last words')\n"
    )
    with (tmp_path / "err").open("wb") as err:
        done = subprocess.Popen(
            [sys.executable, "-m", "turnout.service.cli", "run", f"{flows}:last"],
            env=environment({"TOKEN": VALUE}), stdout=err, stderr=err, start_new_session=True,
        )  # fmt: skip
        try:
            assert done.wait(60) == 0, (tmp_path / "err").read_text()
        finally:
            os.killpg(done.pid, signal.SIGKILL)
    assert "the last words" in (tmp_path / "err").read_text()


def test_nor_does_a_run_in_the_foreground(flows: Path) -> None:
    done = turnout("run", f"{flows}:tells", env={"TOKEN": VALUE})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '"done"'
    text = done.stdout + done.stderr
    assert VALUE not in text
    assert all(line in text for line in SAID)


@pytest.mark.parametrize("command", [["check"], ["check", "--json"], ["serve", "--port=0"]])
def test_a_file_that_fails_with_a_secret_as_it_is_loaded_shows_none(
    tmp_path: Path, command: list[str]
) -> None:
    file = tmp_path / "flows.py"
    file.write_text(
        "from turnout import secret\nvalue = secret('TOKEN').reveal()\nprint('loads', value)\n"
        "raise RuntimeError('fails ' + value)\n"
    )
    where = ["--data", str(tmp_path / "data")] if command[0] == "serve" else []
    done = turnout(*command, file, *where, env={"TOKEN": VALUE})
    assert done.returncode != 0
    assert f"fails {secrets.MASK}" in done.stdout + done.stderr
    assert VALUE not in done.stdout + done.stderr


def test_output_into_a_file_is_whole(flows: Path, tmp_path: Path) -> None:

    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        code = subprocess.run(
            [sys.executable, "-m", "turnout.service.cli", "run", f"{flows}:tells"],
            env=environment({"TOKEN": VALUE}), stdout=out, stderr=err, check=False, timeout=60,
        ).returncode  # fmt: skip
    assert code == 0, (tmp_path / "err").read_text()
    assert (tmp_path / "out").read_text().splitlines()[-1] == '"done"'


def test_what_may_be_the_beginning_of_a_value_is_held_until_it_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forget_secrets(monkeypatch)
    secrets.remember({VALUE: "TOKEN"})
    text = f"a {VALUE} supersecret b super{VALUE}\nsuper".encode()
    for size in (1, 2, 5, 7, 100):
        held, seen = b"", b""
        for start in range(0, len(text), size):
            masked, held = secrets.mask_bytes(held + text[start : start + size])
            seen += masked
        assert seen + held == f"a {secrets.MASK} supersecret b super{secrets.MASK}\nsuper".encode()
