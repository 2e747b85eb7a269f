"""The rule of each kind of window."""

from __future__ import annotations

from collections.abc import Mapping

from .batch import BatchRule
from .debounce import DebounceRule
from .window import Rule

RULES: Mapping[str, Rule] = {
    "debounce": DebounceRule(),
    "batch": BatchRule(),
}
