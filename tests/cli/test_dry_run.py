"""`turnout run --dry-run`: what reads is done, and what would change something is printed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import orjson
import pytest

from tests.support.program import turnout
from turnout.service.app.run_input import of_data
from turnout.service.app.run_once import run_once
from turnout.service.cli.person import Terminal
from turnout.service.domain.errors import SetupError
from turnout.service.domain.run import Run
from turnout.service.settings import load
from turnout.service.steps.dry_run import DryRun

FLOWS = """
    from turnout import (
        Pending, approval, budget, current, emit, event, first, flow, gather, poll, shell, sleep,
        task, wait_for,
    )

    paid = event("order.paid")

    def change() -> None:
        raise AssertionError("something was changed")

    @task(reads=True)
    async def replicas(service: str) -> int:
        return 3

    @task(reads=True)
    def ready(job: str) -> str | Pending:
        return "ready" if job == "old" else Pending()

    @task
    async def scale(service: str, to: int) -> str:
        change()

    @task
    def note(text: str) -> None:
        change()

    @task(undo=note, retry=3)
    async def undone(text: str) -> int:
        change()

    @flow
    async def child(x: str) -> str:
        change()

    def hook(error) -> None:
        change()

    @flow(awaits=paid)
    async def everything(service: str) -> str:
        now = await replicas(service)
        await budget("scale", max_changes=3, per="1h").take()
        made = await scale(service, now + 1)
        await note.run(f"scaled: {made}")
        await undone("x")
        await sleep("3h")
        await wait_for(paid)
        await child(made)
        await emit("scaled", {"by": 1})
        assert await poll(ready, "old") == "ready"
        await poll(ready, "new")
        await gather(scale("a", 1), *[scale(each, 2) for each in "bc"])
        await note.map(["x", "y"])
        await replicas(made)
        return made

    @flow(on_failure=hook, retry=3)
    async def goes_on_by_it(service: str) -> str:
        current().on_undo(note, "undo")
        if await scale(service, 1) == "ok":
            await scale(service, 2)

    @flow(awaits=paid)
    async def whichever(service: str) -> str:
        await scale(service, 1)
        await first(wait_for(paid), sleep("1h"))

    @flow
    async def asks(service: str) -> str:
        try:
            said = await approval("ops")
            return said.by
        except Exception:
            return "caught"

    @flow(on_failure=hook, retry=3)
    async def fails(service: str) -> None:
        await undone("x")
        raise OSError("no route")

    @flow
    async def fails_at_once(service: str) -> None:
        raise OSError("no route")

    @flow
    def plain(service: str) -> str:
        note("plain")
        return ready("old")

    @flow(pool="process")
    def far(service: str) -> None: ...

    @flow
    async def commands(service: str) -> str:
        listed = await shell(["echo", service], reads=True)
        await shell(["touch", "changed", listed.stdout.strip()])
        made = await scale(service, 1)
        await shell(["ls", made], reads=True)
        await shell(f"ls {made}", shell=True)
        await shell(["ls"], stdin=made, reads=True)
        await shell(["ls"], env={"A": made}, reads=True)
        await shell(["ls"], cwd=made, reads=True)
        await shell(made)
        return listed.stdout

    @flow
    async def nothing(service: str) -> int:
        return await replicas(service)
