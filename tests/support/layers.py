"""The picture of the rooms of the code, from the imports as they are.

A room is a folder or a module of `service`, or a folder above `service`. An
arrow means "imports from". An arrow that others imply is left out, so that what is drawn is the
order in which the rooms stand on each other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from . import CHECKOUT

ABOVE = ("triggers", "handlers")


def picture() -> str:
    """Return the rooms and their imports as a mermaid flowchart."""
    lines = ["```mermaid", "flowchart TD"]
    lines += [f"    {room} --> {below}" for room, below in sorted(essential(imports()))]
    return "\n".join([*lines, "```", ""])


def imports() -> dict[str, set[str]]:
    """Return which rooms each room imports from."""
    found: dict[str, set[str]] = {}
    for folder in ("service", *ABOVE):
        for path in sorted((CHECKOUT / folder).rglob("*.py")):
            place = path.relative_to(CHECKOUT).with_suffix("").parts
            room = room_of(place)
            if room is not None and "examples" not in place:
                others = {below for each in _imported(path, place) if (below := room_of(each))}
                found.setdefault(room, set()).update(others - {room})
    return found


def room_of(parts: tuple[str, ...]) -> str | None:
    """Return the room of a module, given as the parts of its path."""
    if parts[0] in ABOVE:
        return parts[0]
    return parts[1] if len(parts) > 1 and parts[1] != "__init__" else None


def _imported(path: Path, place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the parts of each module of ours that a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        named = tuple(node.module.split(".")) if node.module else ()
        if node.level:
            base = place[: -node.level] + named
        elif named[:1] == ("turnout",) and len(named) > 1:
            base = named[1:]
        else:
            continue
        if base == ("service",):
            yield from ((*base, alias.name) for alias in node.names)
        elif base and base[0] in ("service", *ABOVE):
            yield base


# ---- which arrows are drawn


def essential(graph: Mapping[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Yield the edges of an acyclic graph that no longer path implies."""
    for room, below in graph.items():
        for other in below:
            if not any(other in reachable(graph, between) for between in below - {other}):
                yield room, other


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Return everything below a room."""
    found: set[str] = set()
    left = [start]
    while left:
        for below in graph.get(left.pop(), ()):
            if below not in found:
                found.add(below)
                left.append(below)
    return found
