"""Work that is asked for once stays asked for when an operator has it done again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import running
from turnout import flow, unique
from turnout.service.domain.event import Event
from turnout.service.domain.run import Run, RunState
from turnout.service.operate.verbs import Replay, ReplayDead, Retry


@pytest.mark.parametrize(
    "verb",
    [
        lambda run: Retry(run.id),
        lambda run: ReplayDead(run.id),
        lambda run: Replay(run.event_id),
        lambda run: Replay(run.id),
    ],
    ids=["retry", "dead replay", "replay EVENT", "replay RUN"],
)
async def test_a_repeated_request_gets_the_run_that_has_done_a_failed_one_again(
    tmp_path: Path, verb: Callable[[Run], Any]
) -> None:
    is_down = [True]

    @flow(unique=unique(lambda event: "invoice", until="7d"))
    async def bill(event: Event) -> None:
        if is_down:
            raise OSError

    async with running(tmp_path, [bill]) as service:
        failed = await service.finished((await service.send(1)).runs[0])
        is_down.clear()
        await service.process.operator.do(verb(failed))
        done = (await service.all_finished())[-1]
        again = await service.send(2)
        runs = await service.all_finished()
    assert again.runs == (done.id,)
    assert [run.state for run in runs if run.state is RunState.SUCCEEDED] == [RunState.SUCCEEDED]
