"""Mode: what happens to a new run while another one of its key is under way.

`mode="skip"` ends the new one; `"replace"` cancels every older one, and the new one starts when
they have ended; `"latest"` lets the one under way end, and of those that wait only the newest
stays. Without `key=` the flow has one key. The journal decides this where it stores the run; the
gate here keeps the runs of a key from overlapping.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from turnout.service.domain.conditions import MODE_RULE
from turnout.service.domain.conditions import Mode as Kind
from turnout.service.domain.decisions import Fact
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.waiting import Cause
from turnout.service.project import AnyFlow

from .gate import Candidate, Gate, NamedGates
from .limit import HeldLimit


@dataclass(frozen=True, slots=True)
class Mode:
    """What happens to a new run while another one of its key is under way."""

    kind: Kind
    per: Callable[[Event], Hashable]
    rule_id: ClassVar[str] = MODE_RULE
    option: ClassVar[str] = "key="

    def warning(self, flow: Flow[..., Any]) -> str | None:
        """Return what `turnout check` warns of where a flow declares this mode."""
        if self.kind != "skip" or flow.timeout is not None:
            return None
        return (
            'mode="skip" skips every run behind one that hangs; say how long an attempt may take '
            'at most, timeout="1h"'
        )


def whole_flow(event: Event) -> str:
    """Return the one key of a flow without `key=`."""
    return ""


def checked_mode(mode: object, key: object) -> Mode | None:
    """Return what `mode=` and `key=` declare; raises `SetupError` for what they cannot mean."""
    if mode is None:
        if key is None:
            return None
        raise SetupError(
            'key= says which runs mode= is about; write mode="skip", "replace" or "latest" with '
            "it, or limit(1, per=…) for one run of a key at a time"
        )
    if mode not in get_args(Kind):
        raise SetupError(f'mode={mode!r}: write "skip", "replace" or "latest"')
    if key is not None and not callable(key):
        raise SetupError(f"key={key!r}: write a function, key=lambda event: …")
    return Mode(mode, whole_flow if key is None else key)  # type: ignore[arg-type]  # checked above


def mode_gates(flow: AnyFlow, named: NamedGates) -> list[Gate]:
    """Return the gate of a flow with `mode=`."""
    return [ModeGate(flow.mode)] if isinstance(flow.mode, Mode) else []


class ModeGate(HeldLimit):
    """One run of each key at a time, from its first start to its end."""

    name = MODE_RULE
    cause = Cause.MODE

    def __init__(self, declared: Mode) -> None:
        super().__init__(1, MODE_RULE)
        self.queues_new = declared.kind == "latest"
        self._words = f'mode="{declared.kind}"'

    @property
    def words(self) -> str:
        """The rule as an author writes it."""
        return self._words

    def facts(self, run: Candidate) -> Mapping[str, Fact]:
        """Return the rule, and the run that holds the key."""
        other = next(iter(self.holders(run)), None)
        return {"rule": self.words, "key": self.key(run), "other": other}
