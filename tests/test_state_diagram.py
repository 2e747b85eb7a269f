"""The README's picture of the run states is the transition table, no more and no less."""

from __future__ import annotations

import re

from turnout.service.run import FINISHED, TRANSITIONS

from .readme import README, parts, state_diagram


def test_readme_shows_the_diagram_as_generated() -> None:
    shown = parts(README.read_text("utf-8"))["service/run.py"]
    assert shown == state_diagram(), "run: python -m tests.readme"


def test_diagram_draws_every_transition_once_and_no_other() -> None:
    arrows = re.findall(r"^    (\S+) --> (\S+)", state_diagram(), re.MULTILINE)
    ends = {(str(state), "[*]") for state in FINISHED}
    moves = {
        (str(state or "[*]"), str(target))
        for state, targets in TRANSITIONS.items()
        for target in targets
    }
    assert len(arrows) == len(set(arrows))
    assert set(arrows) == moves | ends
