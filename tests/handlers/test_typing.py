"""The face is typed: a strict checker knows what every task returns, and finds mistakes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import CHECKOUT

pytestmark = pytest.mark.slow

FOLDER = CHECKOUT / "tests/typing"
ROOT = CHECKOUT


def expected() -> dict[int, str]:
    lines = (FOLDER / "author.py").read_text().splitlines()
    return {
        number: line.split("  # ")[1]
        for number, line in enumerate(lines, 1)
        if "reveal_type(" in line
    }


MISTAKES = """
from __future__ import annotations

from turnout import flow, shell, task


@task
async def charge(amount: float) -> str:
    return str(amount)


@task
def pack(name: str) -> bytes:
    return name.encode()


@flow
async def bill(amount: float) -> str:
    await charge("much")  # error
    number: int = await charge(amount)  # error
    pack(7)  # error
    await pack.run(7)  # error
    await charge.map(["much"])  # pyright
    await pack("x")  # error
    await shell(["ls", 7])  # error
    await shell(["ls"], stdout="dump")  # error
    text: str = await shell(["ls"])  # error
    return str(number)
"""


def mistakes(*marks: str) -> set[int]:
    lines = MISTAKES.splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith(marks)}


def check(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    if "ModuleNotFoundError" in done.stderr or "Error: nodeenv" in done.stderr:
        pytest.skip(f"{command[0]} cannot run here: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def lines_of(output: str, pattern: str) -> dict[int, str]:
    return {int(match[1]): match[2] for match in re.finditer(pattern, output)}


@pytest.mark.timeout(120)
def test_mypy_knows_what_every_task_returns_and_finds_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "mistakes.py"
    file.write_text(MISTAKES)
    files = (str(FOLDER / "author.py"), str(file))
    output = check("mypy", "--strict", "--disable-error-code=unused-coroutine", *files)
    assert lines_of(output, r'author\.py:(\d+): note: Revealed type is "(.*)"') == expected()
    assert not lines_of(output, r"author\.py:(\d+): error: (.*)"), output
    assert set(lines_of(output, r"mistakes\.py:(\d+): error: (.*)")) == mistakes("# error"), output


@pytest.mark.timeout(120)
def test_pyright_agrees(tmp_path: Path) -> None:
    file = tmp_path / "mistakes.py"
    file.write_text(MISTAKES)
    python = ("--pythonpath", sys.executable)
    output = check("pyright", *python, str(FOLDER / "author.py"), str(file))
    revealed = r'author\.py:(\d+):\d+ - information: Type of ".*" is "(.*)"'
    assert lines_of(output, revealed) == expected(), output
    errors = lines_of(output, r"(?:mistakes|author)\.py:(\d+):\d+ - error: (.*)")
    assert set(errors) == mistakes("# error", "# pyright"), output
