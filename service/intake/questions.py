"""What an author's `when=`, `per=` and `ordered_by=` were asked, and what came of it, in words.

A question that has raised is asked once more, of a watched copy of the event, so that its dead
letter shows the values that it read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from turnout.service.domain.errors import words_of
from turnout.service.domain.event import Event
from turnout.service.domain.flow import key_of
from turnout.service.domain.run import FILTER_ERROR, RunError
from turnout.service.domain.tracebacks import is_own, is_standard
from turnout.service.domain.watched import watched
from turnout.service.flowcontrol.priority import class_of
from turnout.service.governance import secrets
from turnout.service.project import AnyFlow
from turnout.service.steps.failures import describe


def failed(flow: AnyFlow, event: Event, error: Exception) -> RunError:
    """Return the error of a dead letter: the error, its file and line, and the values read."""
    option, read = _first_to_raise(
        [
            ("when=", flow.wants),
            ("ordered_by=", flow.order_key),
            *((rule.option, partial(key_of, rule)) for rule in flow.keyed),
            ("priority=", partial(class_of, flow)),
        ],
        event,
    )
    values = "; ".join(f"{path} = {text}" for path, text in read.items())
    message = f"{words_of(error)} (in {option}, at {_location_of(error, flow)}"
    message += f", which read {values})" if values else ")"
    return RunError(FILTER_ERROR, secrets.mask(message), traceback=describe(error).traceback)


def values_read(question: Callable[[Event], object], event: Event) -> Mapping[str, str]:
    """Return what a question reads of an event, also if it raises."""
    copy, reads = watched(event)
    with suppress(Exception):  # the author's code
        question(copy)
    return reads.shown(secrets.mask)


def _first_to_raise(
    asked: Sequence[tuple[str, Callable[[Event], object]]], event: Event
) -> tuple[str, Mapping[str, str]]:
    """Return the option of the first question that raises, and what that reads of an event."""
    for option, question in asked:
        copy, reads = watched(event)
        try:
            question(copy)
        except Exception:  # noqa: BLE001  the author's code: that it raises is known
            return option, reads.shown(secrets.mask)
    return "when= or a key", {}  # such as a key that holds a secret


def _location_of(error: BaseException, flow: AnyFlow) -> str:
    """Return `FILE:LINE` of the author's code that raised, else of the flow."""
    location, at = f"{flow.file}:{flow.line}", error.__traceback__
    while at is not None:
        file = at.tb_frame.f_code.co_filename
        if not (is_own(file) or is_standard(file)):
            location = f"{file}:{at.tb_lineno}"
        at = at.tb_next
    return location
