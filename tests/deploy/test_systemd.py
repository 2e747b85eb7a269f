"""The systemd units: judged by systemd-analyze, and run by a real systemd, set up as they say."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import CHECKOUT
from tests.support.pages import blocks
from tests.support.program import until
from tests.support.prometheus import tool
from tests.support.systemd import Systemd, systemd

pytestmark = pytest.mark.slow

DEPLOY = CHECKOUT / "deploy"
UNITS = ("turnout.service", "turnout.socket")

LEFT_OPEN = {
    "PrivateNetwork=": "it is called over the network, and flows call others",
    "RestrictAddressFamilies=~AF_(INET|INET6)": "it is called over the network",
    "IPAddressDeny=": "only its operator knows whom flows may call",
    "RestrictAddressFamilies=~AF_UNIX": "the journal of the machine, and databases beside it",
    "MemoryDenyWriteExecute=": "libraries of flows compile at run time",
    "ProcSubset=": "libraries of flows read /proc/meminfo and /proc/cpuinfo",
    "RootDirectory=/RootImage=": "Python and its libraries are those of the machine",
    "DeviceAllow=": "ProtectClock= lets the clock be read",
}
"""What `systemd-analyze security` would have closed and the unit leaves open, and why."""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, in a folder where the program they start exists."""
    for name in UNITS:
        text = (DEPLOY / name).read_text()
        # verify wants the program to exist; everything else is judged as it is written.
        (tmp_path / name).write_text(text.replace("/opt/turnout/bin/turnout", "/bin/true"))
    return tmp_path


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_unit(units: Path, name: str) -> None:
    verdict = subprocess.run(
        [tool("systemd-analyze"), "verify", units / name],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    about_us = [line for line in verdict.stderr.splitlines() if "turnout" in line]
    assert (verdict.returncode, about_us) == (0, [])


def test_what_the_service_leaves_open_is_named(units: Path) -> None:
    tool("systemd-analyze")
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--json=short",
         "--threshold=11", units / "turnout.service"],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    checks = json.loads(judged.stdout)
    assert {check["name"] for check in checks if check["set"] is False} == set(LEFT_OPEN)
    assert judged.returncode == 0, "it is more exposed than 1.1"


# ---- run by systemd

FLOW = """
import ctypes
import os
from pathlib import Path

from turnout import flow, shell, task, webhook


def answer(attempt):
    try:
        attempt()
    except OSError as error:
        return error.strerror
    return "allowed"


def make_a_namespace():
    if ctypes.CDLL(None, use_errno=True).unshare(0x20000) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@task
def attempts():
    return {
        "write the program": answer(lambda: Path("/opt/turnout/new").touch()),
        "write the settings": answer(lambda: Path("/etc/turnout/new").touch()),
        "look into homes": answer(lambda: os.listdir("/home/somebody")),
        "look into /root": answer(lambda: os.listdir("/root")),
        "become another user": answer(lambda: os.setuid(1)),
        "make a namespace": answer(make_a_namespace),
        "see other processes": answer(lambda: os.stat("/proc/1")),
        "write its own folder": answer(lambda: Path("own").touch()),
        "write /tmp": answer(lambda: Path("/tmp/own").touch()),
    }


@task(pool="process")
def square(number):
    return number * number


@flow(on=webhook("/probe", verify="none", respond=True))
async def probe(data: dict):
    said = await shell(["echo", "hello"])
    saved = await shell("/opt/turnout/bin/turnout backup --data data --to backups", shell=True)
    squared = await square.run(data["number"])
    made = {"said": said.stdout, "saved": saved.exit_code, "square": squared}
    return {**made, "tried": await attempts.run()}
"""


@pytest.fixture
def machine(installed: Path, tmp_path: Path) -> Iterator[Systemd]:
    """A machine set up as `deploy/README.md` says, on which nothing is started yet."""
    files = tmp_path / "files"
    checkout = files / "srv/turnout"
    (checkout / "deploy").mkdir(parents=True)
    (checkout / "flows.py").write_text(FLOW)
    for name in UNITS:
        shutil.copy(DEPLOY / name, checkout / "deploy")
    (files / "home/somebody").mkdir(parents=True)
    shutil.copytree(installed / "venv", files / "opt/turnout", symlinks=True)
    for script in (files / "opt/turnout/bin").iterdir():
        if not script.is_symlink():
            script.write_text(script.read_text().replace(str(installed / "venv"), "/opt/turnout"))
    with systemd(files) as running:
        type_in(running, *page_commands()[:-1])
        yield running


