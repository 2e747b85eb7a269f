"""Budgets of one name and different periods, as `turnout check` finds them over all files."""

from __future__ import annotations

from pathlib import Path

from turnout.service.project.check import check

from .flow_files import fresh, write

__all__ = ["fresh"]  # the fixture

FIRST = """
    from turnout import budget as spend, flow

    HOUR = "1h"
    scaling = spend("scale", max_changes=3, per="1h")
    mails = spend("mails", max_changes=3, per=HOUR)

    @flow
    async def a(name: str) -> None:
        await spend(f"to {name}", max_changes=1, per="1d").take()
"""

SECOND = """
    from datetime import timedelta
    from turnout import budget, flow

    HOUR = timedelta(hours=1)

    @flow
    async def b(name: str) -> None:
        await budget("scale", max_changes=5, per=%s).take()
        await budget("mails", max_changes=3, per=HOUR).take()
        await budget(f"to {name}", max_changes=1, per="2d").take()
"""


def test_another_period_of_the_same_name_is_a_problem_at_its_line(tmp_path: Path) -> None:
    write(tmp_path / "a.py", FIRST)
    write(tmp_path / "b.py", SECOND % '"2h"')
    [told] = check([tmp_path]).problems
    assert (Path(str(told.file)).name, told.line) == ("b.py", 8)
    assert told.message == (
        f"budget('scale') has per='2h' here and per='1h' at {tmp_path}/a.py:4: what is counted "
        "together has one period; write the same one, or another name"
    )


def test_the_same_period_however_it_is_written_is_none(tmp_path: Path) -> None:
    write(tmp_path / "a.py", FIRST)
    write(tmp_path / "b.py", SECOND % '"60m"')
    assert not check([tmp_path]).problems
