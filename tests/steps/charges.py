"""Tasks that note what they really did, and may be told to fail."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.attempts import attempts
from turnout import retry, task
from turnout.service.domain.run import Outcome

NOW_AND_THEN = retry(5, delay="1ms", jitter=False)
done: list[str] = []
"""What the tasks really did, in order."""


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


@dataclass
class Receipt:
    id: str
    amount: float


class Refused(Exception):
    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason, code)
        self.code = code


@task
async def charge(name: str) -> Receipt:
    done.append(name)
    return Receipt(name, 1.5)


@task
def weigh(name: str) -> int:
    done.append(name)
    return len(name)


fail_at: set[str] = set()


@task
async def fragile(name: str) -> str:
    done.append(name)
    if name in fail_at:
        raise Refused(f"no {name}", 7)
    return name


@pytest.fixture(autouse=True)
def all_well() -> None:
    fail_at.clear()


def message(outcome: Outcome) -> str:
    assert outcome.error is not None, outcome
    return outcome.error.message


async def _outcome(tmp_path: Path, declared: Any) -> Outcome:
    async with attempts(tmp_path) as run:
        return await run.first(declared)
