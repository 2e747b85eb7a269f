"""The operator carries out verbs, in a running service or on the journal of a stopped one.

What there is to do is in `verbs`, how it is done in one module for each subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from . import alerts, cache, flow_state, limits, pauses, replays, runs, triggers, windows
from .parts import HANDLERS, PLANNERS, Parts
from .verbs import Verb

R = TypeVar("R")

SUBJECTS = (alerts, cache, flow_state, limits, pauses, replays, runs, triggers, windows)
"""The modules of the handlers: a module that is not imported here has none."""


class Operator(Parts):
    """Does what an operator asks for."""

    __slots__ = ()

    async def do(self, verb: Verb[R]) -> R:
        """Carry out a verb; it is durable, and the running service acts on it, on return."""
        done: R = await HANDLERS[type(verb)](self, verb)
        return done

    async def plan(self, verb: Verb[Any]) -> Sequence[str]:
        """Return what a verb would do, a sentence each, and do nothing; raises as `do` would."""
        return await PLANNERS[type(verb)](self, verb)
