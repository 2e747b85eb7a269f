"""Every command that changes something says with `--dry-run` what it would do, and does nothing.

All commands are walked: a new one either only reads, and stands in `READS`, or has an example here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import apsw
import click
import pytest
from click.testing import CliRunner, Result

from tests.support.program import Program, until
from turnout.service.cli import cli

pytestmark = pytest.mark.slow

READS = {
    "alerts", "approvals", "artefact", "backtest", "check", "dead list", "dead show", "doctor",
    "events", "explain", "flows", "graph", "help", "limits", "logs", "next", "pending list",
    "pending show",
    "runs", "show", "state list", "state show", "triggers", "why",
}  # fmt: skip
"""What changes nothing."""

BY_THEMSELVES = {"backup", "new", "restore", "run", "serve", "upgrade"}
"""They change no journal: a new file or folder, a temporary journal (`run --dry-run` is another
thing). `restore` moves aside what is there, and `--check` is its dry run; that of `upgrade` is
`--plan`."""

ASKS = {"cache clear", "pending drop", "resume", "state clear", "trigger seek"}
"""What ends or deletes something that cannot be had again asks first."""

ONLY_SERVED = {"approve", "emit", "fire", "pending fire"}

FLOWS = """
    from turnout import approval, by_input, cron, current, debounce, event, flow, limit, task

    @task(cache=by_input(ttl="1h"))
    def look() -> int:
        return 1

    @flow(on=event("polled"), concurrency=limit(1))
    async def poll() -> None:
        current().state.set(await look.run())

    @flow(on=event("shipped"), retry=0)
    def ship() -> None:
        raise ValueError("no such street")

    @flow(on=event("asked"))
    async def asked() -> None:
        await approval("ops")

    @flow(on=event("billed"), concurrency=limit(2), expect_every="1s")
    def bill() -> None: ...

    @flow(on=debounce(event("saved"), "1h", per=lambda event: event.data["page"]))
    def index() -> None: ...

    @flow(on=cron("0 9 * * *", name="daily"))
    def report() -> None: ...
"""


def leaves(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command that can be typed, with its whole name."""
    for name, command in group.commands.items():
        if not isinstance(command, click.Group):
            yield prefix + name, command
            continue
        if command.invoke_without_command:
            yield prefix + name, command
        yield from leaves(command, f"{prefix}{name} ")


def options(command: click.Command) -> set[str]:
    return {word for option in command.params for word in option.opts}


def with_dry_run() -> set[str]:
    """Return the commands that change a journal, and say so with `--dry-run` only."""
    found = {name for name, command in leaves(cli) if "--dry-run" in options(command)}
    return found - BY_THEMSELVES


class Desk:
    """An operator at a program that has something of everything, and the journal it writes."""

    def __init__(self, program: Program) -> None:
        self.program = program
        for kind in ("polled", "shipped", "shipped", "shipped", "asked", "asked"):
            self.emit(kind)
        self.emit("saved", page="a")
        self.emit("saved", page="b")
        until(lambda: len(self.ids("runs", "--state", "failed")) == 3, 20, "three failed runs")
        until(lambda: len(self.ids("runs", "--state", "waiting")) == 2, 20, "two runs that wait")
        until(lambda: self.lines("state"), 20, "a state")
        until(lambda: self.lines("alerts"), 20, "an alert")
        self.type("pause", "bill")
        self.emit("billed")
        self.type("limits", "set", "poll", "2", "--for", "1h")

    def type(self, *words: str) -> Result:
        return CliRunner().invoke(cli, [*words, "--data", str(self.program.data)])

    def lines(self, *words: str) -> list[Any]:
        done = self.type(*words, "--json")
        assert done.exit_code == 0, (words, done.output, done.exception)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def ids(self, *words: str) -> list[str]:
        return [line["id"] for line in self.lines(*words)]

    def emit(self, kind: str, **data: str) -> None:
        self.lines("emit", "--type", kind, "--input", json.dumps(data))

    def is_quiet(self) -> bool:
        """Whether nothing runs or is about to; the runs of `bill` are paused."""
        runs = self.lines("runs", "--all")
        return not any(
            run["state"] in ("queued", "running") and run["flow"] != "bill" for run in runs
        )

    def journal(self) -> dict[str, list[Any]]:
        """Everything that is stored."""
        path = str(self.program.data / "journal" / "journal.db")
        connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
        try:
            listed = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
            tables = [str(name) for (name,) in listed]
            return {name: list(connection.execute(f"SELECT * FROM {name}")) for name in tables}
        finally:
            connection.close()

    def examples(self) -> dict[str, list[str]]:
        """Return the words of each command that changes something, which it would accept now."""
        first, second, third = self.ids("runs", "--state", "failed")
        approved, cancelled = self.ids("runs", "--state", "waiting")
        fired, dropped = self.ids("pending")
        event = self.lines("show", first)[0]["event"]["id"]
        return {
            "alerts mute": ["1"],
            "approve": [approved],
            "cache clear": [],
            "cancel": [cancelled],
            "dead drop": [first],
            "dead replay": [second],
            "emit": ["--type", "billed"],
            "fire": ["daily"],
            "limits reset": ["flow:poll"],
            "limits set": ["flow:bill", "3", "--for", "1h"],
            "pause": ["poll"],
            "pending drop": [dropped],
            "pending fire": [fired],
            "replay": [event],
            "resume": ["bill", "--discard"],
            "retry": [third],
            "state clear": ["poll"],
            "trigger seek": ["daily", "--to", "now", "--flows", str(self.program.flows)],
        }


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("changed")
    flows = folder / "flows.py"
    flows.write_text(dedent(FLOWS).lstrip())
    with Program(flows=flows, data=folder / "data", log=folder / "log").start() as program:
        program.ready()
        yield Desk(program)


