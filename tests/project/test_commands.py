"""`turnout check` knows commands that cannot run, and texts for a shell that an event brings."""

from __future__ import annotations

from pathlib import Path

import pytest

from turnout.service.project.check import check

HEAD = "import shlex\nfrom turnout import current, event, flow, shell, task\n"
WARNED = [
    "await shell(f'ls {data[\"dir\"]}', shell=True)",
    "await shell('ls ' + data['dir'], shell=True)",
    "await shell(data['command'], shell=True)",
    "await shell(command=data['command'], shell=True)",
    "await shell('ls %s' % data['dir'], shell=True)",
    "await shell(current().event.data['x'], shell=True, timeout='1s')",
    "text = 'ls ' + data['dir']; await shell(text, shell=True)",
    "text: str = 'ls ' + data['dir']; await shell(text, shell=True)",
    "text = 'ls '; text += data['dir']; await shell(text, shell=True)",
    "[await shell(f'ls {each}', shell=True) for each in data['dirs']]",
    """
    name = data['dir']
    if name.isdigit():
        name = shlex.quote(name)
    await shell('ls ' + name, shell=True)""",
    """
    name = data['dir']
    try:
        name = shlex.quote(name)
    finally:
        await shell('date', shell=True)
    await shell('ls ' + name, shell=True)""",
]
REFUSED = {
    "await shell('ls')": "shell(…) is given one text: write a list of its words, or shell=True to "
    "have /bin/sh read it",
    "await shell(f'ls {data[\"dir\"]}')": "shell(…) is given one text: write a list of its words, "
    "or shell=True to have /bin/sh read it",
    "shell.blocking(['ls'])": "shell.blocking(…) would block the service in an `async def`: write "
    "`await shell(…)`",
    "shell(['ls'])": "shell(…) is called and not awaited, so that it never runs; write "
    "`await shell(…)`",
}
FINE = [
    "await shell(['ls', data['dir']])",
    "await shell('ls | wc', shell=True)",
    "await shell(f'ls {shlex.quote(data[\"dir\"])}', shell=True)",
    "await shell('cat', shell=True, stdin=data['text'])",
    "await shell(TEXT, shell=True)",
    "name = data['dir']; name = shlex.quote(name); await shell('ls ' + name, shell=True)",
    "data = await listed(data['dir']); await shell(f'ls {data}', shell=True)",
    """
    name = data['dir']
    if name.isdigit():
        name = 'number'
    else:
        name = shlex.quote(name)
    await shell('ls ' + name, shell=True)""",
    "await listed(data['dir'])",
    "await shell(TEXT)",
]


def found_in(tmp_path: Path, line: str) -> tuple[list[str], list[str]]:
    file = tmp_path / "flows.py"
    file.write_text(
        f"{HEAD}\nTEXT = 'ls'\n\n\n@task\nasync def listed(name: str) -> str:\n"
        "    return (await shell(f'ls {name}', shell=True)).stdout\n\n\n@task\n"
        "def plainly(name: str) -> str:\n    return shell.blocking(['ls', name]).stdout\n\n\n"
        f"@flow(on=event('asked'))\nasync def ask(data: dict) -> None:\n    {line}\n"
    )
    found = check([file])
    return (
        [f"{each.line}: {each.message}" for each in found.problems],
        [f"{each.line}: {each.message}" for each in found.warnings],
    )


@pytest.mark.parametrize("line", WARNED)
def test_a_text_of_the_event_is_warned_of(tmp_path: Path, line: str) -> None:
    problems, [warning] = found_in(tmp_path, line)
    assert problems == []
    assert warning == (
        f"{19 + line.count(chr(10))}: shell(…, shell=True): parts of the text come from the event, "
        "so whoever sends it chooses what this machine runs; write a list of arguments, or "
        "shlex.quote(…) around each part"
    )


@pytest.mark.parametrize(("line", "why"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_run_is_a_problem(tmp_path: Path, line: str, why: str) -> None:
    assert found_in(tmp_path, line) == ([f"19: {why}"], [])


@pytest.mark.parametrize("line", FINE)
def test_the_rest_is_fine(tmp_path: Path, line: str) -> None:
    assert found_in(tmp_path, line) == ([], [])


def test_a_def_flow_cannot_await_it(tmp_path: Path) -> None:
    file = tmp_path / "flows.py"
    file.write_text(f"{HEAD}\n\n@flow\ndef lists() -> None:\n    shell(['ls'])\n")
    [problem] = check([file]).problems
    assert problem.line == 7
    assert problem.message == (
        "flow 'lists' is a plain `def` and cannot await shell(…); write `async def`"
    )
