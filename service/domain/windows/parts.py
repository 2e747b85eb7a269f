"""What patterns have in common: several triggers, a time in which they must come true, its end."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.event_types import have_common_type
from turnout.service.domain.trigger import StartsOnType, Trigger
from turnout.service.domain.units import format_duration

from .checks import duration, key_question, one_trigger
from .window import Kind, OpenWindow, WindowSettings

if TYPE_CHECKING:
    from turnout.service.domain.flow import Flow


@dataclass(frozen=True, slots=True)
class Pattern:
    """A window over several triggers; its kind is the word that an author makes it with."""

    triggers: tuple[Trigger, ...]
    settings: WindowSettings
    per: Callable[[Event], Hashable] | None = None
    on_timeout: Flow[..., object] | None = None
    kind: ClassVar[Kind]


P = TypeVar("P", bound=Pattern)


def pattern(
    kind: type[P],
    triggers: tuple[Trigger, ...],
    within: str | timedelta | None,
    per: Callable[[Event], Hashable] | None,
    on_timeout: Flow[..., object] | None,
) -> P:
    """Return the pattern that an author declares; raises `SetupError` for what cannot be meant."""
    word = kind.kind
    parts = several_triggers(word, triggers)
    settings = WindowSettings(
        kind=word,
        within=within_time(word, within),
        parts=tuple(each.name for each in parts),
        on_timeout=timeout_flow(word, on_timeout),
    )
    return kind(parts, settings, key_question(word, per), on_timeout)


def several_triggers(word: str, triggers: tuple[Any, ...]) -> tuple[Trigger, ...]:
    """Return the triggers of a pattern; raises `SetupError` unless each event has one part."""
    if len(triggers) == 1 and isinstance(triggers[0], list | tuple):
        raise SetupError(f"{word}([…]): write the triggers without brackets, {word}(a, b, …)")
    parts = tuple(one_trigger(word, each) for each in triggers)
    if len(parts) < 2:
        given = parts[0].name if parts else ""
        raise SetupError(
            f"{word}({given}): a pattern has two triggers or more; write "
            f'{word}(event(…), webhook(…), within="10m")'
        )
    for number, part in enumerate(parts):
        for other in parts[:number]:
            _refuse_shared(word, other, part)
    return parts


def _refuse_shared(word: str, one: Trigger, other: Trigger) -> None:
    """Refuse two parts to which the same event could belong."""
    if one.name == other.name:
        hint = "" if word == "absent" else "; for several events of one trigger write count(…)"
        raise SetupError(
            f"{word}({one.name}, {other.name}): each part is a trigger of its own, else an event "
            f"could be either{hint}"
        )
    types = [each.event_type for each in (one, other) if isinstance(each, StartsOnType)]
    if len(types) == 2 and have_common_type(*types):
        raise SetupError(
            f"{word}({one.name}, {other.name}): an event could be of both types; write types that "
            "have no event in common"
        )


def within_time(word: str, within: str | timedelta | None) -> int:
    """Read `within=`, in microseconds; raises `SetupError` where it is missing or is none."""
    if within is None:
        raise SetupError(
            f'{word}(…): say in how much time, {word}(…, within="10m"); without that it would '
            "wait for ever"
        )
    return duration(word, "within", within)


def timeout_flow(word: str, flow: Any) -> str | None:
    """Return the name of the flow of `on_timeout=`; raises `SetupError` for what is none."""
    if flow is None:
        return None
    name = getattr(flow, "name", None)
    if not isinstance(name, str) or not hasattr(flow, "binding"):
        raise SetupError(
            f"{word}(on_timeout={flow!r}): write a flow, a function with @flow that is defined "
            "above this one"
        )
    if getattr(flow, "window", None) is not None:
        raise SetupError(
            f"{word}(on_timeout={name}): that flow has a window of its own; write a flow without "
            "on=, or one with a trigger"
        )
    return name


def length_words(microseconds: int) -> str:
    """Return a duration as people write it."""
    return format_duration(timedelta(microseconds=microseconds))


def missing_words(settings: WindowSettings, window: OpenWindow) -> str:
    """Say what was there of a pattern, and what was missing."""
    present = window.members.parts()
    there = [name for part, name in enumerate(settings.parts) if part in present]
    missing = [name for part, name in enumerate(settings.parts) if part not in present]
    return (
        f"{' and '.join(there)} came, and {' and '.join(missing)} did not within "
        f"{length_words(settings.within)}"
    )
