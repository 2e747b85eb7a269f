"""How many mistakes are told with their place and the fix, and which first users made."""

from __future__ import annotations

from .at_the_command import AT_THE_COMMAND, AtTheCommand
from .in_actions import IN_ACTIONS
from .in_files import IN_FILES
from .mistake import InFile
from .while_running import ASKED, WHILE_RUNNING, Asked, WhileRunning

LEAST = 102
"""As many mistakes as first users were found to make, and forty more."""

MOST_WITHOUT_FIX = 2
"""Of 102, 95 are to name place and fix; all but these do, and of the first users' all."""

FIRST_USERS = {
    "work(1) without await": "a task that is not awaited",
    'emit("a.b", {}) without await': "an emit that is not awaited",
    "work(work(1))": "a call as an argument",
    "a def flow calls an async task": "an async task in a def flow",
    "a step left behind": "a call that nobody awaits, which the source does not show",
    "blocking code in an async flow, in the source": "time.sleep in an async flow",
    "blocking code in an async flow, as it runs": "code that blocks the loop for seconds",
    "retries that are silent, of a step": "a step that is tried again",
    "an event of the wrong shape": "data that one of two flows cannot take",
    "when= with a KeyError": "when= that raises",
    "when=lambda: True": "when= without an argument",
    "/github instead of /hooks/github": "a path without /hooks",
    "a refused signature": "a signature that is missing",
    "retries that multiply": "retries that multiply",
    "a method as a task": "a method as a task",
    "a method as a flow": "a method as a flow",
    "flow(retires=3)": "retires for retry",
    'flow(webhook="/a")': "a trigger as an option of its own",
    "task(retries=3)": "retries, as other tools call it",
    'on="/a"': "a path where a trigger belongs",
    "from turnout import schedule": "an import of what other tools have",
    "a secret of three characters": "a secret of three characters",
    "--port 99999": "a port that is too high",
    "--data /proc/x": "a data folder that cannot be made",
    "--data afile": "a data folder that is a file",
    "a damaged journal": "a journal that is damaged in the middle",
    "an unknown run": "a run that does not exist",
    'files("~/inbox/*.csv")': "the home folder",
    'files("inbox/")': "a folder without a pattern",
    "Kafka down": "a broker that does not answer",
    "current().run_id, in the source": "current().run_id",
    "current().run_id, as it runs": "what the run does not have",
    "a mutable default": "a list as the default of a flow's parameter",
    "a circular import": "two files that import each other",
    "a syntax error": "a syntax error",
    "def task called in an async flow": "a def task in an async flow",
}
"""What first users wrote, as it was noted down, and its title in the table.

They made 62 mistakes. Those whose message was right at once were counted and not noted down, so the
others of the table stand for them.
"""


def test_nearly_every_mistake_is_told_with_its_fix() -> None:
    table: list[InFile | AtTheCommand | WhileRunning | Asked] = [
        *IN_FILES,
        *IN_ACTIONS,
        *AT_THE_COMMAND,
        *WHILE_RUNNING,
        *ASKED,
    ]
    titles = [each.title for each in table]
    assert len(set(titles)) == len(titles) >= LEAST
    without = [each.title for each in table if not each.fix]
    assert len(without) <= MOST_WITHOUT_FIX, without
    with_fix = {each.title for each in table if each.fix}
    assert set(FIRST_USERS.values()) - with_fix == set()
