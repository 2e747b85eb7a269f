"""`turnout trigger seek` beside a reader that outlives its stop, in a service that runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.support.program import Program, turnout, until

FLOWS = """
import asyncio
from functools import partial
from pathlib import Path
from turnout import Event, flow
from turnout.service.domain.trigger import SeekPlan
from turnout.service.domain.units import utc_now

FOLDER = Path(__file__).parent

class Counter:
    name = kind = "counter"
    tasks = []

    def check(self):
        pass

    async def run(self, emit):
        at = int((await emit.positions()).get("0", "0"))
        with (FOLDER / "begun").open("a") as lines:
            lines.write(f"{at}\\n")
        # A mistake: this task goes on when the trigger is stopped.
        self.tasks.append(asyncio.get_running_loop().create_task(self.read(emit, at)))
        emit.up()
        await asyncio.Event().wait()

    async def read(self, emit, at):
        try:
            while True:
                at += 1
                event = Event(id=str(at), source="/counter", type="counted", time=utc_now())
                await emit([event], {"0": str(at)})
                await asyncio.sleep(0.001)
        except Exception as error:
            with (FOLDER / "refused").open("a") as lines:
                lines.write(f"{type(error).__name__} {at}\\n")

    async def plan(self, seek, positions, connection):
        return SeekPlan(positions={"0": seek.to}, sentences=[f"on from {seek.to}"])

@flow(on=Counter())
def count():
    pass
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_seek_is_not_undone_by_a_reader_that_outlives_its_stop(tmp_path: Path) -> None:
    flows, data = tmp_path / "flows.py", tmp_path / "data"
    flows.write_text(FLOWS)

    def lines(name: str) -> list[str]:
        file = tmp_path / name
        return file.read_text().split("\n")[:-1] if file.exists() else []

    def reads_on_from(place: int) -> bool:
        return 0 < int(program.api("/events?limit=1")["items"][0]["id"]) - place < 50_000

    with Program(flows=flows, data=data, log=tmp_path / "log").start() as program:
        program.ready()
        places = (100_000, 500)
        for place in places:
            until(lambda: program.api("/events?limit=1")["items"], 10, "events")
            sought = turnout(
                "trigger", "seek", "counter", "--to", str(place), "--yes", "--data", data
            )
            assert (sought.returncode, sought.stdout) == (0, f"on from {place}\n"), sought.stderr
            until(partial(reads_on_from, place), 10, "it reads on from there")
        until(lambda: len(lines("refused")) == len(places), 10, "every older reader is refused")
        assert {line.split()[0] for line in lines("refused")} == {"PositionsMoved"}
        assert lines("begun") == ["0", *map(str, places)]
        program.stop()
