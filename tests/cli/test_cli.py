"""The command an operator types: what it prints, where it acts, how it ends."""

from __future__ import annotations

import asyncio
import getpass
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any, TypeVar

import pytest

from tests.support.program import Program, environment, turnout, until
from tests.support.running import make_event, running
from turnout import event, flow
from turnout.service.cli import main, writing_all
from turnout.service.domain.decisions import Reason
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import Outcome, RunError, RunState, Undo
from turnout.service.domain.units import utc_now
from turnout.service.journal.open import OpenJournal, open_journal
from turnout.service.journal.records import REGISTERED, Decision, Entry, NewRun, StepRecord
from turnout.service.operate.verbs import Emit
from turnout.service.telemetry.metrics import Metrics

R = TypeVar("R")

ESCAPE = "\x1b]0;owned\x07\x9b2J\u202e\u200b\U000e0041"
"""What a hostile body would have a terminal do."""


class Terminal:
    """Types commands in this process and keeps what they print."""

    def __init__(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.data = data
        self._capsys = capsys
        self.error = ""

    def type(self, *words: str, code: int = 0, data: bool = True) -> str:
        """Run a command that must end with `code`; returns its output, keeps its errors."""
        self._capsys.readouterr()
        where = ["--data", str(self.data)] if data else []
        with pytest.raises(SystemExit) as ended:
            main([*words, *where])
        captured = self._capsys.readouterr()
        self.error = captured.err
        assert ended.value.code == code, captured
        return captured.out

    def lines(self, *words: str, code: int = 0) -> list[Any]:
        """Run a command with --json; returns its documents."""
        return [json.loads(line) for line in self.type(*words, "--json", code=code).splitlines()]

    def journal(self, work: Callable[[OpenJournal], Awaitable[R]]) -> R:
        """Do something to the journal as a service would have."""

        async def act() -> R:
            journal = await open_journal(
                self.data, metrics=Metrics(), max_unfinished_runs=1000, min_free_bytes=0
            )
            try:
                return await work(journal)
            finally:
                await journal.close()

        return asyncio.run(act())

    def append(self, *, flow: str = "bill", body: bytes = b'{"amount": 3}', event: str = "") -> str:
        """Store an event with a queued run of `flow`, filtered by `audit`."""
        run = NewRun(id=mint_id(), flow=flow, state=RunState.QUEUED, code_version="abc123")
        stored = Event(
            id=event or mint_id(), source="/shop", type="order.placed", time=utc_now(),
            body=body, trigger="webhook:/orders", minted=not event,
        )  # fmt: skip
        entry = Entry(
            event=stored, runs=[run], decisions=[Decision("audit", Reason.FILTERED, "amount is 0")]
        )
        self.journal(lambda journal: journal.append([entry], now=utc_now()))
        return run.id

    def fail(
        self, *, flow: str = "bill", message: str = "no such card", undo: Undo | None = None
    ) -> str:
        """Store a run that failed after one recorded step, and could perhaps not be undone."""
        run_id = self.append(flow=flow)

        async def work(journal: OpenJournal) -> None:
            run = await journal.run(run_id)
            assert run is not None
            claimed = (await journal.claim([run.seq], now=utc_now()))[0]
            at = utc_now()
            step = StepRecord(
                key="price#1", task="price", state="succeeded", tries=2, started_at=at,
                finished_at=at + timedelta(seconds=1.5), result=b'{"net": 5}',
            )  # fmt: skip
            await journal.record_step(claimed.claim, step)
            error = RunError("ValueError", message, "charge#1", "Traceback:\n  line 7")
            log = b'{"at":"2026-01-31T09:00:00Z","level":"info","message":"order.priced","n":1}\n'
            outcome = Outcome(state=RunState.FAILED, error=error, log=log, undo=undo)
            if undo is not None:
                refund = replace(step, key="~undo[0]/refund#1", state="failed", error=error)
                await journal.record_step(claimed.claim, refund)
                await journal.record_step(
                    claimed.claim, replace(step, key="on_undo#1", task=REGISTERED)
                )
            await journal.record(claimed, outcome, started_at=at, now=utc_now())

        self.journal(work)
        return run_id

    def state(self, run_id: str) -> str:
        """Return a run's state."""
        return str(self.lines("show", run_id)[0]["state"])


@pytest.fixture
def terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(tmp_path / "data", capsys)


def flow_file(folder: Path, text: str) -> Path:
    path = folder / "flows.py"
    path.write_text(dedent(text).lstrip())
    return path


# ---------------------------------------------------------------- help


def test_help_brings_in_nothing_heavy() -> None:
    heavy = ("rich", "pydantic", "fastapi", "apsw", "httpx", "uvloop", "orjson", "asyncio")
    code = f"import sys, turnout.service.cli as _; print([m for m in {heavy} if m in sys.modules])"
    code += "; print(len([m for m in sys.modules if m.startswith('turnout')]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, ours = done.stdout.splitlines()
    assert found == "[]"
    assert int(ours) <= 42  # each costs about a thousandth of a second
    assert "Exit codes" in turnout("--help").stdout


@pytest.mark.parametrize(
    "command", ["serve", "check", "run", "doctor", "runs", "show", "why", "events", "retry",
                "cancel", "replay", "dead", "pause", "resume", "limits", "fire", "emit"],
)  # fmt: skip
def test_every_command_teaches_by_example(terminal: Terminal, command: str) -> None:
    text = terminal.type(command, "--help", data=False)
    assert re.search(rf"^ *turnout {command} ?", text, re.MULTILINE)


class Pipe(io.RawIOBase):
    """A pipe with a small buffer."""

    taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.taken += bytes(data[:10])
        return min(10, len(data))


def test_what_a_full_pipe_leaves_over_is_written_too() -> None:
    pipe = Pipe()
    unbuffered = io.TextIOWrapper(pipe, "utf-8", write_through=True)  # type: ignore[type-var]  # as with PYTHONUNBUFFERED
    writing_all(unbuffered).write("a line of more than ten\n")
    assert pipe.taken == b"a line of more than ten\n"


def test_wrong_usage_is_two(terminal: Terminal) -> None:
    terminal.type("no-such-command", code=2, data=False)
    terminal.type("runs", "--state", "broken", code=2)
    assert "succeeded" in terminal.error
    terminal.type("runs", "--since", "yesterday", code=2)
    terminal.type("retry", code=2)
    terminal.type("run", "flows.py", code=2, data=False)


# ---------------------------------------------------------------- looking


def test_without_a_journal_the_fix_is_named(terminal: Terminal) -> None:
    for words in (["runs"], ["show", "12345678"], ["doctor"], ["retry", "12345678"]):
        terminal.type(*words, code=78)
        assert "--data DIR or TURNOUT_DATA" in terminal.error
        assert len(terminal.error.splitlines()) == 1
    assert not terminal.data.exists()


def test_runs_are_a_table_for_people_and_lines_for_programs(terminal: Terminal) -> None:
    failed, other = terminal.fail(), terminal.append(flow="other")
    table = terminal.type("runs")
    assert table.index(other) < table.index(failed)
    assert "no such card" in table
    documents = terminal.lines("runs")
    assert [run["id"] for run in documents] == [other, failed]
    assert set(documents[0]) == {
        "id", "flow", "state", "attempts", "event_id", "event_source", "trigger", "tenant",
        "queued_at", "started_at", "finished_at", "due_at", "result", "result_bytes", "error",
        "reason", "cancelled_by", "undo", "undo_failed", "waits_for", "events",
    }  # fmt: skip
    assert [run["id"] for run in terminal.lines("runs", "--state", "failed")] == [failed]
    assert terminal.lines("runs", "--flow", "nope") == []
    assert "no runs match" in terminal.type("runs", "--flow", "nope")


def test_a_limit_is_told(terminal: Terminal) -> None:
    made = [terminal.append() for _ in range(3)]
    assert [run["id"] for run in terminal.lines("runs", "--limit", "2")] == made[:0:-1]
    terminal.type("runs", "--limit", "2")
    assert "newest 2" in terminal.error
    assert len(terminal.lines("runs", "--all")) == 3


def test_show_is_a_post_mortem(terminal: Terminal) -> None:
    run_id = terminal.fail()
    text = terminal.type("show", run_id)
    for word in ("bill", "abc123", "failed", "dead letter", "webhook:/orders", '"amount": 3',
                 "price#1", "1.5s", '{"net":5}', "ValueError: no such card", "charge#1",
                 "Traceback:\n  line 7", "order.priced  n=1"):  # fmt: skip
        assert word in text, word
    [document] = terminal.lines("show", run_id)
    assert document["steps"][0]["tries"] == 2
    assert document["event"]["data"] == {"amount": 3}
    assert document["history"][0]["log"][0]["message"] == "order.priced"
    terminal.type("show", "no-such-run", code=1)
    assert "no-such-run" in terminal.error


def test_stored_text_never_reaches_the_terminal_raw(terminal: Terminal) -> None:
    body = json.dumps({"note": ESCAPE}).encode()
    failed = terminal.fail(message=f"bad {ESCAPE}")
    run_id = terminal.append(body=body, flow=f"evil{ESCAPE}", event=f"id{ESCAPE}")
    outputs = [
        terminal.type(*words)
        for words in (["runs"], ["runs", "--json"], ["show", failed], ["show", failed, "--json"],
                      ["show", run_id], ["events"], ["why", f"id{ESCAPE}"])
    ]  # fmt: skip
    terminal.type("show", f"x{ESCAPE}", code=1)
    for output in (*outputs, terminal.error):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u200b\U000e0041]", output)
    [document] = terminal.lines("show", run_id)
    assert document["event"]["data"]["note"] == ESCAPE


