"""`turnout check` says nothing of calls that work, however they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from turnout.service.project.check import check

HEAD = """
import functools
from turnout import Pending as Waiting
from turnout import current, flow, http, poll, secret, task

TOKEN = secret("TURNOUT_TEST_TOKEN")
OPTIONS = {"every": "1s"}


def with_client(function):
    @functools.wraps(function)
    def connected(*given, **options):
        return function("client", *given, **options)

    return connected


def found(job):
    return job or Waiting("nothing yet")


@task
def plain(job: str):
    return Waiting() if job else job


@task
@with_client
def connected(client: str, job: str):
    return job or Waiting()


@task
def helped(job: str):
    return found(job)


@task
def nested(job: str):
    def answer():
        return Waiting()

    return job or answer()


"""
CALLS = [
    "await connected.run('1')",
    "await connected.run(job='1')",
    "await poll(plain, '1')",
    "await poll(plain, '1', **OPTIONS)",
    "await poll(*(plain, '1'), **OPTIONS)",
    "await poll(connected, '1')",
    "await poll(helped, '1')",
    "await poll(nested, '1')",
    "current().log.info(f'with {TOKEN!r}')",
    """
    try:
        await connected.run('1')
    except ValueError as http:
        print(http.get('x'))""",
    """
    match await connected.run('1'):
        case [http, *poll]:
            print(http.get('x'), poll('x', every='0s'))
        case {'a': 1, **http}:
            print(http.get('x'))
        case str() as http:
            print(http.get('x'))""",
    "await http.get('HTTPS://shop.example/')",
]


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_said_of_it(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_TEST_TOKEN", "x" * 20)
    file = tmp_path / "flows.py"
    file.write_text(f"{HEAD}@flow\nasync def export() -> None:\n    {call}\n")
    found = check([file])
    assert [*found.problems, *found.warnings] == []


def test_a_poll_that_is_given_options_only_is_told_what_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "flows.py"
    file.write_text(f"{HEAD}@flow\nasync def export() -> None:\n    await poll(**OPTIONS)\n")
    [problem] = check([file]).problems
    assert problem.message == "poll(…) is given no task: write `await poll(task, …)`"
