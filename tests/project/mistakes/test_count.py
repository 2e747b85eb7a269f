"""How many of the mistakes are told with their place and the fix."""

from __future__ import annotations

from .at_the_command import AT_THE_COMMAND, AtTheCommand
from .in_files import IN_FILES
from .mistake import InFile
from .while_running import ASKED, WHILE_RUNNING, Asked, WhileRunning

LEAST = 102
"""As many mistakes as first users were found to make, and forty more."""

MOST_WITHOUT_FIX = 7


def test_nearly_every_mistake_is_told_with_its_fix() -> None:
    table: list[InFile | AtTheCommand | WhileRunning | Asked] = [
        *IN_FILES,
        *AT_THE_COMMAND,
        *WHILE_RUNNING,
        *ASKED,
    ]
    titles = [each.title for each in table]
    assert len(set(titles)) == len(titles) >= LEAST
    without = [each.title for each in table if not each.fix]
    assert len(without) <= MOST_WITHOUT_FIX, without
