"""Tables fit the terminal: one line a row, short ids that commands take, local times."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.program import environment
from tests.support.running import make_event
from turnout.service.cli import cli, main, tables
from turnout.service.domain.run import RunState
from turnout.service.domain.short_ids import shorten
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Entry, NewRun

from . import captures
from .mixed_runs import make, run_id
from .test_cli import Terminal, terminal

__all__ = ["terminal"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "data"
    make(folder)
    return folder


@pytest.mark.parametrize("name", captures.COMMANDS)
def test_thirty_mixed_runs_look_as_they_were_looked_at(name: str) -> None:
    for file, text in captures.captures(name).items():
        kept = (captures.FOLDER / file).read_text("utf-8")
        assert text == kept, "if that is meant: python -m tests.cli.captures"


@pytest.mark.parametrize("name", ["runs", "events", "dead", "runs-utc"])
@pytest.mark.parametrize("width", captures.WIDTHS)
def test_a_row_is_a_line_and_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    lines = (captures.FOLDER / f"{name}-{width}.txt").read_text("utf-8").splitlines()
    assert max(map(tables.cells, lines)) <= width
    assert len(lines) == {"runs": 31, "events": 31, "dead": 10, "runs-utc": 4}[name]


def test_a_real_terminal_of_80_columns_gets_one_line_a_row(data: Path) -> None:
    printed = on_a_terminal(["runs", "--data", str(data)], columns=80)
    lines = printed.splitlines()
    assert len(lines) == 31
    assert max(map(tables.cells, lines)) <= 80
    assert {line.split()[0] for line in lines[1:]} == {run_id(each)[-8:] for each in range(30)}


def on_a_terminal(
    words: list[str], *, columns: int, code: Sequence[str] = ("-m", "turnout.service.cli"),
    with_errors: bool = False,
) -> str:  # fmt: skip
    """Run the program on a terminal of this width; returns its output without colours."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (50, columns))
    with subprocess.Popen(
        [sys.executable, *code, *words], stdin=its, stdout=its,
        stderr=its if with_errors else subprocess.DEVNULL,
        env=environment({"TZ": "Europe/Berlin", "COLUMNS": ""}),  # the terminal tells its width
    ):  # fmt: skip
        os.close(its)
        taken = b""
        while True:
            try:
                taken += (read := os.read(ours, 65_536))
            except OSError:  # its end is closed
                break
            if not read:
                break
    os.close(ours)
    return re.sub(r"\x1b\[[\d;]*m", "", taken.decode()).replace("\r\n", "\n")