def test_why_names_runs_and_reasons(terminal: Terminal) -> None:
    run_id = terminal.append(event="order-7")
    text = terminal.type("why", "order-7")
    assert run_id in text
    assert "audit: filtered (amount is 0)" in text
    [document] = terminal.lines("why", "order-7")
    assert document["runs"][0]["id"] == run_id
    assert document["decisions"][0]["reason"] == "filtered"
    terminal.type("why", "nope", code=1)


def test_why_asks_flow_files_again_and_explains_runs(terminal: Terminal, tmp_path: Path) -> None:
    run_id = terminal.append(event="order-8")
    flows = tmp_path / "flows.py"
    flows.write_text(
        "from turnout import flow, webhook\n"
        "orders = webhook('/orders')\n"
        "@flow(on=orders, when=lambda event: event.data['amount'] > 5)\n"
        "def audit(order: dict[str, int]) -> None: ...\n"
    )
    text = terminal.type("why", "order-8", str(flows))
    assert (
        "asked again with the current code: it would be filtered, "
        "when=lambda event: event.data['amount'] > 5 reads data.amount = 3"
    ) in text
    text = terminal.type("why", run_id)
    assert "it waits: for a service: none is running" in text
    [document] = terminal.lines("why", run_id)
    assert document["waiting"]["cause"] == "service"
    assert "for a service: none is running" in terminal.type("runs")
    assert "for a service" in terminal.type("show", run_id)


