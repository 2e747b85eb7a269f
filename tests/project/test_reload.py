"""Somebody saves a flow file, and the service hears of it.

On loops of their own: the watcher asks for the working folder once, which the guard of the other
tests takes for a blocked loop.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from turnout.service.project.reload import changes


async def first_change(watched: Path, *files: Path) -> set[Path]:
    """Save `files` again and again (the watch may not have begun) until one is noticed."""
    found: set[Path] = set()

    async def watch() -> None:
        async for changed in changes([watched], warn=print):
            found.update(changed)
            return

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch())
        while not watching.done():
            for file in files:
                await asyncio.to_thread(file.write_text, "x = 1\n")
            await asyncio.wait([watching], timeout=0.2)
    return found


def test_a_neighbour_of_a_flow_file_is_noticed(tmp_path: Path) -> None:
    flows, helper = tmp_path / "flows.py", tmp_path / "helper.py"
    flows.write_text("x = 0\n")
    assert asyncio.run(first_change(flows, helper)) == {helper}


def test_what_is_not_python_is_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("data.csv", ".swap.py", "flows.py~")]
    new = tmp_path / "new.py"
    assert asyncio.run(first_change(tmp_path, *others, new)) == {new}
