"""What verbs act on, and the registry of their handlers.

A handler is a function of the parts and the verb, in the module of its subject. It writes to the
journal first; then the local owner of the runs, if there is one, acts before the verb returns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from turnout.service.domain.conditions import Mode
from turnout.service.domain.decisions import Reason
from turnout.service.domain.run import Run
from turnout.service.domain.units import utc_now
from turnout.service.journal.contract import Alerts, Intake, Operations, Windows, Work
from turnout.service.journal.records import Appended, ClosedWindows, Retried
from turnout.service.project import Project

from .names import no_run
from .verbs import Verb

if TYPE_CHECKING:
    from turnout.service.intake.emitter import TriggerEmitter

R = TypeVar("R")


class VerbJournal(Operations, Intake, Work, Windows, Alerts, Protocol):
    """What verbs need: an operator's writes, positions that move, runs of a renamed flow."""


class Owner(Protocol):
    """The local owner of the runs: it acts on what a verb has written (`Dispatcher`)."""

    def cancel(self, run: Run) -> None:
        """Stop a run whose cancel is on disk."""

    def release_key(self, run: Run) -> None:
        """Release the ordering key of a run that is not running."""

    def skipped(self, runs: Sequence[Run], reason: Reason) -> None:
        """Let go of runs that were ended before they began, and count the decisions about them."""

    def ended_for(self, ended: Appended | Retried) -> None:
        """Stop the older runs that new ones have ended on disk."""

    def recheck_due(self) -> None:
        """Check for due runs now."""

    def changing(self, flows: Iterable[str]) -> AbstractContextManager[None]:
        """Start no run of these flows inside the block, in which their runs are changed on disk."""


class NoOwner:
    """Nobody owns the runs of a journal at rest: the next service reads what was written."""

    def cancel(self, run: Run) -> None:
        """Stop nothing."""

    def release_key(self, run: Run) -> None:
        """Release nothing."""

    def skipped(self, runs: Sequence[Run], reason: Reason) -> None:
        """Forget nothing."""

    def ended_for(self, ended: Appended | Retried) -> None:
        """Stop nothing."""

    def recheck_due(self) -> None:
        """Check nothing."""

    def changing(self, flows: Iterable[str]) -> AbstractContextManager[None]:
        """Hold nothing back."""
        return nullcontext()


def _nothing_to_start(_closed: ClosedWindows) -> None:
    """Start no run, where nothing runs: the next service finds it queued."""


async def _nothing_to_refresh() -> None:
    """Apply nothing, where nothing runs."""


def _nothing_to_stop(_trigger: str) -> AbstractAsyncContextManager[None]:
    """Stop no trigger, where none is running."""
    return nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The journal, and the parts of the running service if there is one.

    `wall` is the wall clock, which timers follow, and `now` the engine's time.
    `connection` gives the options of a client by its kind, `stopped` stops a trigger inside a
    block, `refresh_pauses` and `refresh_limits` have the service do what the journal says; `closed`
    has it start the runs of windows that a verb has closed.
    """

    journal: VerbJournal
    now: Callable[[], datetime]
    wall: Callable[[], datetime] = utc_now
    owner: Owner = field(default_factory=NoOwner)
    project: Callable[[], Project] = Project
    emitters: Callable[[], Mapping[str, TriggerEmitter]] = dict
    api: TriggerEmitter | None = None
    connection: Callable[[str], Mapping[str, Any]] | None = None
    stopped: Callable[[str], AbstractAsyncContextManager[None]] = _nothing_to_stop
    refresh_pauses: Callable[[], Awaitable[None]] = _nothing_to_refresh
    refresh_limits: Callable[[], Awaitable[None]] = _nothing_to_refresh
    closed: Callable[[ClosedWindows], None] = _nothing_to_start

    @property
    def in_service(self) -> bool:
        """Whether a service is running here: it logs what operators do."""
        return self.api is not None

    def mode_of(self, *flows: str) -> Mode | None:
        """Return the mode of the first flow that is loaded and has one."""
        loaded = (self.project().flows.get(name) for name in flows)
        conditions = (flow.conditions for flow in loaded if flow is not None)
        return next((each.mode for each in conditions if each is not None), None)

    def may_block(self, flow: str) -> bool:
        """Whether dead letters of a flow hold their ordering key; those of one not loaded may."""
        loaded = self.project().flows.get(flow)
        return loaded is None or loaded.on_dead == "block"

    def current_name(self, flow: str) -> str:
        """Return the current name of a flow, which may have been renamed (`was=`)."""
        names = (other.name for other in self.project().flows.values() if other.was == flow)
        return next(names, flow)


_WHOLE_CHARACTERS = 36


async def whole_id(parts: Parts, name: str) -> str:
    """Return the id of the run with this id or short form; raises `NotFound`.

    A whole id is not looked for: whoever writes to the run does that, and nothing comes between.
    """
    if len(name) == _WHOLE_CHARACTERS:
        return name
    run = await parts.journal.run(name)
    if run is None:
        raise no_run(name)
    return run.id


Handler = Callable[[Parts, Any], Awaitable[R]]
Planner = Callable[[Parts, Any], Awaitable[Sequence[str]]]

HANDLERS: dict[type[Verb[Any]], Handler[Any]] = {}
"""The handler of each verb; `handles` fills it."""


def handles(verb: type[Verb[R]]) -> Callable[[Handler[R]], Handler[R]]:
    """Make a function the handler of a verb."""

    def register(handler: Handler[R]) -> Handler[R]:
        HANDLERS[verb] = handler
        return handler

    return register


PLANNERS: dict[type[Verb[Any]], Planner] = {}
"""What says of each verb what it would do; `plans` fills it."""


def plans(verb: type[Verb[Any]]) -> Callable[[Planner], Planner]:
    """Make a function say what a verb would do: a sentence each, such as "pause flow bill".

    It writes nothing, and raises what the verb would raise.
    """

    def register(planner: Planner) -> Planner:
        PLANNERS[verb] = planner
        return planner

    return register