def test_every_command_that_changes_something_has_a_dry_run() -> None:
    commands = dict(leaves(cli))
    changing = with_dry_run()
    assert set(commands) - changing - BY_THEMSELVES == READS
    with_yes = {name for name in changing if "--yes" in options(commands[name])}
    assert with_yes - ASKS == {"cancel", "dead drop", "dead replay", "replay", "retry"}
    for name, command in commands.items():
        assert "Exit codes: 0 done; " in str(command.epilog), name


def check(desk: Desk, name: str, words: list[str]) -> dict[str, list[Any]]:
    """Check the dry run of a command, and its question; returns the journal."""
    until(desk.is_quiet, 20, "nothing runs")
    before = desk.journal()
    asked = desk.type(*name.split(), *words, "--dry-run")
    assert asked.exit_code == 0, (name, asked.output, asked.exception)
    assert "would" in asked.output, name
    (planned, *_) = desk.lines(*name.split(), *words, "--dry-run")
    assert planned.get("dry_run") or planned["would"] == name.split()[-1]
    if name in ASKS:
        done = desk.type(*name.split(), *words)
        assert done.exit_code == 2 and "Add --yes to do it without a question." in done.output, name
    assert desk.journal() == before, name
    return before


@pytest.mark.full
def test_a_dry_run_changes_nothing_with_a_service_and_without(desk: Desk) -> None:
    examples = desk.examples()
    assert set(examples) == with_dry_run()
    desk.program.stop()
    for name, words in examples.items():
        if name in ONLY_SERVED:
            done = desk.type(*name.split(), *words, "--dry-run")
            assert "this needs a running service" in str(done.exception), name
        else:
            check(desk, name, words)
    desk.program.start()
    desk.program.ready()
    for name, words in examples.items():
        before = check(desk, name, words)
        yes = ["--yes"] if name in ASKS else []
        done = desk.type(*name.split(), *words, *yes)
        assert done.exit_code == 0, (name, done.output, done.exception)
        assert desk.journal() != before, name


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["retry", "nothing"], "no run 'nothing'"),
        (["cache", "clear", "nothing"], "would: clear 0 cached results of task nothing"),
        (
            ["state", "clear", "nothing"],
            "flow 'nothing' keeps nothing between runs; `turnout state`",
        ),
        (
            ["emit", "--type", "nothing"],
            "would: store it, and start nothing: no flow listens to it",
        ),
        (["fire", "dayly"], "no trigger 'dayly'; did you mean 'daily'?"),
        (["limits", "set", "bil", "3", "--for", "1h"], "no limit 'bil'"),
        (["resume", "index"], "would: do nothing: flow index is not paused"),
        (["resume", "index", "--discard"], "flow index is not paused, so nothing was discarded"),
    ],
)
def test_a_dry_run_refuses_what_would_be_refused(desk: Desk, words: list[str], says: str) -> None:
    assert says in " ".join(desk.type(*words, "--dry-run").output.split())
