"""The contract of a gate: what a rule of flow control answers when a run asks to start.

A gate decides by what it has counted and by the time it is given. It reads no journal and no
clock, and waits for nothing: the same calls give the same answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeAlias

from turnout.service.domain.decisions import Fact
from turnout.service.domain.run import Keys, Start
from turnout.service.domain.waiting import Cause


class Candidate(Protocol):
    """A run that asks to start, or that has started.

    `isolated`: the process died twice in a row while it ran. `resumes`: it comes back from a wait,
    or for the next try of a task. `token` is the number of its admission, unique in this process,
    while the run is inside the gates; 0 means it is not running. `starts` are what throttles have
    counted at its last admission. `queued_at` is when the run was
    accepted, None if it is being accepted now; `due_at` when it was due, None if it was at once.
    """

    flow: str
    token: int
    starts: Sequence[Start]

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def order_key(self) -> str | None: ...  # noqa: D102
    @property
    def keys(self) -> Keys | None: ...  # noqa: D102
    @property
    def priority(self) -> int | None: ...  # noqa: D102
    @property
    def isolated(self) -> bool: ...  # noqa: D102
    @property
    def cause(self) -> Cause | None: ...  # noqa: D102
    @property
    def queued_at(self) -> datetime | None: ...  # noqa: D102
    @property
    def due_at(self) -> datetime | None: ...  # noqa: D102
    @property
    def resumes(self) -> bool: ...  # noqa: D102


Answer: TypeAlias = datetime | Literal["behind"] | None
"""None: open. An instant: ask again then. "behind": ask again when a run has left the gate."""


class Gate(ABC):
    """One rule, for one flow or, if `shared`, for the runs of all flows.

    `check` has no effect. A run that every gate lets pass enters them all, and leaves them all when
    it no longer runs; a run that one gate refuses enters none. A gate that `counts_starts` counts
    what has started and not what runs: nothing changes when a run leaves it.
    """

    name: ClassVar[str]
    shared: ClassVar[bool] = False
    cause: ClassVar[Cause] = Cause.TURN
    """What a refused run waits for, in reports and metrics."""
    rule_id: str = ""
    """Where a run keeps its key for this gate; empty: it keeps none."""
    counts_starts: ClassVar[bool] = False
    named: str = ""
    """The name under which flows share this gate; empty: it is of one flow, or of all."""

    def key(self, run: Candidate) -> str | None:
        """Return the key under which a run waits here; None: its whole flow waits with it."""
        keys = run.keys  # as `key_of`, without a call: each gate asks several times a run
        return keys.get(self.rule_id) if self.rule_id and keys is not None else None

    def key_of(self, keys: Keys | None) -> str | None:
        """Return which of a run's keys is the one for this gate."""
        return keys.get(self.rule_id) if self.rule_id and keys is not None else None

    @abstractmethod
    def check(self, run: Candidate, now: datetime) -> Answer:
        """Say whether a run may start now, else when it asks again."""

    def enter(self, run: Candidate, now: datetime) -> None:  # noqa: B027  not every gate counts
        """Count a run that starts, or that was running before a reload declared this gate."""

    def leave(self, run: Candidate) -> None:  # noqa: B027
        """Count a run no more: it does not run now."""

    def suspend(self, run: Candidate) -> None:
        """Count a run that has not ended but waits, for its next try or what it awaits."""
        self.leave(run)

    def is_held_by(self, run: Candidate) -> bool:
        """Whether a run has kept its slot here while it does not run."""
        return False

    def start(self, run: Candidate, now: datetime) -> Start | None:
        """Count the start of a run that has entered; return what the journal records of it."""
        return None

    def give_back(self, run: Candidate) -> None:  # noqa: B027
        """Forget `run.starts`: the run was not started after all."""

    def inherit(self, other: Gate) -> None:  # noqa: B027
        """Count what a flow that has been renamed has started at its gate of the same kind."""

    def facts(self, run: Candidate) -> Mapping[str, Fact]:
        """Return what was asked, for people: the rule, its count and limit, who holds the key."""
        return {}

    def free_slots(self) -> int | None:
        """Return how many more runs may enter, whatever their key; None without such a bound."""
        return None


NamedGates: TypeAlias = dict[tuple[str, str], Gate]
"""The gates that flows share by a name, by kind and name."""


class Refusal(NamedTuple):
    """The first gate that refuses a run, and its answer."""

    gate: Gate
    answer: Answer
