"""The arguments of a child run, as an event: the child gets exactly what its caller passed.

The event's body is for people, keys and filters: JSON, text or bytes. An argument that the body
would not give back exactly (`exact`) is added as a pickle. Annotations still convert, as for every
event: a dict becomes the model it is declared to be.

Not here: starting the run (`children`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from turnout.service.domain.binding import validated
from turnout.service.domain.errors import FOREIGN, InvalidData, NotKept, message_of, words_of
from turnout.service.domain.event import Event, file_url
from turnout.service.domain.flow import Flow
from turnout.service.domain.shape import adapter, reads_alike

from .exact import ATOMS, is_named_tuple, pickled, same
from .step import StepCall


def event_for(flow: Flow[..., Any], call: StepCall) -> Event:
    """Return an event that fills the flow's parameters as the caller gave them.

    Raises `NotKept` for what is not data, and `InvalidData` for what the flow would refuse.
    """
    bound = inspect.signature(flow.function).bind_partial(*call.args, **call.kwargs)
    given = {
        name: value
        for name, value in bound.arguments.items()
        if name not in flow.binding.resources  # the service injects its own
    }
    event = Event(id="", source="", type="", time=call.services.now())
    required = dict(flow.binding.fills)
    for name in sorted(given, key=required.__contains__):  # last: keys and filters read its data
        event = _with(event, flow.binding.declared.get(name), given[name], call)
    exact = _exact(flow, event, given, call)
    return event if not exact else replace(event, exact=_pickled(exact, call))


def _with(event: Event, annotation: Any, value: Any, call: StepCall) -> Event:
    """Return the event with an argument in it, in the form people read."""
    if isinstance(value, Event):
        extensions = dict(event.extensions) | dict(value.extensions)
        return replace(value, extensions=extensions, exact=None)
    if isinstance(value, Path):
        return replace(event, extensions={**event.extensions, "fileurl": file_url(value)})
    if isinstance(value, bytes):
        return replace(event, body=bytes(value), encoding="bytes")
    if annotation is str and isinstance(value, str):
        text = value.encode("utf-8", "backslashreplace")  # half characters are no UTF-8
        return replace(event, body=text, encoding="text")
    return replace(event, body=_json(value, call), datacontenttype="application/json")


def _json(value: Any, call: StepCall) -> bytes:
    from pydantic_core import to_json

    try:
        return to_json(value, inf_nan_mode="null")
    except FOREIGN as error:
        raise NotKept(
            f"{call}: the argument, {type(value).__name__}, is not data ({message_of(error)}); "
            f"pass plain data, a dataclass or a model to another flow"
        ) from None


# ---------------------------------------------------------------- what the body would change


def _exact(
    flow: Flow[..., Any], event: Event, given: Mapping[str, Any], call: StepCall
) -> dict[str, Any]:
    """Return the arguments that the event does not give back as they were given.

    Raises `InvalidData` for one that its annotation does not take, also where it has a default.
    """
    binding = flow.binding
    fills = dict(binding.fills) | {
        name: fill for name, fill, present in binding.optional if present(event)
    }
    exact = {}
    for name, value in given.items():
        if isinstance(value, Event):
            continue  # the flow gets the event of its own run
        try:
            expected = _taken(binding.declared.get(name, Any), value, call)
        except InvalidData as error:
            raise InvalidData(f"argument {name!r}: {error}", field=error.field or name) from None
        if (
            name not in fills
            or not reads_alike(binding.declared.get(name, Any))
            or not _is_given_back(fills[name], event, expected)
        ):
            exact[name] = expected
    return exact


def _taken(annotation: Any, value: Any, call: StepCall) -> Any:
    """Return an argument as its annotation has it, or has its JSON, as strict models need."""
    try:
        return _declared(annotation, value)
    except ValueError:
        return validated(adapter(annotation).validate_json, _json(value, call))


def _is_given_back(fill: Callable[[Event], Any], event: Event, expected: Any) -> bool:
    try:
        return same(fill(event), expected)
    except FOREIGN:  # the body says it in a form the flow does not read, such as NaN
        return False


def _declared(annotation: Any, value: Any) -> Any:
    """Return an argument as its annotation has it: as it was given, where that fits."""
    if annotation in (Any, object):
        return value
    checked = adapter(annotation).validate_python(value)
    kind = type(checked)
    if issubclass(kind, Iterator) and not isinstance(value, Iterator):
        return value  # declared as an iterable, which pydantic checks as it is read
    if kind in ATOMS or kind is float:
        return value if isinstance(value, kind) and value == checked else checked
    if kind in (dict, list, set, frozenset, tuple) and isinstance(value, kind):
        return value if same(checked, kind(value)) else checked
    if is_named_tuple(kind) and isinstance(value, kind):
        return value if same((*checked,), (*value,)) else checked
    return checked


def _pickled(exact: Mapping[str, Any], call: StepCall) -> bytes:
    for name, value in exact.items():
        try:
            pickled(value)
        except FOREIGN as error:  # pickling runs the author's __reduce__
            raise NotKept(
                f"{call}: the argument {name!r}, {type(value).__name__}, can be kept neither as "
                f"JSON nor as a pickle ({words_of(error)}); pass plain data, a dataclass or a model"
            ) from None
    data = pickled(dict(exact))  # at once: a part may stand in two of them
    most = call.services.settings.max_blob_bytes
    if len(data) > most:
        raise NotKept(
            f"{call}: the arguments are {len(data):,} bytes and the limit is {most:,} "
            f"(max_blob_bytes); write them to a file and pass where it is"
        )
    return data
