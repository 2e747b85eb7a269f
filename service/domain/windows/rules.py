"""The rule of each kind of window."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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

ONLY_JOINS: Mapping[str, Callable[[WindowSettings, int, int, int], bool]] = {
    "batch": BatchRule.only_joins,
}
"""By kind, whether an event only joins an open window that is not due, which stays as it is.

Asked of the settings, the number of members, their size, and that of the event: where most events
do no more, the rule itself need not be asked.
"""