@flow(on=event("order.placed"), when=lambda event: event.data["amount"] > 0)
async def bill(order: dict[str, int]) -> int:
    return order["amount"]


@flow(on=event("order.placed"))
async def ship(event: Event) -> None:
    if event.data["amount"] > 100:
        raise ValueError("too heavy")


def test_why_has_a_reason_for_every_kind_of_end(terminal: Terminal) -> None:
    async def happen() -> None:
        async with running(terminal.data, [bill, ship]) as service:

            async def place(event_id: str, data: Any, type: str = "order.placed") -> None:
                await service.process.operator.do(
                    Emit(replace(make_event(data, event_id), type=type))
                )

            await place("fine", {"amount": 3})
            await place("filtered", {"amount": 0})
            await place("broken-filter", {"price": 3})
            await place("invalid", {"amount": 3, "note": "a word"})
            await place("failing", {"amount": 101})
            await place("unmatched", {}, "nobody.listens")
            await place("twice", {"amount": 3})
            await place("twice", {"amount": 3})
            await place("twice", {"amount": 4})
            around = replace(make_event({}, "around"), type="order.placed", hops=17)
            await service.process.operator.do(Emit(around))
            await service.all_finished()

    asyncio.run(happen())
    for event_id, *reasons in (
        ("fine", "bill: run .* succeeded", "ship: run .* succeeded"),
        ("filtered", r"bill: filtered \(when=.* at .*test_cli.py:\d+\) at 20", "ship: run"),
        ("broken-filter", r"bill: run .* failed  filter_error: KeyError: 'amount' \(in when="),
        ("invalid", "bill: run .* failed  invalid_data: note: ", "ship: run .* succeeded"),
        ("failing", "ship: run .* failed  ValueError: too heavy"),
        ("unmatched", r"the event: unmatched \(no flow listens to this event\)"),
        ("twice", "bill: run .* succeeded", r"the event: duplicate \(the same event was delivered",
         r"the event: conflict \(the same id came again with other content\) at 20"),
        ("around", r"the event: cycle \(the event is 17 hops from its origin\)"),
    ):  # fmt: skip
        text = terminal.type("why", event_id)
        for reason in reasons:
            assert re.search(reason, text), (reason, text)