"""


@pytest.fixture
def flows(tmp_path: Path) -> Path:
    path = tmp_path / "flows.py"
    path.write_text(dedent(FLOWS).lstrip())
    return path


def dry(flows: Path, name: str) -> tuple[DryRun, Run]:
    noted = DryRun()

    async def given() -> Any:
        return of_data(orjson.dumps("web"))

    settings = load(None, data=flows.parent / "data")
    return noted, asyncio.run(run_once(settings, flows, name, given, Terminal(), dry_run=noted))


def listed(noted: DryRun) -> list[tuple[str, str]]:
    return [(each.kind, each.words) for each in noted.steps.values()]


def test_what_reads_is_done_and_everything_else_is_listed_in_order(flows: Path) -> None:
    noted, run = dry(flows, "everything")
    assert run.error is None and noted.ended is None
    assert listed(noted) == [
        ("take", "1 of the 3 of budget 'scale'"),
        ("call", "scale('web', 4)"),
        ("call", "note('scaled: <scale#1>')"),
        ("call", "undone('x')"),
        ("wait", "sleep('3h')"),
        ("wait", "wait_for('event:order.paid', None)"),
        ("start", "child(<scale#1>)"),
        ("emit", "emit('scaled')"),
        ("wait", "poll('ready', 'new')"),
        ("call", "scale('a', 1)"),
        ("call", "scale('b', 2)"),
        ("call", "scale('c', 2)"),
        ("call", "note('x')"),
        ("call", "note('y')"),
        ("read", "replicas(<scale#1>), but <scale#1> is not known"),
    ]
    assert repr(noted.returned) == "<scale#1>"


def test_a_command_that_reads_runs_and_any_other_is_listed(
    flows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    noted, run = dry(flows, "commands")
    assert run.error is None and noted.ended is None, run.error
    assert listed(noted) == [
        ("call", "shell('touch', 'changed', 'web', Command(…))"),
        ("call", "scale('web', 1)"),
        ("read", "shell('ls', <scale#1>, Command(…)), but <scale#1> is not known"),
        ("call", "shell('/bin/sh', '-c', 'ls <scale#1>', Command(…))"),
        *[("read", "shell('ls', Command(…)), but <scale#1> is not known")] * 3,
        ("call", "shell(<scale#1>, Command(…))"),
    ]
    assert noted.returned == "web\n"
    assert not (tmp_path / "changed").exists()


@pytest.mark.parametrize(("flow", "ends", "steps"), [
    ("goes_on_by_it", "the flow goes on by what scale#1 returns (", ["scale#1"]),
    ("whichever", "the flow goes on by which wait comes first (", ["scale#1"]),
    ("asks", "the flow goes on by what approval#1 returns (", ["approval#1"]),
])  # fmt: skip
def test_it_ends_where_the_flow_goes_on_by_what_is_not_known(
    flows: Path, flow: str, ends: str, steps: list[str]
) -> None:
    noted, _ = dry(flows, flow)
    assert noted.ended is not None and noted.ended.startswith(f"{ends}{flows}:")
    assert list(noted.steps) == steps


def test_an_error_of_the_flow_is_told_and_nothing_is_undone(flows: Path) -> None:
    noted, run = dry(flows, "fails")
    assert run.error is not None
    assert (run.error.type, run.error.message) == ("OSError", "no route")
    assert listed(noted) == [("call", "undone('x')")]
    assert run.attempts == 1


def test_a_plain_flow_runs_dry_and_one_of_a_worker_process_does_not(flows: Path) -> None:
    noted, _ = dry(flows, "plain")
    assert (listed(noted), noted.returned) == ([("call", "note('plain')")], "ready")
    with pytest.raises(SetupError, match="there is nothing to leave out in a dry run"):
        dry(flows, "far")


@pytest.mark.slow
def test_the_command_prints_it(flows: Path) -> None:
    done = turnout("run", f"{flows}:goes_on_by_it", "--input", '"web"', "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "call   scale('web', 1)  scale#1" in done.stdout
    assert "stopped here: the flow goes on by what scale#1 returns" in done.stdout
    done = turnout("run", f"{flows}:fails", "--input", '"web"', "--dry-run", "--json")
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert told["would"] == [{"step": "undone#1", "kind": "call", "words": "undone('x')"}]
    assert (told["error"]["type"], told["ended"], told["returned"]) == ("OSError", None, None)
    done = turnout("run", f"{flows}:fails_at_once", "--input", '"web"', "--dry-run")
    assert (done.returncode, done.stdout) == (1, ""), "who fails may change something later"
    done = turnout("run", f"{flows}:nothing", "--input", '"web"', "--dry-run")
    assert done.stdout == "nothing would change\n\nit returns 3\n"
