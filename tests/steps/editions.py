"""Editions of a flow: a run begins under the one and goes on under the other."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.attempts import Attempts
from turnout import (
    flow,
    retry,
    task,
)
from turnout.service.domain.run import Outcome, RunState

done: list[str] = []
broken: set[str] = set()


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()
    broken.clear()


@task
async def do(name: str) -> str:
    done.append(name)
    if name in broken:
        raise OSError(name)
    return name


def edition(content: str, function: Any, **options: Any) -> Any:
    """Return a flow as the loader would make it of one edition of its file."""
    made = flow(name="edited", retry=retry(5, delay="1ms"), **options)(function)
    if "version" not in options:
        vars(made)["code_version"] = content
    return made


async def over_an_edit(run: Attempts, old: Any, new: Any, **options: Any) -> Outcome:
    await run.first(edition("old", old, **options))
    return await run.again(edition("new", new, **options))


def refused(outcome: Outcome, what: str) -> None:
    assert outcome.state is RunState.FAILED and outcome.error is not None, outcome
    assert outcome.error.type == "code_changed"
    assert what in outcome.error.message