def test_doctor_finds_a_sound_journal_sound(terminal: Terminal) -> None:
    terminal.fail()
    text = terminal.type("doctor")
    assert "SQLite 3." in text
    assert "every run has its event" in text
    checks = terminal.lines("doctor")
    assert all(check["ok"] for check in checks)


def test_doctor_finds_what_was_broken(terminal: Terminal) -> None:
    import apsw

    terminal.fail()
    [database] = terminal.data.glob("journal/*.db")
    connection = apsw.Connection(str(database))
    connection.execute("PRAGMA foreign_keys = off; DELETE FROM events")
    connection.close()
    checks = terminal.lines("doctor", code=1)
    assert [check["check"] for check in checks if not check["ok"]]
    assert "FAIL" in terminal.type("doctor", code=1)


# ---------------------------------------------------------------- acting on the journal


def test_a_run_is_retried_and_cancelled_with_the_service_down(terminal: Terminal) -> None:
    run_id = terminal.fail()
    assert "is now queued" in terminal.type("retry", run_id)
    assert terminal.lines("cancel", run_id)[0]["state"] == "cancelled"
    terminal.type("cancel", run_id, code=1)
    assert "cancelled" in terminal.error


def test_retry_from_a_step_forgets_it(terminal: Terminal) -> None:
    run_id = terminal.fail()
    terminal.type("retry", run_id, "--from", "price#1")
    assert terminal.lines("show", run_id)[0]["steps"] == []


