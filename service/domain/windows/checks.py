"""What the words of windows have in common: reading what an author wrote, refused by name."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from turnout.service.domain import foreign
from turnout.service.domain.errors import SetupError
from turnout.service.domain.trigger import Trigger
from turnout.service.domain.units import MICROSECOND, parse_duration

from .window import MOST_MEMBERS


def one_trigger(word: str, trigger: Any) -> Trigger:
    """Return the trigger a window is over; raises `SetupError` for what is none."""
    if is_window(trigger):
        raise SetupError(
            f"{word}({trigger.kind}(…)): a window is made of triggers, not of another window; let "
            f"a flow with {trigger.kind}(…) emit an event, and write {word}(event(…), …)"
        )
    if isinstance(trigger, list | tuple):
        raise SetupError(
            f"{word}([…]): name one trigger; for several let small flows emit one event, and write "
            f"{word}(event(…), …)"
        )
    if not (hasattr(trigger, "name") and hasattr(trigger, "check")):
        raise SetupError(
            f"{word}({trigger!r}, …): the first argument is a trigger, such as webhook(…), "
            "files(…), kafka(…) or event(…)"
        )
    made: Trigger = trigger
    return made


def is_window(value: object) -> bool:
    """Whether a value is a window, and not a trigger."""
    return hasattr(value, "kind") and hasattr(value, "settings") and hasattr(value, "triggers")


def duration(word: str, option: str, value: str | timedelta) -> int:
    """Read a duration above 0, in microseconds; raises `SetupError` that names the option."""
    try:
        length = parse_duration(value)
    except SetupError as error:
        raise SetupError(f"{word}({option}={value!r}): {error.message}") from None
    if length <= timedelta(0):
        raise SetupError(f"{word}({option}={value!r}): a time is above 0; write it like "
                         '"30s" or "10m"')  # fmt: skip
    return length // MICROSECOND


def members(word: str, option: str, value: Any) -> int:
    """Read how many members make a window whole; raises `SetupError` that names the option."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_MEMBERS:
        raise SetupError(f"{word}({option}={value!r}): write a count from 1 to {MOST_MEMBERS:,}")
    return value


def key_question(word: str, per: Any) -> Callable[..., Any] | None:
    """Return the question `per=` of a window; raises `SetupError` for what cannot be asked."""
    if per is None:
        return None
    if not callable(per):
        raise SetupError(f"{word}(per={per!r}): write a function, per=lambda event: …")
    question: Callable[..., Any] = per
    foreign.refuse_unaskable("per", question)
    return question
