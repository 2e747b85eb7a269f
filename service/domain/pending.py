"""What a look of `poll` returns while there is no result yet, and the error at its timeout."""

from __future__ import annotations

from dataclasses import dataclass

from .flow import Flow
from .task import Task

MOST_SAID = 200
"""The most characters that are kept of what a look says."""


@dataclass(frozen=True, slots=True)
class Pending:
    """What the check of a `poll` returns while what it looks for is not there yet.

    * `said`: how far it is, for people: `turnout show` prints it; the first 200 characters are kept

    Raises nothing: it is a value.

    ```python
    from turnout import Pending, flow, poll, task


    @task
    async def exported(job: str) -> str | Pending:
        done, total = 3, 3  # ask for it
        return f"{job}.csv" if done == total else Pending(f"{done} of {total} parts")


    @flow
    async def export(job: str) -> str:
        return await poll(exported, job, every="30s", timeout="2h")
    ```
    """

    said: str = ""


class PollTimeout(TimeoutError):
    """A `poll` has looked for as long as it may, and there was no result: also a `TimeoutError`.

    The last look comes at the end of the time, so what is there by then is found.

    * `message`: what was polled, for how long, how often, and what the last look said

    Raises nothing by itself: it is raised.

    ```python
    from turnout import Pending, PollTimeout, flow, poll, task


    @task
    async def paid(order: str) -> str | Pending:
        return Pending()


    @flow
    async def collect(order: str) -> str:
        try:
            return await poll(paid, order, every="1m", timeout="10m")
        except PollTimeout:
            return "not paid"
    ```
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)


def problem_of_check(check: object) -> str | None:
    """Return why a poll cannot look with this, in words; None if it can."""
    if isinstance(check, Flow):
        return f"{check.words} is a flow, and a look is a task: write @task"
    if not isinstance(check, Task):
        return "a look is a task: write @task above its function, and give the task itself"
    for option in ("undo", "cache"):
        if getattr(check, option) is not None:
            return f"{check.words} has {option}=, and a look is made many times: leave it out"
    return None
