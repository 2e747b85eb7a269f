"""Up to when a folder is known: what lay there by then has been emitted, or is told later."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.running import eventually
from tests.support.trigger_contract import RecordingEmitter, watch
from turnout.triggers.files import files


async def test_what_lay_there_at_a_scan_is_emitted_before_that_is_told(tmp_path: Path) -> None:
    emit = RecordingEmitter()
    trigger = files(f"{tmp_path}/*.csv", settle="300ms", rescan="100ms", poll=True)
    async with watch(trigger, emit):
        loop = asyncio.get_running_loop()
        empty_at = loop.time()
        await emit.until(lambda: emit.told_at > empty_at)
        (tmp_path / "a.csv").write_text("x")
        written_at = loop.time()
        while not emit.events:
            assert emit.told_at < written_at, "the file waits for its settle time"
            await asyncio.sleep(0.01)

        async def is_told() -> bool:
            return emit.told_at > written_at

        await eventually(is_told)
