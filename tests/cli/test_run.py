"""`turnout run`: a file, an event or an earlier run as input; what it waits for; a debugger."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.program import Program, environment, turnout, until

pytestmark = pytest.mark.slow

FLOWS = """
    import time
    from pathlib import Path
    from pydantic import BaseModel
    from turnout import approval, event, flow, sleep, task, wait_for

    class Budget(BaseModel):
        euros: int

    placed = event("order.placed")

    @flow
    def load(path: Path) -> str:
        return path.read_text()

    @flow(on=placed)
    def bill(data: dict) -> int:
        return data["amount"]

    @flow
    async def nap() -> str:
        await sleep("3h")
        return "slept"

    @flow
    async def blocks() -> str:
        time.sleep(2.5)
        return "went on"

    @flow
    async def asks() -> int:
        return (await approval("ops", fields=Budget)).fields.euros

    @flow
    async def agreed() -> str:
        return (await approval("ops", text="Does it go on?", data={"amount": 3})).by

    @flow(awaits=[placed])
    async def waits() -> None:
        await wait_for(placed)

    @task
    def price(tries: str) -> int:
        with open(tries, "a") as file:
            file.write("price ")
        return 3

    @task
    def charge(tries: str, net: int) -> int:
        with open(tries, "a") as file:
            file.write("charge ")
        raise ValueError(f"declined {net}")

    @flow(on=event("go"))
    async def order(data: dict) -> int:
        net = await price.run(data["tries"])
        return await charge.run(data["tries"], net)
"""


@pytest.fixture
def flows(tmp_path: Path) -> Path:
    path = tmp_path / "flows.py"
    path.write_text(dedent(FLOWS).lstrip())
    return path


def test_a_file_is_handed_over_as_a_trigger_of_files_does(flows: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b")
    done = turnout("run", f"{flows}:load", "--file", tmp_path / "a.csv")
    assert (done.returncode, done.stdout) == (0, '"a,b"\n'), done.stderr


def test_an_event_is_read_from_a_file(flows: Path, tmp_path: Path) -> None:
    event = {"specversion": "1.0", "id": "7", "source": "/shop", "type": "order.placed"}
    (tmp_path / "event.json").write_text(json.dumps(event | {"data": {"amount": 3}}))
    done = turnout("run", f"{flows}:bill", "--event", tmp_path / "event.json")
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    (tmp_path / "event.json").write_text("{}")
    done = turnout("run", f"{flows}:bill", "--event", tmp_path / "event.json")
    assert done.returncode == 2 and "--event: " in done.stderr


def test_code_that_blocks_the_loop_is_named(flows: Path) -> None:
    done = turnout("run", f"{flows}:blocks")
    assert (done.returncode, done.stdout) == (0, '"went on"\n')
    [line] = [json.loads(line) for line in done.stderr.splitlines() if "loop.blocked" in line]
    assert (line["flow"], line["code"]) == ("blocks", "time.sleep(2.5)")


def test_it_says_what_it_waits_for_and_skips_it(flows: Path) -> None:
    done = turnout("run", f"{flows}:nap", "--skip-waits")
    assert (done.returncode, done.stdout) == (0, '"slept"\n'), done.stderr
    assert done.stderr.startswith("it waits for its time, until ")
    done = turnout("run", f"{flows}:agreed", "--skip-waits")
    assert (done.returncode, done.stdout) == (0, '"--skip-waits"\n'), done.stderr


@pytest.mark.parametrize(
    ("flow", "why"),
    [
        ("asks", "nobody can answer the approval of ops: there is no terminal"),
        ("waits", "and no running flow can send it"),
    ],
)
def test_what_never_comes_ends_it(flows: Path, flow: str, why: str) -> None:
    done = turnout("run", f"{flows}:{flow}")
    assert done.returncode == 1
    assert why in done.stderr


def test_an_approval_is_answered_at_the_terminal(flows: Path) -> None:
    code, printed = on_a_terminal(
        ["run", f"{flows}:asks"],
        [("approve ops?", "y"), ("Budget", '{"euros": "x"}'), ("valid integer", None),
         ("approve ops?", "y"), ("Budget", '{"euros": 5}')],
    )  # fmt: skip
    assert code == 0 and printed.splitlines()[-1] == "5", printed
    code, printed = on_a_terminal(
        ["run", f"{flows}:agreed"],
        [("Does it go on?", None), ("amount: 3", None), ("approve ops?", "n"),
         ("reason", "too dear")],
    )  # fmt: skip
    assert code == 1 and "ops said no: too dear" in printed
    code, printed = on_a_terminal(["run", f"{flows}:agreed"], [("approve ops?", "\x04")])
    assert code == 130 and printed.splitlines()[-1].endswith("stopped"), printed


def test_an_earlier_run_goes_on_behind_its_recorded_steps(flows: Path, tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    with Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log").start() as program:
        program.ready()
        sent = turnout(
            "emit", "--type", "go", "--input", json.dumps({"tries": str(tries)}), "--json",
            "--data", program.data,
        )  # fmt: skip
        [run_id] = json.loads(sent.stdout)["runs"]
        until(lambda: "charge" in (tries.read_text() if tries.exists() else ""), 10, "it failed")
    again = ("run", f"{flows}:order", "--from-run", run_id[-8:], "--data", str(tmp_path / "data"))
    until(lambda: turnout(*again).returncode == 1 or None, 20, "the failure is in the journal")
    assert tries.read_text() == "price charge charge "
    flows.write_text(flows.read_text().replace('raise ValueError(f"declined {net}")', "return net"))
    done = turnout(*again)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert tries.read_text() == "price charge charge charge "
    done = turnout("run", f"{flows}:bill", *again[2:])
    assert done.returncode == 1 and "is one of flow 'order', not of 'bill'" in done.stderr


def test_pdb_stands_at_the_line_that_raised(flows: Path, tmp_path: Path) -> None:
    data = json.dumps({"tries": str(tmp_path / "tries")})
    code, printed = on_a_terminal(
        ["run", f"{flows}:order", "--pdb", "--input", data], [("(Pdb)", "p net + 39"), ("42", "q")]
    )
    assert code == 1
    assert f"> {flows}(" in printed and "charge()" in printed


def on_a_terminal(words: list[str], talk: list[tuple[str, str | None]]) -> tuple[int, str]:
    """Run the program on a terminal and answer what it asks; returns its code and its output."""
    ours, its = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "turnout.service.cli", *words],
        stdin=its, stdout=its, stderr=its, env=environment({}), start_new_session=True,
    ) as program:  # fmt: skip
        os.close(its)
        try:
            taken = _talk(ours, talk)
            code = program.wait(15)
        finally:
            program.kill()  # or a test that has failed would wait for it
    os.close(ours)
    return code, taken


def _talk(ours: int, talk: list[tuple[str, str | None]]) -> str:
    """Answer what the program asks, until it ends; returns its output."""
    taken, seen = "", 0
    for asked, answer in talk:
        # The blank behind a question comes once the terminal is set up to read: what is typed
        # before may be lost.
        while asked not in taken[seen:] or (answer is not None and not taken.endswith(" ")):
            taken += os.read(ours, 65_536).decode()
        seen = taken.index(asked, seen) + len(asked)
        if answer is not None:
            os.write(ours, f"{answer}\n".encode())
    while True:
        try:
            taken += os.read(ours, 65_536).decode()
        except OSError:  # its end is closed
            return taken
