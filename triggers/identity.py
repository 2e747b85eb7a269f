"""Identity by content: `id=` says what a sender calls the same thing, `dedupe=` for how long.

`id=` is a function of the event, asked once before the event is stored, or the name of a header. A
text is the event's id: within the window, another event of the same trigger and source with that id
is the same event (a duplicate) or, with other content, a conflict. `None` means that the event has
no id of its own: it counts as it does without `id=`. Whatever else the function does (it raises, it
answers with nothing that can be stored) makes a dead letter of the event, under the identity it has
without `id=`; the position moves on, and a replay after a fix runs it. Not here: remembering ids,
and telling a duplicate from a conflict (the journal).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeAlias

from turnout.service.domain import foreign
from turnout.service.domain.condition import condition_of
from turnout.service.domain.errors import SetupError, words_of
from turnout.service.domain.event import ID_ERROR, Event, like
from turnout.service.domain.units import FOREVER, parse_retention
from turnout.service.domain.watched import watched
from turnout.service.governance import secrets
from turnout.service.telemetry.logs import get_logger

log = get_logger("turnout.triggers")

EventId: TypeAlias = Callable[[Event], Hashable]
"""What an author writes as `id=`: answers with what the sender calls the event, or None."""

SHORTEST = timedelta(minutes=1)
"""The shortest window: old deliveries are looked for twice a minute."""

_ERROR_CHARACTERS = 500
_MESSAGE_CHARACTERS = 4000


def identified(event: Event, ask: EventId) -> Event:
    """Return the event with the id that `id=` answers with, or with the reason why there is none.

    The author's function sees a copy of the event.
    """
    try:
        text = _answer(event.own(), ask)
    except Exception as error:  # noqa: BLE001  the author's code: a dead letter, replayable after a fix
        said = _words_of(error, event, ask)
        log.warning("event.without_id", trigger=event.trigger, event=event.id, error=said)
        return like(event, extensions={**event.extensions, ID_ERROR: said})
    return event if text is None else like(event, id=text, minted=False)


def _answer(event: Event, ask: EventId) -> str | None:
    """Return an answer as text, None for none; raises for what is no id."""
    answer = foreign.ask(ask, event)
    if answer is None:
        return None
    text = foreign.as_key("id=", answer)
    if not text:
        raise ValueError('id= answers with ""; answer None for an event without an id')
    return secrets.refuse_live(text, "the id")


def _words_of(error: Exception, event: Event, ask: EventId) -> str:
    """Return an error in words for the journal: with its location, and the values read."""
    copy, reads = watched(event)
    with suppress(Exception):  # the author's code: that it raises is known
        _answer(copy, ask)
    values = "; ".join(f"{path} = {text}" for path, text in reads.shown(secrets.mask).items())
    message = f"{words_of(error)[:_ERROR_CHARACTERS]} (in id=, at {_place_of(error, ask)}"
    message += f", which read {values})" if values else ")"
    masked = secrets.mask(message)[:_MESSAGE_CHARACTERS]
    return masked.encode("utf-8", "backslashreplace").decode()


def _place_of(error: BaseException, ask: EventId) -> str:
    """Return `FILE:LINE` of the function: where in it the error was raised, else where it is."""
    at = error.__traceback__
    while at is not None:
        if at.tb_frame.f_code is getattr(ask, "__code__", None):
            return f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}"
        at = at.tb_next
    return condition_of("id", ask, type(ask).__qualname__, 1).location


# ---------------------------------------------------------------- what an author writes


def window(dedupe: str | timedelta | None) -> timedelta | None:
    """Read `dedupe=`: a duration, or "forever"; raises `SetupError`."""
    if dedupe is None:
        return None
    if not isinstance(dedupe, str | timedelta):
        raise SetupError(f'dedupe={dedupe!r}: write a time such as "3d", or "{FOREVER}"')
    try:
        return parse_retention(dedupe)
    except SetupError as error:
        raise SetupError(f"dedupe={dedupe!r}: {error.message}") from None


def check_window(trigger: str, dedupe: timedelta | None) -> None:
    """Raise `SetupError` for a window that would close before a redelivery can come."""
    if dedupe is not None and dedupe < SHORTEST:
        raise SetupError(f'{trigger}: dedupe= is at least "1m"')


def check_function(trigger: str, ask: object) -> None:
    """Raise `SetupError` unless `id=` is a function that can be asked about an event."""
    if not callable(ask):
        raise SetupError(
            f'{trigger}: id={ask!r}: write a function, such as id=lambda event: event.data["id"]'
        )
    try:
        foreign.refuse_unaskable("id", ask)
    except SetupError as error:
        raise SetupError(f"{trigger}: {error.message}") from None


def refuse_options(kind: str, options: Mapping[str, Any], instead: str) -> None:
    """Raise `SetupError` for `id=` and `dedupe=` on a trigger whose events have their identity.

    Any other unknown option is a `TypeError`, as Python raises it.
    """
    for name in options:
        if name in ("id", "dedupe"):
            raise SetupError(f"{kind}(…, {name}=…): {instead}")
        raise TypeError(f"{kind}() got an unexpected keyword argument {name!r}")
