"""The rule of each kind of window."""

from __future__ import annotations

from collections.abc import Mapping

from .absent import AbsentRule
from .all_of import AllOfRule
from .batch import BatchRule
from .count import CountRule
from .debounce import DebounceRule
from .sequence import SequenceRule
from .window import Rule

RULES: Mapping[str, Rule] = {
    "debounce": DebounceRule(),
    "batch": BatchRule(),
    "count": CountRule(),
    "sequence": SequenceRule(),
    "all_of": AllOfRule(),
    "absent": AbsentRule(),
}