def page_commands() -> list[str]:
    """Return the commands that set it up; the last one starts it."""
    pages = blocks((DEPLOY / "README.md").read_text())
    (page,) = [block.text for block in pages if "useradd" in block.text]
    return page.strip().splitlines()


def type_in(machine: Systemd, *lines: str) -> None:
    done = machine.run("sh", "-euc", "\n".join(["cd /srv/turnout", *lines]))
    assert done.returncode == 0, done.stderr


def send(machine: Systemd) -> dict[str, object]:
    """Send an event once the service answers; returns what its run came to."""
    url = "http://127.0.0.1:8080"
    until(
        lambda: machine.run("curl", "--silent", "--fail", f"{url}/readyz").returncode == 0,
        30, "a service that is ready",
    )  # fmt: skip
    sent = machine.run(
        "curl", "--silent", "--show-error", "--fail-with-body", "--json", '{"number": 7}',
        f"{url}/hooks/probe?wait=30s", timeout=40,
    )  # fmt: skip
    assert sent.returncode == 0, sent.stdout + sent.stderr + machine.log()
    answer: dict[str, object] = json.loads(sent.stdout)
    return answer


@pytest.mark.full
@pytest.mark.timeout(180)
def test_service_works_in_its_sandbox_and_is_started_again(machine: Systemd) -> None:
    type_in(machine, page_commands()[-1])
    result = send(machine)
    assert (result["said"], result["square"], result["saved"]) == ("hello\n", 49, 0)
    assert result["tried"] == {
        "write the program": "Read-only file system",
        "write the settings": "Read-only file system",
        "look into homes": "Permission denied",
        "look into /root": "Permission denied",
        "become another user": "Operation not permitted",
        "make a namespace": "Operation not permitted",
        "see other processes": "No such file or directory",
        "write its own folder": "allowed",
        "write /tmp": "allowed",
    }

    machine.systemctl("reload", "turnout.service")
    machine.systemctl("kill", "--signal=KILL", "turnout.service")
    assert send(machine)["square"] == 49
    assert machine.show("turnout.service", "NRestarts") == "1"

    machine.systemctl("stop", "turnout.service")
    assert machine.show("turnout.service", "Result") == "success"

    (machine.root / "etc/turnout/flows/flows.py").write_text("this is no flow file")
    machine.systemctl("start", "turnout.service")
    until(
        lambda: machine.show("turnout.service", "ActiveState") == "failed",
        20, "a service that is not started again: somebody has to act",
    )  # fmt: skip
    assert machine.show("turnout.service", "ExecMainStatus") == "78"


TICKS = (
    FLOW
    + """
from turnout import every

@flow(on=every("20s"))
async def tick(): ...
"""
)


@pytest.mark.full
@pytest.mark.timeout(180)
def test_service_that_is_idle_goes_and_comes_for_a_request_and_a_tick(machine: Systemd) -> None:
    etc = machine.root / "etc"
    shutil.copytree(DEPLOY / "turnout.service.d", etc / "systemd/system/turnout.service.d")
    (etc / "turnout/flows/flows.py").write_text(TICKS)
    (etc / "turnout/turnout.env").write_text("TURNOUT_IDLE_EXIT=2s\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "turnout.socket")

    def state() -> str:
        return machine.show("turnout.service", "ActiveState")

    assert state() == "inactive"
    assert send(machine)["square"] == 49
    until(lambda: state() == "inactive", 40, "an idle service gone")
    assert machine.show("turnout.service", "Result") == "success"
    assert machine.show("turnout-wake.timer", "ActiveState") == "active"
    started = machine.log().count("service.started")
    until(lambda: machine.log().count("service.started") > started, 40, "started for the tick")
    until(lambda: state() == "inactive", 40, "an idle service gone again")
    runs = machine.run(
        "/opt/turnout/bin/turnout", "runs", "--flow", "tick", "--json",
        "--data", "/var/lib/turnout/data",
    )  # fmt: skip
    assert '"succeeded"' in runs.stdout, runs

    assert send(machine)["square"] == 49
    machine.systemctl("stop", "turnout.socket", "turnout.service")
    assert machine.show("turnout-wake.timer", "ActiveState") == "inactive", "it was stopped"
    assert state() == "inactive"
