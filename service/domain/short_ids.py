"""Short forms of ids: what lists show, and every command and address takes.

Ids that turnout makes begin with the time, so runs of one minute begin alike; their last characters
are random. A sender's id is shown whole where it is short, else as its first and last characters
with `…` between them. Pure: which ids a short form fits, the journal tells.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection

from .errors import NotFound

SHORTEST = 8
"""The fewest characters of an id that name it."""

CUT = "…"
_HALF = 6
"""How many characters of both ends stand for a sender's long id."""
_LAST_GROUP = 12

_MINTED = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_PART = re.compile(rf"[0-9a-f-]{{{SHORTEST},35}}")
_DOUBLES_PER_ROW = 1_000_000
"""One in so many short forms may fit another id of the journal too; a command then says so."""


class Ambiguous(NotFound):
    """Raised for a short form that fits several ids."""

    def __init__(self, what: str, name: str, fitting: Collection[str]) -> None:
        count = f"{len(fitting)} {what}s" if len(fitting) < MOST_NAMED else f"many {what}s"
        shown = sorted(fitting, reverse=True)[:5]
        more = ", …" if len(fitting) > len(shown) else ""
        short = shorten(shown, among=0)
        names = ", ".join(short[each] for each in shown)
        begin = all(each.startswith(name) for each in fitting)
        how = "begin" if begin else "end" if CUT not in name else "look"
        super().__init__(f"{count} {how} so: {names}{more}; {name!r} is not enough")


MOST_NAMED = 100
"""How many ids are looked for that a short form fits."""


def shorten(ids: Collection[str], *, among: int) -> dict[str, str]:
    """Return the short form of each id: unique among these, and among so many of the journal."""
    length = max(SHORTEST, math.ceil(math.log(max(among, 1) * _DOUBLES_PER_ROW, 16)))
    half = _HALF
    found: dict[str, str] = {}
    distinct = list(dict.fromkeys(ids))
    while distinct:
        made = {each: _cut(each, length, half) for each in distinct}
        taken = {form for form, count in Counter(made.values()).items() if count > 1}
        found |= {each: form for each, form in made.items() if form not in taken}
        distinct = [each for each, form in made.items() if form in taken]
        length, half = length + 2, half + 2
    return found


def _cut(whole: str, length: int, half: int) -> str:
    if _MINTED.fullmatch(whole):
        return whole[-length:] if length <= _LAST_GROUP else whole
    return whole if len(whole) <= 2 * half + 1 else f"{whole[:half]}{CUT}{whole[-half:]}"


def ends_of(name: str) -> tuple[str, str] | None:
    """Return how an id begins and ends that is named by its short form; None for a whole id.

    Of a part of an id that turnout has made, both are the same: it may be either end.
    """
    for sign in (CUT, "..."):
        if sign in name:
            first, _, last = name.partition(sign)
            return (first, last) if len(first) + len(last) >= SHORTEST else None
    return (name, name) if _PART.fullmatch(name) else None
