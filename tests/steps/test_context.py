"""`current()`: the run as its code sees it, keys that hold, places that are stable."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.attempts import attempts
from turnout import current, flow, gather, task
from turnout.service.domain.run import RunState
from turnout.service.journal.records import NewRun

seen: list[tuple[object, ...]] = []


@task
async def note(name: str = "mail") -> str:
    return current().key(name)


@task
def note_in_a_thread() -> str:
    return current().key("mail")


@flow
async def looks() -> list[str]:
    run = current().run
    seen.append((run.id, run.flow, run.attempt, run.replay, run.crashes, current().event.data))
    seen.append((current().attempt, current().tenant))

    async def branch() -> str:
        return current().key("mail")

    keys = [await note(), await note(), await note("other"), await note_in_a_thread.run()]
    return [current().key("mail"), *keys, *await gather(branch(), branch())]


async def test_a_run_sees_itself(tmp_path: Path) -> None:
    seen.clear()
    async with attempts(tmp_path) as run:
        await run.first(looks, {"a": 1}, tenant="blue")
    assert seen == [("run-of-e1", "looks", 1, 0, 0, {"a": 1}), (1, "blue")]


async def test_keys_differ_by_place_name_and_run_and_hold_over_replays_of_the_same_place(
    tmp_path: Path,
) -> None:
    async with attempts(tmp_path) as run:
        first = await run.first(looks)
        assert run.claimed is not None and first.result is not None
        keys = first.result.decode().strip("[]").replace('"', "").split(",")
        assert len(set(keys)) == 7 and {len(key) for key in keys} == {32}
        replay = NewRun(id="replayed", flow="looks", state=RunState.QUEUED)
        await run.journal.replay(run.claimed.event_seq, [replay], now=run.claimed.due_at)
        (run.claimed,) = await run.journal.claim([replay.seq], now=run.claimed.due_at)
        again = await run.execute(looks)
        assert again.result is not None and again.state is RunState.SUCCEEDED
        assert not set(keys) & set(again.result.decode().strip("[]").replace('"', "").split(","))


async def test_attempts_side_by_side_do_not_see_each_other(tmp_path: Path) -> None:
    both = asyncio.Barrier(2)

    @flow
    async def meets() -> str:
        await both.wait()
        return current().run.id

    async with attempts(tmp_path) as one, attempts(tmp_path / "other") as other:
        first, second = await asyncio.gather(one.first(meets, id="e1"), other.first(meets, id="e2"))
    assert (first.result, second.result) == (b'"run-of-e1"', b'"run-of-e2"')
    assert current().run.id == "direct"


async def test_a_plain_call_has_keys_too() -> None:
    assert await note() == await note() != await note("other")
    assert note_in_a_thread() == await note()
