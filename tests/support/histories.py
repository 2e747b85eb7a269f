"""Random histories of a machine: drawn from a seed, played the same each time, and shortened.

A history is drawn from its seed and its number alone, not from the histories before it, the clock,
or the order of a set. It is plain data, so that one that fails can be played again as it is printed
(`replay`), and shortened: what may be left out while it fails in the same way is left out.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, ClassVar, TypeAlias, TypeVar

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where machines have their files: most histories write much that nobody reads again."""

MOST_TRIES = 300
"""How many shorter histories are tried."""

_Value = TypeVar("_Value")
_Method = TypeVar("_Method", bound=Callable[..., None])

# ---------------------------------------------------------------- what is drawn


@dataclass(frozen=True)
class Draw:
    """A value to be drawn, and the simplest one, which a shortened history has instead."""

    draw: Callable[[Random], Any]
    simplest: Any = None


def integers(least: int, most: int) -> Draw:
    """Draw a number between two, both included."""
    return Draw(lambda random: random.randint(least, most), least)


def booleans() -> Draw:
    """Draw yes or no."""
    return Draw(lambda random: random.random() < 0.5, False)


def one_of(*values: Any) -> Draw:
    """Draw one of these values; the first is the simplest."""
    return Draw(lambda random: random.choice(values), values[0])


def zero_or(most: int) -> Draw:
    """Draw zero half the time, else a number up to `most`."""
    return Draw(lambda random: 0 if random.random() < 0.5 else random.randint(1, most), 0)


def tuples(*parts: Draw) -> Draw:
    """Draw a value of each."""
    simplest = tuple(each.simplest for each in parts)
    return Draw(lambda random: tuple(each.draw(random) for each in parts), simplest)


def lists(of: Draw, least: int, most: int) -> Draw:
    """Draw a list of so many values."""
    return Draw(
        lambda random: [of.draw(random) for _ in range(random.randint(least, most))],
        [of.simplest] * least,
    )


def drawn(draws: Mapping[str, Draw], random: Random) -> dict[str, Any]:
    """Draw a value for each name."""
    return {name: each.draw(random) for name, each in draws.items()}


# ---------------------------------------------------------------- machines


@dataclass(frozen=True)
class _Kind:
    """An action of a machine: what is drawn for it, and whether it is possible now."""

    draws: Mapping[str, Draw]
    possible: Callable[[Any], object]


_KINDS: dict[Callable[..., None], _Kind] = {}


def action(
    possible: Callable[[Any], object] = lambda _machine: True, **draws: Draw
) -> Callable[[_Method], _Method]:
    """Declare a method of a machine as an action; its arguments are drawn."""

    def declare(method: _Method) -> _Method:
        _KINDS[method] = _Kind(draws, possible)
        return method

    return declare


class Machine:
    """What histories are played on. Its actions are the methods that `action` declares.

    `weights` are those of actions that are not drawn as often as the others.
    """

    weights: ClassVar[Mapping[str, float]] = {}

    @classmethod
    def beginning(cls) -> Mapping[str, Draw]:
        """Return what is drawn for `begin`."""
        return {}

    def begin(self, *drawn: Any, **named: Any) -> None:
        """Begin, with what was drawn by name."""

    def finish(self) -> None:
        """Bring it to its end, where more can be checked."""

    def clear(self) -> None:
        """Leave nothing behind, whatever has happened."""

    @classmethod
    def kinds(cls) -> dict[str, _Kind]:
        """Return the actions, by name."""
        methods = inspect.getmembers(cls, inspect.isfunction)
        return {name: _KINDS[method] for name, method in methods if method in _KINDS}


# ---------------------------------------------------------------- histories

Action: TypeAlias = "tuple[str, dict[str, Any]]"
"""The name of an action, and its arguments."""


@dataclass(frozen=True)
class History:
    """How a machine begins, and what is done to it then."""

    begin: Mapping[str, Any]
    actions: Sequence[Action] = field(default=())

    def __str__(self) -> str:
        actions = "".join(f"        {each!r},\n" for each in self.actions)
        return f"    {dict(self.begin)!r},\n    [\n{actions}    ],\n"


def play(
    machine: type[Machine], count: int, *, seed: int = 0, length: int = 30, shortens: bool = True
) -> None:
    """Play histories of a seed; raises `AssertionError` for the first that fails."""
    for number in range(count):
        play_one(machine, number, seed=seed, length=length, shortens=shortens)


