"""The rule of each kind of window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .absent import AbsentRule
from .all_of import AllOfRule
from .batch import BatchRule
from .count import CountRule
from .debounce import DebounceRule
from .sequence import SequenceRule
from .window import Rule, WindowSettings

RULES: Mapping[str, Rule] = {
    "debounce": DebounceRule(),
    "batch": BatchRule(),
    "count": CountRule(),
    "sequence": SequenceRule(),
    "all_of": AllOfRule(),
    "absent": AbsentRule(),
}

ONLY_JOIN: Mapping[str, Callable[[WindowSettings, int, int, Sequence[int]], int]] = {
    "batch": BatchRule.only_join,
}
"""By kind, how many of the next events only join an open window that is not due, which stays as is.

Asked of the settings, the number of members, their size, and those of the events: where most events
do no more, the rule itself need not be asked.
"""
