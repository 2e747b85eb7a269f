"""Priority: three classes of runs, and the turns they take.

Among classes with something to start, starts are shared 8 : 2 : 1; an idle class gives its share
away. A class is no strict level: a lower one goes on getting its share, and nothing is preempted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal, TypeAlias

from turnout.service.domain import foreign
from turnout.service.domain.event import Event
from turnout.service.project import AnyFlow

Name: TypeAlias = Literal["high", "normal", "low"]
Priority: TypeAlias = "Name | Callable[[Event], Name]"
"""A class, or a function of the event that returns one."""

HIGH, NORMAL, LOW = 1, 2, 3
CLASSES = (HIGH, NORMAL, LOW)
SHARES = {HIGH: 8, NORMAL: 2, LOW: 1}
NAMES = {"high": HIGH, "normal": NORMAL, "low": LOW}


def class_of(flow: AnyFlow, event: Event) -> int | None:
    """Return the class of a flow's run for an event, None if the flow declares none.

    Raises what the author's function raises, and `ValueError` for an answer that is no class.
    """
    declared = flow.priority
    if declared is None:
        return None
    name = foreign.ask(declared, event) if callable(declared) else declared
    found = NAMES.get(name) if isinstance(name, str) else None
    if found is None:
        raise ValueError(f'priority= is "high", "normal" or "low", not {name!r}')
    return found


class ClassTurns:
    """Whose turn it is among classes: the one that is furthest behind its share.

    Each start gives every class that could start something its share, and takes the sum from the
    class that started. A class with nothing to start earns nothing.
    """

    def __init__(self) -> None:
        self._earned = dict.fromkeys(CLASSES, 0)

    def next(self, ready: Collection[int]) -> int:
        """Return the class whose turn it is among those with something to start."""
        return max(ready, key=lambda each: (self._earned[each] + SHARES[each], -each))

    def started(self, chosen: int, ready: Collection[int]) -> None:
        """Count a start of a class, while these classes had something to start."""
        for each in CLASSES:
            if each in ready:
                self._earned[each] += SHARES[each]
            else:
                self._earned[each] = 0
        self._earned[chosen] -= sum(SHARES[each] for each in ready)
