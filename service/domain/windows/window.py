"""What a window is: what a flow declares, what the journal keeps of it, and the steps of its rule.

A window collects the events of a flow's triggers, its members, until its rule says what becomes of
them. A rule is asked in the transaction that stores an event, in the order of arrival, and again at
the deadline. It answers with steps, without effect; who keeps the window (the journal, a backtest,
a model) applies them in order. Here instants and durations are whole microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence, Set
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from turnout.service.domain.event import Event

if TYPE_CHECKING:
    from turnout.service.domain.flow import Flow
    from turnout.service.domain.trigger import Trigger

Kind: TypeAlias = Literal["debounce", "batch", "count", "sequence", "all_of", "absent"]

Keep: TypeAlias = Literal["last", "all"]
"""Which members the run of a window is called with; all of them are linked to it."""

WhenFull: TypeAlias = Literal["fire", "expire", "ignore"]

MOST_MEMBERS = 10_000
"""A window that has so many members closes before the next one."""

MOST_BYTES = 4 * 2**20
"""A window whose members would be larger together closes before the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSettings:
    """The parameters of a window, as plain data; an open window keeps those it was opened with.

    `period` is the quiet time of a debounce and the timeout of a batch, `longest` how long a
    debounce may be put off, `within` the time in which a pattern must come true. `parts` are the
    names of the triggers of a pattern, in order; empty for a window over one trigger.
    `on_timeout` is the name of the flow that gets the members of a pattern that expires.
    """

    kind: Kind
    period: int = 0
    longest: int = 0
    within: int = 0
    count: int = 0
    max_bytes: int = MOST_BYTES
    keep: Keep = "all"
    parts: tuple[str, ...] = ()
    on_timeout: str | None = None

    @property
    def gives_list(self) -> bool:
        """Whether the flow is called with a list, one item for each member."""
        return self.keep == "all" and self.kind != "absent"

    def part_of(self, trigger: str) -> int | None:
        """Return the part of a trigger in a window, None if it has none there."""
        if not self.parts:
            return 0
        return self.parts.index(trigger) if trigger in self.parts else None

    def is_another(self, before: WindowSettings) -> bool:
        """Whether a window with settings of before is not one that a flow with these opens."""
        if before is self:
            return False
        return before.kind != self.kind or set(before.parts) != set(self.parts)

    def to_json(self) -> str:
        """Return the settings as text, of which `from_json` makes them again."""
        return _to_json(self)

    @classmethod
    def from_json(cls, text: str) -> WindowSettings:
        """Read settings that `to_json` has written."""
        return _from_json(text)


@lru_cache(maxsize=256)  # each window that changes is written with them
def _to_json(settings: WindowSettings) -> str:
    return json.dumps(asdict(settings), separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=256)
def _from_json(text: str) -> WindowSettings:
    values: dict[str, Any] = json.loads(text)
    return WindowSettings(**{**values, "parts": tuple(values["parts"])})


class Window(Protocol):
    """What an author writes in `on=`: `debounce(webhook("/x"), "5s")`.

    `per` returns the key that tells windows apart, None if the flow has one. An event belongs to
    the part of a pattern at whose place its trigger stands in `triggers`.
    """

    @property
    def kind(self) -> Kind: ...  # noqa: D102
    @property
    def triggers(self) -> tuple[Trigger, ...]: ...  # noqa: D102
    @property
    def per(self) -> Callable[[Event], Hashable] | None: ...  # noqa: D102
    @property
    def settings(self) -> WindowSettings: ...  # noqa: D102
    @property
    def on_timeout(self) -> Flow[..., Any] | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Member:
    """An event that is about to join a window: its part, when it was accepted, and its size."""

    part: int
    at: int
    bytes: int


class Members(Protocol):
    """What a rule may ask of the members of an open window; each question may read rows."""

    def parts(self) -> Set[int]:
        """Return the parts of which there is a member."""

    def count_after(self, at: int) -> int:
        """Return how many members were accepted after an instant."""

    def oldest(self) -> int | None:
        """Return when the oldest member was accepted; None without members."""


def is_full(members: int, size: int, more: int) -> bool:
    """Whether a window with so many members, of that size, closes before one of `more` bytes."""
    return members > 0 and (members >= MOST_MEMBERS or size + more > MOST_BYTES)


def most_words() -> str:
    """Say how much is the most for any window."""
    return f"{MOST_MEMBERS:,} events or {MOST_BYTES // 2**20} MiB are the most"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWindow:
    """An open window: its settings, when it opened, its deadline, and its members."""

    settings: WindowSettings
    opened_at: int
    due_at: int | None
    count: int
    bytes: int
    members: Members


# ---------------------------------------------------------------- steps


@dataclass(frozen=True, slots=True)
class Join:
    """The event becomes a member, of a new window if none is open; the deadline is `due_at`."""

    due_at: int | None = None


@dataclass(frozen=True, slots=True)
class Open:
    """A window opens without a member, with a deadline."""

    due_at: int


@dataclass(frozen=True, slots=True)
class Postpone:
    """The deadline moves; nothing else happens."""

    due_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Members leave the window, with one decision `expired` for all of them.

    Those accepted up to the instant `before`, or those of a part.
    """

    words: str
    before: int | None = None
    part: int | None = None


@dataclass(frozen=True, slots=True)
class Fire:
    """The window closes, and its members start one run."""

    words: str = ""


@dataclass(frozen=True, slots=True)
class Expire:
    """The window closes without a run: each member gets a decision `expired`.

    `words` say what was there and what was missing. The flow of `on_timeout=` gets the members.
    """

    words: str


@dataclass(frozen=True, slots=True)
class Ignore:
    """The event does not join: it gets a decision `windowed`."""

    words: str


@dataclass(frozen=True, slots=True)
class Close:
    """The window closes without a run: its members get a decision `windowed`."""

    words: str


@dataclass(frozen=True, slots=True)
class AskAgain:
    """The rule is asked about the event again, now that no window is open.

    So a new window is opened with the settings that its flow has today.
    """


Step: TypeAlias = Join | Open | Postpone | Release | Fire | Expire | Ignore | Close | AskAgain


class Rule(Protocol):
    """The rule of a kind of window; deterministic and without effect.

    `when_full` says what happens when a window is full (`MOST_MEMBERS`, `MOST_BYTES`) and another
    event arrives: the window fires or expires, and the event is asked about again; or the event is
    ignored. Where a full window would fire, an event without a key runs alone at once; it joins no
    window of another kind. A window whose flow declares another kind by now ends in the same way.

    `due_first`: where a deadline has passed when an event arrives, `due` is asked before `arrive`.
    """

    @property
    def when_full(self) -> WhenFull: ...  # noqa: D102
    @property
    def due_first(self) -> bool: ...  # noqa: D102

    def arrive(
        self, settings: WindowSettings, window: OpenWindow | None, member: Member
    ) -> Sequence[Step]:
        """Return what happens as an event arrives, while a window of its key is open or none.

        `settings` are those of the open window, else those of the flow. What is too much for any
        window (`MOST_MEMBERS`, `MOST_BYTES`) has been dealt with.
        """

    def due(self, settings: WindowSettings, window: OpenWindow, at: int) -> Sequence[Step]:
        """Return what happens at the deadline of a window; `at` is not before it."""