def test_many_are_asked_for_with_their_count(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = [terminal.fail(), terminal.fail()]
    other = terminal.fail(flow="other")
    terminal.type("retry", "--flow", "bill", code=2)
    assert "retry 2 runs?" in terminal.error
    assert "--yes" in terminal.error
    assert terminal.state(failed[0]) == "failed"
    done = terminal.lines("retry", "--flow", "bill", "--yes")
    assert {run["id"] for run in done} == set(failed)
    assert terminal.state(other) == "failed"
    terminal.type("cancel", "--flow", "bill", "--yes")
    assert "2 done, 0 refused" in terminal.error
    assert "no runs match" in terminal.type("cancel", "--flow", "bill", "--yes")


def test_one_refusal_does_not_keep_the_others_waiting(terminal: Terminal) -> None:
    first, last = terminal.fail(), terminal.fail()
    terminal.type("retry", first, "no-such-run", last, code=1)
    assert "no-such-run" in terminal.error
    assert "2 done, 1 refused" in terminal.error
    assert terminal.state(last) == "queued"


def test_dead_letters_are_listed_replayed_and_dropped(terminal: Terminal) -> None:
    first, second = terminal.fail(), terminal.fail()
    terminal.append()
    for words in (["dead"], ["dead", "list"]):
        assert [run["id"] for run in terminal.lines(*words)] == [second, first]
    assert "no such card" in terminal.type("dead", "show", first)
    [new] = terminal.lines("dead", "replay", first)[0]["runs"]
    assert terminal.state(new) == "queued"
    assert [run["id"] for run in terminal.lines("dead")] == [second]
    terminal.type("dead", "drop", "--flow", "bill", "--since", "1h", "--yes")
    assert terminal.lines("dead") == []
    assert "no dead letters match" in terminal.type("dead")


def test_an_undo_that_failed_is_told_of_and_a_replay_beside_it_asks(terminal: Terminal) -> None:
    run_id = terminal.fail(undo="failed")
    event_id = terminal.lines("show", run_id)[0]["event_id"]
    command: tuple[str, ...]
    for command in (("runs",), ("dead",)):
        told = "undo: failed at refund; ValueError: no such card"
        assert told in terminal.type(*command)
        assert terminal.lines(*command)[0]["undo_failed"] == ["~undo[0]/refund#1"]
    assert "undo      failed at refund" in terminal.type("show", run_id)
    for command in (("replay", event_id), ("dead", "replay", run_id)):
        terminal.type(*command, code=2)
        assert "are not undone" in terminal.error and "--yes" in terminal.error
        assert len(terminal.lines(*command, "--yes")[0]["runs"]) == 1
    assert "undo running" in terminal.type("retry", run_id)
    document = terminal.lines("show", run_id)[0]
    assert (document["state"], document["undo"], document["dead"]) == ("queued", "running", True)
    assert "runs again" in terminal.type("show", run_id)


def test_a_cancel_keeps_why_and_who(terminal: Terminal) -> None:
    first, second = terminal.append(), terminal.append()
    terminal.type("cancel", first, "--reason", "ordered twice", "--by", "ada")
    text = terminal.type("show", first)
    assert "reason    ordered twice" in text and "cancelled by ada" in text
    assert "ordered twice" in terminal.type("runs")
    [run] = terminal.lines("cancel", second)
    assert (run["reason"], run["cancelled_by"]) == (None, getpass.getuser())


def test_an_event_is_replayed(terminal: Terminal) -> None:
    terminal.append(event="order-7")
    [new] = terminal.lines("replay", "order-7")[0]["runs"]
    assert terminal.lines("show", new)[0]["event"]["id"] == "order-7"


def test_pauses_outlive_the_command(terminal: Terminal) -> None:
    terminal.append()
    assert "flow bill paused" in terminal.type("pause", "bill")
    terminal.type("pause", "webhook:/orders")
    paused = terminal.journal(lambda journal: journal.pauses(now=utc_now()))
    assert set(paused) == {"flow:bill", "trigger:webhook:/orders"}
    terminal.type("resume", "bill")
    terminal.type("resume", "webhook:/orders")
    assert terminal.journal(lambda journal: journal.pauses(now=utc_now())) == {}


def test_what_needs_a_service_says_how_to_start_one(terminal: Terminal) -> None:
    terminal.append()
    for words in (["fire", "every:5m"], ["emit", "--type", "x"], ["flows"], ["triggers"]):
        terminal.type(*words, code=69)
        assert "turnout serve" in terminal.error
        assert len(terminal.error.splitlines()) == 1


def test_settings_that_are_wrong_end_with_78(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNOUT_DTAA", "x")
    terminal.type("runs", code=78)
    assert "TURNOUT_DTAA" in terminal.error


# ---------------------------------------------------------------- flow files


def test_check_lists_flows_with_their_triggers(terminal: Terminal, tmp_path: Path) -> None:
    path = flow_file(
        tmp_path,
        """
        from turnout import every, flow

        @flow(on=every("5m"))
        def tick() -> None: ...

        @flow
        def by_hand() -> None: ...
        """,
    )
    text = terminal.type("check", str(path), data=False)
    assert "every:5m" in text
    assert "(none)" in text


def test_check_prints_one_line_a_problem_and_fails(terminal: Terminal, tmp_path: Path) -> None:
    path = flow_file(tmp_path, "x = 1\nimport no_such_library_at_all\n")
    text = terminal.type("check", str(path), code=1, data=False)
    assert text.startswith(f"{path}:2: ")
    assert len(text.splitlines()) == 1
    problem = json.loads(terminal.type("check", str(path), "--json", code=1, data=False))
    assert (problem["level"], problem["line"]) == ("error", 2)


@pytest.mark.slow
def test_run_prints_the_result_of_one_run(tmp_path: Path) -> None:
    path = flow_file(
        tmp_path,
        """
        from turnout import flow

        @flow
        def bill(order: dict) -> dict:
            print("charging")
            return {"paid": order["amount"]}

        @flow
        async def broken() -> None:
            raise ValueError("no such card")
        """,
    )
    (tmp_path / "order.json").write_text('{"amount": 3}')
    for data in ('{"amount": 3}', f"@{tmp_path / 'order.json'}"):
        done = turnout("run", f"{path}:bill", "--input", data)
        assert (done.returncode, done.stdout) == (0, '{"paid":3}\n'), done.stderr
    done = turnout("run", f"{path}:broken")
    assert done.returncode == 1
    assert "ValueError: no such card" in done.stderr
    shown = re.findall(r'File "(.*)", line', done.stderr)
    assert shown == [str(path)]  # no frame of turnout's own, or of what it runs threads with
    done = turnout("run", f"{path}:nope")
    assert done.returncode == 1
    assert "bill, broken" in done.stderr
    done = turnout("run", f"{path}:bill", "--input", "{")
    assert done.returncode == 2
    assert "--input: the body is not JSON" in done.stderr


@pytest.mark.parametrize("kind", ["async", "def", "process"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_a_foreground_run_ends_at_ctrl_c_whatever_it_does(
    tmp_path: Path, kind: str, number: signal.Signals
) -> None:
    started = tmp_path / "started"
    path = flow_file(
        tmp_path,
        f"""
        import asyncio
        import time
        from pathlib import Path
        from turnout import flow

        @flow(name="async")
        async def waits():
            Path({str(started)!r}).touch()
            await asyncio.sleep(60)

        def sleeps():
            Path({str(started)!r}).touch()
            time.sleep(60)

        def sleeps_too():
            sleeps()

        flow_def = flow(name="def")(sleeps)
        sleeps_too = flow(name="process", pool="process")(sleeps_too)
        """,
    )
    folder = tmp_path / "tmp"
    folder.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-m", "turnout.service.cli", "run", f"{path}:{kind}"],
        env=environment({"TMPDIR": str(folder)}),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(started.exists, 15, "the flow to start")
        child.send_signal(number)
        _, said = child.communicate(timeout=10)
    finally:
        child.kill()
    assert child.returncode == 130
    assert said.strip() == "stopped"
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_output_that_cannot_be_written_has_an_exit_code(terminal: Terminal) -> None:
    terminal.append()
    command = [sys.executable, "-m", "turnout.service.cli", "runs", "--json"]
    command += ["--data", str(terminal.data)]
    ours, theirs = os.pipe()
    os.close(ours)
    gone = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    assert (gone.returncode, gone.stderr) == (141, "")
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert done.returncode == 74
        assert done.stderr == "error: cannot write the output: No space left on device\n"
    closed = f"{shlex.join(command)} >&-"
    done = subprocess.run(closed, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "words",
    [["show"], ["why"], ["retry"], ["cancel"], ["replay"], ["dead", "drop"], ["runs", "--flow"],
     ["events", "--event"], ["pause"], ["resume"]],
)  # fmt: skip
def test_an_argument_that_is_no_text_is_wrong_usage(terminal: Terminal, words: list[str]) -> None:
    terminal.append()
    terminal.type(*words, "\udcff" * 9, code=2)
    assert terminal.error == "error: an argument is not UTF-8\n"
    if words[0] in ("show", "retry", "cancel"):
        terminal.type(*words, "aaaaaaaa\U0010ffff", code=1)
        assert "no run" in terminal.error


def test_a_data_folder_that_cannot_be_is_refused_with_the_fix(tmp_path: Path) -> None:
    path = flow_file(tmp_path, "from turnout import flow\n@flow\ndef a(): ...\n")
    done = turnout("serve", path, "--data", path / "below")
    assert done.returncode == 78
    assert f"cannot use the data folder {path}/below: Not a directory" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_may_be_named_by_its_first_characters(terminal: Terminal) -> None:
    run_id = terminal.fail()
    assert f"run {run_id} of bill is now queued" in terminal.type("retry", run_id[:20])
    assert "cancelled" in terminal.type("cancel", run_id[:20])
    terminal.type("retry", "nothing", code=1)
    assert terminal.error == (
        f"no run 'nothing'; `turnout runs` lists them; this is the journal in {terminal.data}\n"
    )


@pytest.mark.slow
def test_serve_refuses_a_broken_file_in_one_line(tmp_path: Path) -> None:
    path = flow_file(tmp_path, "def broken(:\n")
    done = turnout("serve", path, "--data", tmp_path / "data")
    assert done.returncode == 78
    assert done.stderr.startswith(f"error: {path}:1: syntax error")
    assert len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------- through a live service


@pytest.mark.timeout(60)
@pytest.mark.slow
def test_a_live_service_is_acted_on_over_http(terminal: Terminal, tmp_path: Path) -> None:
    path = flow_file(
        tmp_path,
        """
        from turnout import Event, event, every, flow

        @flow(on=event("order.placed"))
        def bill(order: dict) -> int:
            return order["amount"]

        @flow(on=every("1h"))
        def tick(event: Event) -> str:
            return event.type
        """,
    )
    with Program(flows=path, data=terminal.data, log=tmp_path / "log").start() as program:
        program.ready()
        [receipt] = terminal.lines("emit", "--type", "order.placed", "--input", '{"amount": 3}')
        [run_id] = receipt["runs"]
        program.quiet(10)
        assert terminal.lines("show", run_id)[0]["result"] == 3
        assert terminal.lines("retry", run_id)[0]["id"] == run_id
        program.quiet(10)
        [again] = terminal.lines("replay", receipt["event"])[0]["runs"]
        program.quiet(10)
        assert terminal.state(again) == "succeeded"
        [trigger] = [row["name"] for row in terminal.lines("triggers") if row["kind"] == "every"]
        [fired] = terminal.lines("fire", trigger)[0]["runs"]
        program.quiet(10)
        assert terminal.lines("show", fired)[0]["result"] == "turnout.every.fired"
        assert "flow bill paused" in terminal.type("pause", "bill")
        [waiting] = terminal.lines("emit", "--type", "order.placed", "--input", '{"amount": 4}')
        assert terminal.lines("flows")[0]["paused_at"] is not None
        assert terminal.lines("cancel", waiting["runs"][0])[0]["state"] == "cancelled"
        terminal.type("cancel", waiting["runs"][0], code=1)
        terminal.type("fire", "nope", code=1)
        terminal.type("emit", "--type", "order.placed", "--input", "{", code=2)
        assert all(check["ok"] for check in terminal.lines("doctor"))
        second = turnout("serve", path, "--data", terminal.data, "--port", "0")
        assert second.returncode == 78
        assert str(program.pid) in second.stderr
        assert program.stop() == 0
    assert terminal.state(run_id) == "succeeded"


# ---------------------------------------------------------------- pauses and limits


def test_a_pause_says_its_end_and_is_listed_with_note_and_author(terminal: Terminal) -> None:
    terminal.append()
    words = ("--for", "2h", "--note", "the bank migrates", "--by", "ada")
    told = r"^flow bill paused until [\d-]+ [\d:]+[+-]\d\d:\d\d$"
    assert re.search(told, terminal.type("pause", "bill", *words), re.M)
    assert "everything paused" in terminal.type("pause", "--all")
    everything, bill = terminal.lines("pause", "--list")
    assert (everything["name"], everything["until"], everything["by"]) == (
        "*",
        None,
        getpass.getuser(),
    )
    assert (bill["name"], bill["note"], bill["by"]) == ("flow:bill", "the bank migrates", "ada")
    text = terminal.type("pause", "--list")
    assert "the bank migrates" in text and "everything" in text
    terminal.type("resume", "bill", "webhook:/orders", "--all", code=2)
    assert "resumed" in terminal.type("resume", "--all")
    terminal.type("resume", "bill")
    assert "nothing is paused" in terminal.type("pause", "--list")


def test_resume_says_what_waited_and_discards_it_if_asked(terminal: Terminal) -> None:
    run_id = terminal.append()
    terminal.append(flow="ship")
    terminal.type("pause", "bill")
    assert "flow bill resumed; 1 run waited, the oldest for " in terminal.type("resume", "bill")
    assert terminal.type("resume", "bill") == "flow bill was not paused\n"
    terminal.type("resume", "bill", "--discard", "--yes", code=1)
    assert "flow bill is not paused, so nothing was discarded" in terminal.error
    terminal.type("pause", "--all", "--note", "wrong deploy", "--by", "ada")
    terminal.type("pause", "ship", "--note", "no parcels", "--by", "bob")
    text = terminal.type("resume", "--all", "--discard", "--yes")
    assert re.search(r"everything resumed; 1 run waited, the oldest for \w+: 1 discarded", text)
    assert "flow ship is still paused by bob: no parcels" in text
    assert terminal.state(run_id) == "skipped"
    assert "dropped" in terminal.type("runs", "--flow", "bill")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pause"], "name flows or triggers (turnout flows, turnout triggers), or --all"),
        (["pause", "bill", "--all"], "or --all"),
        (["resume"], "or --all"),
        (["pause", "bill", "--for", "soon"], "--for: cannot read the duration 'soon'"),
        (["pause", "bill", "--for", "0s"], "--for: it must be longer than 0s"),
        (["limits", "set", "limit:db", "3"], "Missing option '--for'"),
        (["limits", "set", "limit:db", "many", "--for", "1h"], "'many' is not a valid integer"),
        (["limits", "set", "limit:db", "0", "--for", "1h"], "to start nothing, pause the flow"),
    ],
)
def test_what_pauses_and_limits_cannot_mean_is_wrong_usage(
    terminal: Terminal, words: list[str], says: str
) -> None:
    terminal.append()
    terminal.type(*words, code=2)
    assert says in terminal.error


def test_a_limit_is_set_while_no_service_runs(terminal: Terminal) -> None:
    terminal.append()
    terminal.type("limits", "set", "db", "3", "--for", "1h", code=1)
    assert "write limit:db for a named limit, or flow:db" in terminal.error
    for name, full in (("limit:db", "limit:db"), ("flow:bill", "flow:bill/limit")):
        [made] = terminal.lines("limits", "set", name, "3", "--for", "1h", "--by", "ada")
        assert (made["name"], made["count"], made["by"]) == (full, 3, "ada")
    assert "limit db is what the flow file says again" in terminal.type("limits", "reset", "db")
    terminal.type("limits", "reset", "limit:db", code=1)
    assert "limit 'limit:db' is not overridden" in terminal.error
    terminal.type("limits", code=69)


def test_what_is_in_use_fits_80_columns(
    tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = flow_file(
        tmp_path,
        """
        import asyncio
        from turnout import event, flow, limit, throttle

        @flow(
            on=event("order.placed"),
            concurrency=limit(1, per=lambda event: event.data["customer"]),
            rate=throttle("crm", "2/m"),
        )
        async def bill(data: dict) -> None:
            await asyncio.sleep(60)
        """,
    )
    with Program(flows=path, data=terminal.data, log=tmp_path / "log").start() as program:
        program.ready()
        for customer in ("acme", "acme", "a customer with a very long name indeed, and then some"):
            data = json.dumps({"customer": customer})
            terminal.type("emit", "--type", "order.placed", "--input", data)
        terminal.type("limits", "set", "bill", "2", "--for", "2h")
        rows = {row["name"]: row for row in terminal.lines("limits")}
        assert rows["bill"]["max"] == 2 and rows["crm"]["used"] == 2
        monkeypatch.setattr("turnout.service.cli.tables.terminal_width", lambda: 80)
        text = terminal.type("limits")
        assert max(map(len, text.splitlines())) <= 80
        assert re.search(r"^bill +limit +2 +\d* +\d+s +2h, then 1$", text, re.M), text
        assert re.search(r"^  acme +1/2", text, re.M), text
        terminal.type("limits", "set", "bil", "2", "--for", "2h", code=1)
        assert "no limit 'bil'; did you mean 'bill'?" in terminal.error
        terminal.type("pause", "bil", code=1)
        assert "no flow or trigger 'bil'; did you mean 'bill'?" in terminal.error