def play_one(
    machine: type[Machine], number: int, *, seed: int = 0, length: int = 30, shortens: bool = True
) -> None:
    """Play one history of a seed."""
    random = Random(f"{seed}.{number}")
    begin = drawn(machine.beginning(), random)
    played: list[Action] = []
    error = _failure(machine, begin, _choose(machine, random, length), played)
    if error is None:
        return
    history = History(begin, played)
    if shortens:
        history = shortest(machine, history, error)
    raise AssertionError(
        f"{str(error) or type(error).__name__}\n"
        f"This is history {number} of seed {seed}; shortened, it is\nreplay(\n"
        f"    {machine.__name__},\n{history})"
    ) from error


def replay(machine: type[Machine], begin: Mapping[str, Any], actions: Iterable[Action]) -> None:
    """Play a history as it was printed; raises what it raises."""
    error = _failure(machine, begin, _fixed(actions), [])
    if error is not None:
        raise error


Choose: TypeAlias = Callable[[Machine], Action]
"""Says what is done next to a machine as it is now."""


def _fixed(actions: Iterable[Action]) -> Iterator[Choose]:
    """Yield choices that are made already."""

    def always(action: Action) -> Choose:
        return lambda _machine: action

    return map(always, actions)


def _choose(machine: type[Machine], random: Random, length: int) -> Iterator[Choose]:
    """Yield so many choices; each history does some things more often, and some not at all."""
    kinds = machine.kinds()

    def weight(name: str) -> float:
        given = machine.weights.get(name)
        return random.choice([0, 1, 1, 1, 3]) if given is None else given * random.choice([1, 1, 3])

    weights = {name: weight(name) for name in kinds}

    def choose(played: Machine) -> Action:
        names = [name for name, kind in kinds.items() if kind.possible(played)]
        chances = [weights[name] or 0.01 for name in names]
        (name,) = random.choices(names, chances)
        return name, drawn(kinds[name].draws, random)

    return (choose for _ in range(length))


def _failure(
    machine: type[Machine],
    begin: Mapping[str, Any],
    choices: Iterable[Choose],
    played: list[Action],
) -> Exception | None:
    """Play a history, and note what was played; returns how it failed."""
    made = machine()
    kinds = machine.kinds()
    try:
        made.begin(**begin)
        for choose in choices:
            name, arguments = choose(made)
            if kinds[name].possible(made):
                played.append((name, arguments))
                getattr(made, name)(**arguments)
        made.finish()
    except Exception as error:  # noqa: BLE001  whatever it is, the history has failed
        return error
    finally:
        made.clear()
    return None


# ---------------------------------------------------------------- shortening


def shortest(machine: type[Machine], history: History, error: Exception) -> History:
    """Leave out of a history what can be left out while it fails in the same way."""
    tries = 0

    def fails(shorter: History) -> bool:
        nonlocal tries
        tries += 1
        if tries > MOST_TRIES:
            return False
        found = _failure(machine, shorter.begin, _fixed(shorter.actions), [])
        return found is not None and kind_of(found) == kind_of(error)

    size = len(history.actions)
    while size:
        at = 0
        while at < len(history.actions):
            shorter = replace(
                history, actions=[*history.actions[:at], *history.actions[at + size :]]
            )
            if fails(shorter):
                history = shorter
            else:
                at += size
        size //= 2
    return _simplest(machine, history, fails)


def _simplest(
    machine: type[Machine], history: History, fails: Callable[[History], bool]
) -> History:
    """Give the actions their simplest arguments, as far as the history still fails."""
    kinds = machine.kinds()
    for at, (name, _) in enumerate(history.actions):
        for argument, each in kinds[name].draws.items():
            _, before = history.actions[at]
            changed = (name, before | {argument: each.simplest})
            actions = [*history.actions[:at], changed, *history.actions[at + 1 :]]
            if before[argument] != each.simplest and fails(replace(history, actions=actions)):
                history = replace(history, actions=actions)
    return history


def kind_of(error: Exception) -> tuple[type[Exception], str]:
    """Return what errors have in common that are the same fault of different histories."""
    first = str(error).partition(";")[0]
    return type(error), re.sub(r"\{.*?\}|\[.*?\]|\d+|'.*?'", "", first)
