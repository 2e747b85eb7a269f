"""Types of events by pattern: `order.*` and `com.example.**`.

A type is parts between dots. `*` stands for any characters within one part, or for a whole part;
`**` is a part of its own and stands for one or more whole parts. Matching takes time in proportion
to pattern times type, whatever a sender sends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

MAX_TYPE_CHARACTERS = 256
EMITTERS = frozenset({"api", "emit"})
"""The triggers of emitted events, which start flows by their type: the API, and running flows."""


def event_name(event_type: str) -> str:
    """Return the name of the trigger `event(event_type)`."""
    return f"event:{event_type}"


def pattern_of(name: str) -> str | None:
    """Return the pattern of types in a trigger's name; None for one type, or another trigger."""
    kind, _, heard = name.partition(":")
    return heard if kind == "event" and is_pattern(heard) else None


def is_pattern(event_type: str) -> bool:
    """Whether the text stands for several types."""
    return "*" in event_type


def problem_of_type(event_type: str, example: str) -> str | None:
    """Return why no flow emits a type or listens to it, None if flows may; `example` shows how.

    CloudEvents ask for no more than a text that is not empty: events from outside may have others.
    """
    if not event_type or not event_type.isprintable() or " " in event_type:
        return f"a type is one word, as in {example}"
    if len(event_type) > MAX_TYPE_CHARACTERS:
        return f"a type has at most {MAX_TYPE_CHARACTERS} characters"
    return None


def problem_of_emit(event_type: str) -> str | None:
    """Return what is wrong with a call `emit(event_type, …)`, None if nothing is."""
    problem = problem_of_type(event_type, 'emit("order.paid", data)')
    if problem is None:
        return None
    return f"emit({_shown(event_type)}): {problem}, and no flow can listen to another"


def problem_of_event(event_type: str) -> str | None:
    """Return what is wrong with a trigger `event(event_type)`, None if nothing is."""
    problem = problem_of_type(event_type, 'event("com.example.order.paid")')
    problem = problem or problem_of(event_type)
    return None if problem is None else f"event({_shown(event_type)}): {problem}"


def _shown(event_type: str) -> str:
    return f"{event_type!r}" if len(event_type) <= MAX_TYPE_CHARACTERS else f"{event_type[:32]!r}…"


def problem_of(pattern: str) -> str | None:
    """Return what is wrong with a pattern, None if nothing is."""
    for part in pattern.split("."):
        if "**" in part and part != "**":
            return f"** stands for whole parts, so write it between dots, not as {part!r}"
    return None


def matches(pattern: str, event_type: str) -> bool:
    """Whether a type is the one, or one of those, that the pattern stands for."""
    if "*" not in pattern:
        return pattern == event_type
    return _fits(_parts(pattern), event_type.split("."), "**", _part_fits)


@lru_cache(maxsize=1024)
def _parts(pattern: str) -> tuple[str, ...]:
    """Return the parts; `**` as a whole part and any number of others."""
    parts: list[str] = []
    for part in pattern.split("."):
        parts += ("*", "**") if part == "**" else (part,)
    return tuple(parts)


def _part_fits(pattern: str, part: str) -> bool:
    if "*" not in pattern:
        return pattern == part
    return bool(part) and _fits(pattern, part, "*", str.__eq__)


def _fits(
    pattern: Sequence[str], text: Sequence[str], star: str, fits: Callable[[str, str], bool]
) -> bool:
    """Match item by item, `star` with any number; on a mismatch the last star takes one more."""
    at = done = 0
    star_at: int | None = None
    taken_to = 0
    while done < len(text):
        if at < len(pattern) and pattern[at] == star:
            star_at, taken_to = at, done
            at += 1
        elif at < len(pattern) and fits(pattern[at], text[done]):
            at, done = at + 1, done + 1
        elif star_at is not None:
            taken_to += 1
            at, done = star_at + 1, taken_to
        else:
            return False
    return all(item == star for item in pattern[at:])


def have_common_type(one: str, other: str) -> bool:
    """Whether there is a type that both patterns stand for."""
    return _meet(_parts(one), _parts(other), "**", lambda mine, its: _meet(mine, its, "*"))


def _meet(
    one: Sequence[str],
    other: Sequence[str],
    star: str,
    fits: Callable[[str, str], bool] = str.__eq__,
) -> bool:
    """Whether a text fits both patterns; in each, `star` stands for any number of items."""
    met = [True]  # whether so much of `one`, and so far nothing of `other`, have a text in common
    for mine in one:
        met.append(met[-1] and mine == star)
    for its in other:
        row = [met[0] and its == star]
        for at, mine in enumerate(one):
            either = row[-1] or met[at + 1]  # the star stands for nothing, or takes one item more
            row.append(either if star in (mine, its) else met[at] and fits(mine, its))
        met = row
    return met[-1]
