"""A trigger that fails is started again with backoff and never touches the others."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.running import eventually, make_event, running
from turnout import flow
from turnout.service.domain.trigger import Emitter


@flow
async def note() -> None: ...


@dataclass(frozen=True)
class Flaky:
    """Fails twice, then emits an event and watches."""

    name: str = "flaky"
    kind: str = "flaky"
    tries: list[int] = field(default_factory=list, compare=False)

    def check(self) -> None: ...

    async def run(self, emit: Emitter) -> None:
        self.tries.append(1)
        if len(self.tries) < 3:
            raise OSError("the share is gone")
        await emit([make_event()])
        emit.up()
        await asyncio.Event().wait()


async def test_a_failing_trigger_is_reported_and_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(tmp_path, [note]) as service:
        trigger = Flaky()
        emit = service.process.emitter(trigger, lambda _event: (note,))
        service.process.emitters["flaky"] = emit
        service.process.supervisor.start(emit)

        async def fails() -> bool:
            return emit.status.problem == "OSError: the share is gone"

        await eventually(fails)
        assert "trigger flaky: OSError: the share is gone" in service.process.problems()

        async def watches() -> bool:
            return emit.status.problem is None

        await eventually(watches)
        assert len(await service.all_finished()) == 1
        assert len(trigger.tries) == 3
        assert b'turnout_trigger_up{trigger="flaky"} 1.0' in service.process.metrics.render()
    said = capsys.readouterr().err
    assert said.count('"trigger.down"') == 1, said  # once for a reason, however often it fails
    assert '"error":"OSError: the share is gone"' in said
    assert said.count('"trigger.up"') == 1, said


@dataclass(frozen=True)
class Sore:
    """Ends a cancel with an error of its own, as a client does whose connection is gone."""

    name: str = "sore"
    kind: str = "sore"

    def check(self) -> None: ...

    async def run(self, emit: Emitter) -> None:
        emit.up()
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("the handler is closed")


async def test_a_trigger_that_errs_while_it_is_stopped_has_stopped(tmp_path: Path) -> None:
    async with running(tmp_path, [note]) as service:
        emit = service.process.emitter(Sore(), lambda _event: (note,))
        service.process.supervisor.start(emit)

        async def watches() -> bool:
            return emit.status.problem is None

        await eventually(watches)
        async with asyncio.timeout(2):
            await service.process.supervisor.stop("sore")
