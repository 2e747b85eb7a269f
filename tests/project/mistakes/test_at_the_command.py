"""What the command says of each mistake in its words, settings and environment."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path

import apsw
import pytest

from tests.support.program import turnout
from tests.support.running import running
from turnout import flow
from turnout.service.cli import main
from turnout.service.journal.sqlite.files import FILE_NAME, journal_folder

from .at_the_command import AT_THE_COMMAND, FLOWS, AtTheCommand

_PAGE = 4096


@pytest.mark.parametrize("mistake", AT_THE_COMMAND, ids=lambda each: each.title)
def test_the_command_names_the_place_and_the_fix(
    mistake: AtTheCommand,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in mistake.environment.items():
        monkeypatch.setenv(name, value)
    for name, text in {"flows.py": FLOWS, **mistake.files}.items():
        if name == "journal":
            _make_journal(tmp_path / "data", damaged=text == "damaged")
        else:
            Path(name).write_text(text)
    words = shlex.split(mistake.command)
    if mistake.in_own_process:
        done = turnout(*words, env=mistake.environment)
        told, code = done.stderr.splitlines(), str(done.returncode)
    else:
        with pytest.raises(SystemExit) as ended:
            main(words)
        captured = capsys.readouterr()
        told = (captured.err.strip() or captured.out.strip()).splitlines()
        code = str(ended.value.code)
    assert code == str(mistake.code)
    assert told[-1] == mistake.says.replace("{folder}", str(tmp_path))
    assert mistake.place in mistake.says
    assert mistake.fix in mistake.says


def _make_journal(folder: Path, *, damaged: bool) -> None:
    """Make a journal with some runs; a damaged one has pages in the middle that are no pages."""

    @flow
    async def bill(order: str) -> str:
        return order

    async def fill() -> None:
        async with running(folder, [bill]) as service:
            for number in range(200 if damaged else 1):
                await service.send(f"{number}" * 500)
            await service.all_finished()

    asyncio.run(fill())
    if damaged:
        file = journal_folder(folder) / FILE_NAME
        content = bytearray(file.read_bytes())
        whole = _pages_of_schema(file)  # without it nothing of a journal can be opened
        damaged_pages = range(len(content) // _PAGE // 4, len(content) // _PAGE * 3 // 4, 3)
        for page in (each for each in damaged_pages if each not in whole):
            content[page * _PAGE : (page + 1) * _PAGE] = b"\xaa" * _PAGE
        file.write_bytes(content)


def _pages_of_schema(file: Path) -> set[int]:
    """Return the pages that say which tables and indexes there are, from 0."""
    connection = apsw.Connection(str(file))
    rows = connection.execute("SELECT pageno - 1 FROM dbstat WHERE name = 'sqlite_schema'")
    pages = {int(row[0]) for row in rows}
    connection.close()
    return pages