def test_without_a_terminal_nothing_is_cut(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = typed(capsys, data, "runs")
    assert run_id(1) in text
    assert "a valid number, unable to parse string as a number" in text
    assert re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", text)


def typed(capsys: pytest.CaptureFixture[str], data: Path, *words: str, code: int = 0) -> str:
    """Type a command; returns what it prints, with errors where it fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*words, "--data", str(data)])
    printed = capsys.readouterr()
    assert ended.value.code == code, printed
    return printed.err if code else printed.out


def test_the_short_form_names_a_run_in_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    make(data)
    failed, queued = (run_id(each)[-8:] for each in (21, 7))
    assert run_id(21) in typed(capsys, data, "show", failed)
    assert run_id(21) in typed(capsys, data, "why", failed)
    assert run_id(21) in typed(capsys, data, "dead", "show", failed)
    assert run_id(7) in typed(capsys, data, "cancel", queued)
    assert run_id(21) in typed(capsys, data, "retry", failed)
    replayed = json.loads(typed(capsys, data, "dead", "replay", run_id(1)[-8:], "--json"))
    assert replayed["run"] == run_id(1)
    assert run_id(9) in typed(capsys, data, "dead", "drop", run_id(9)[-8:])


def test_the_short_form_names_an_event_in_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    make(data)
    short = shorten(["0ad3162e-cc78-11e3-81ab-4c9367dc0958"], among=30).popitem()[1]
    assert short == "0ad316…dc0958"
    assert "0ad3162e-cc78-11e3-81ab-4c9367dc0958" in typed(capsys, data, "why", short)
    [run] = typed(capsys, data, "runs", "--event", short, "--json").splitlines()
    assert json.loads(run)["id"] == run_id(10)
    [stored] = typed(capsys, data, "events", "--event", short, "--json").splitlines()
    assert json.loads(stored)["runs"] == [run_id(10)]
    assert "replayed as" in typed(capsys, data, "replay", short)


def test_an_ambiguous_id_names_those_it_fits(terminal: Terminal) -> None:
    ids = [f"019ab3c2-7b1c-7000-8000-{number}23456789ab" for number in range(10, 16)]
    made = [make_event() for _ in ids]
    for event, each in zip(made, ids, strict=True):
        entry = Entry(event=event, runs=[NewRun(id=each, flow="bill", state=RunState.QUEUED)])
        terminal.journal(lambda journal, entry=entry: journal.append([entry], now=utc_now()))  # type: ignore[misc]
    terminal.type("show", "019ab3c2", code=1)
    shown = ", ".join(each[-12:] for each in reversed(ids[1:]))
    assert terminal.error.startswith(f"error: 6 runs begin so: {shown}, …; '019ab3c2' is not ")
    terminal.type("show", "456789ab", code=1)
    assert terminal.error.startswith("error: 6 runs end so: ")
    assert f"id        {ids[2]}" in terminal.type("show", ids[2][-12:])


def test_an_unknown_id_says_where_to_look(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = typed(capsys, data, "show", "ffffffff", code=1)
    assert text == (
        f"error: no run 'ffffffff'; `turnout runs` lists them; this is the journal in {data}\n"
    )


@pytest.mark.parametrize(("among", "length"), [(30, 8), (4_000, 8), (70_000, 10), (20_000_000, 12)])
def test_a_short_form_grows_with_the_journal(among: int, length: int) -> None:
    assert len(shorten([run_id(3)], among=among)[run_id(3)]) == length


def test_a_short_form_takes_as_many_characters_as_it_needs_to_be_unique() -> None:
    twins = ["019ab3c2-7b1c-7000-8000-0123456789ab", "019ab3c2-7b1c-7000-8000-0923456789ab"]
    assert set(shorten(twins, among=2).values()) == {"0123456789ab", "0923456789ab"}
    assert shorten(["order-7", "a" * 40], among=2) == {
        "order-7": "order-7",
        "a" * 40: "aaaaaa…aaaaaa",
    }


@pytest.mark.parametrize("width", [1, 5, 20, 40, 80, 200])
def test_no_terminal_is_too_narrow(width: int) -> None:
    columns = (tables.Column("flow", 8), tables.Column("state"), tables.Column("why", 8))
    widths = tables.fitted(columns, [30, 9, 300], width)
    assert tables.total_width(widths) <= max(width, 7)


@pytest.mark.parametrize(
    "command",
    [("retry",), ("cancel",), ("dead", "replay"), ("dead", "drop")],
)
def test_a_dry_run_lists_what_would_change_and_changes_nothing(
    data: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    before = typed(capsys, data, "runs", "--all", "--json")
    listed = typed(capsys, data, *command, "--since", "9999d", "--dry-run").split()
    assert listed and all(each in before for each in listed)
    document = json.loads(typed(capsys, data, *command, listed[0][-8:], "--dry-run", "--json"))
    assert document == {"run": listed[0], "would": command[-1]}
    assert typed(capsys, data, "runs", "--all", "--json") == before


def test_every_command_tells_its_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (*cli.commands, "dead replay", "limits set", "trigger seek"):
        with pytest.raises(SystemExit):
            main([*name.split(), "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "Exit codes: 0 done; " in text and "78 wrong settings or flow files." in text, name


@pytest.mark.slow
def test_what_takes_more_than_a_second_says_so_on_a_terminal(data: Path) -> None:
    slow = (
        "import time; from turnout.service.cli import main, output;"
        "from turnout.service.journal.sqlite import reader;"
        "output.WORKING_AFTER_SECONDS = 0.01; found = reader.run_from;"
        "reader.run_from = lambda row: (time.sleep(0.05), found(row))[1]; main()"
    )
    printed = on_a_terminal(
        ["runs", "--data", str(data)], columns=80, code=["-c", slow], with_errors=True
    )
    assert "reading the journal …" in printed
    assert len([line for line in printed.splitlines() if " 03-1" in line]) == 30


def test_a_narrow_terminal_gets_whole_ids_and_fewer_columns(data: Path) -> None:
    lines = on_a_terminal(["runs", "--data", str(data)], columns=30).splitlines()
    assert max(map(tables.cells, lines)) <= 30
    assert {line.split()[0] for line in lines[1:]} == {run_id(each)[-8:] for each in range(30)}
