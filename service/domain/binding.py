"""From an event to a function's arguments, by the function's annotations.

Everything is decided once, when the flow is declared: a parameter that no event could fill is a
`SetupError` at the flow's file and line. Triggers decode, annotations validate: at run time data
that does not fit is `InvalidData` naming the field, or the parameter, never retried.

`Event` is the event itself, `Path` its file, `bytes` the raw body; anything else, `str` too, comes
from the data. Data that does not fit as decoded is validated again as JSON, or as a form, so that a
strict model takes a UUID from JSON and a list takes a form field that was sent once. Without a body
`bytes` and `str` are empty, and what may be None is None.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from .errors import FOREIGN, CodeChanged, InvalidData, SetupError, words_of
from .event import Event
from .event_columns import EventColumns
from .payload import Form
from .resource import Resource
from .shape import adapter, explain, mentions
from .unpickle import unpickle

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Fill = Callable[[Event], Any]
"""Makes one argument of an event."""

UNANNOTATED: Any = inspect.Signature.empty
"""The `returns` of a function that does not say what it returns."""

_NO_RESOURCES: Mapping[str, Resource[Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Binding:
    """How an event fills one function's parameters, and what the function says it returns.

    `resources` maps parameters to the resources to inject; `arguments` leaves those out.
    `declared` maps the others to their annotations. `members` fill the items of the lists that a
    flow over a window is called with; called by hand, it takes a list from the data of one event.
    """

    fills: tuple[tuple[str, Fill], ...] = ()
    optional: tuple[tuple[str, Fill, Callable[[Event], bool]], ...] = ()
    resources: Mapping[str, Resource[Any]] = field(default_factory=lambda: _NO_RESOURCES)
    returns: Any = UNANNOTATED
    declared: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[tuple[str, Fill, TypeAdapter[Any] | None], ...] = ()

    @property
    def hands_path(self) -> bool:
        """Whether a parameter is the path of the event's file."""
        given = [fill for _, fill, *_ in (*self.fills, *self.optional, *self.members)]
        return _path in given or _path_or_none in given

    @property
    def needs_path(self) -> str | None:
        """The parameter that only the path of a file fills, None if there is none."""
        return next((name for name, fill in self.fills if fill is _path), None)

    @property
    def filled_from_data(self) -> list[str]:
        """The required parameters that need the event's data or file, not the event itself."""
        return [name for name, fill in self.fills if fill is not _event]

    @classmethod
    def of(
        cls, function: Callable[..., Any], *, file: str, line: int, flow: str, many: bool = False
    ) -> Binding:
        """Read a function's annotations; raises `SetupError` for what no event can fill.

        With `many` each parameter is a list, one item for each event of a window.
        """
        try:
            return _read(function, many=many)
        except SetupError as error:
            raise SetupError(f"flow {flow!r}: {error.message}", file=file, line=line) from None

    def arguments(self, event: Event) -> dict[str, Any]:
        """Return the arguments for `event`; raises `InvalidData` naming the field."""
        if event.exact is not None:
            return self._called(event, event.exact)
        filled = {name: fill(event) for name, fill in self.fills}
        for name, fill, present in self.optional:
            if present(event):
                filled[name] = fill(event)
        return filled

    def of_member(self, event: Event) -> dict[str, Any]:
        """Return the items that one event fills in; raises `InvalidData` naming the field."""
        return {name: fill(event) for name, fill, _ in self.members}

    def of_members(self, events: Sequence[Event]) -> dict[str, Any]:
        """Return the arguments for events, one item of each list for each event."""
        return {name: [fill(event) for event in events] for name, fill, _ in self.members}

    def of_columns(self, columns: EventColumns) -> dict[str, list[Any]]:
        """Return what `of_members` does, and forget the decoded data: they are the flow's now."""
        filled = {name: _column(fill, checks, columns) for name, fill, checks in self.members}
        columns.data = []
        return filled

    def _called(self, event: Event, exact: bytes) -> dict[str, Any]:
        """Fill the parameters of a flow that a flow called: some as they were given."""
        try:
            given: dict[str, Any] = unpickle(exact)
        except FOREIGN as error:
            raise CodeChanged(
                f"the arguments of this call no longer fit the code ({words_of(error)}); call the "
                f"flow again"
            ) from error
        gone = given.keys() - self.declared.keys()
        if gone:
            raise CodeChanged(f"the flow was called with {min(gone)!r}, which it no longer takes")
        filled = {name: fill(event) for name, fill in self.fills if name not in given}
        for name, fill, present in self.optional:
            if name not in given and present(event):
                filled[name] = fill(event)
        return filled | given


# ---------------------------------------------------------------- reading a signature


@dataclass(slots=True)
class _Parameter:
    """A parameter with its source; `body`: filled from the body, `data`: from the decoded body."""

    name: str
    annotation: Any
    fill: Fill
    body: bool
    data: bool
    required: bool
    checks: TypeAdapter[Any] | None = None


def _read(function: Callable[..., Any], *, many: bool) -> Binding:
    signature = inspect.signature(function)
    hints = _hints(function)
    resources: dict[str, Resource[Any]] = {}
    parameters: list[_Parameter] = []
    members: list[_Parameter] = []
    declared: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        _refuse_shape(parameter)
        annotation = hints.get(parameter.name, UNANNOTATED)
        required = parameter.default is inspect.Parameter.empty
        if annotation is UNANNOTATED:
            if required:
                raise SetupError(
                    f"parameter {parameter.name!r} has no annotation; say what fills it: "
                    f"`{parameter.name}: Event`, a model, `dict`, `bytes`, `str` or `Path`"
                )
            declared[parameter.name] = Any
            continue
        resource = _resource_of(annotation)
        if resource is not None:
            resources[parameter.name] = resource
        else:
            declared[parameter.name] = annotation
            if many:
                members.append(_source(parameter.name, _item(parameter.name, annotation), True))
                parameters.append(_listed(parameter.name, annotation, members[-1], required))
            else:
                parameters.append(_source(parameter.name, annotation, required))
    _refuse_rivals(members or parameters)
    return Binding(
        fills=tuple((each.name, each.fill) for each in parameters if each.required),
        optional=_optional(parameters),
        resources=MappingProxyType(resources) if resources else _NO_RESOURCES,
        returns=hints.get("return", UNANNOTATED),
        declared=declared,
        members=tuple((each.name, each.fill, each.checks) for each in members),
    )


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise SetupError(
            f"annotation {error.name!r} is not known when the flow runs; import or define it at "
            f"the top of the file, not under TYPE_CHECKING or inside a function"
        ) from None
    except (TypeError, SyntaxError, AttributeError) as error:
        raise SetupError(f"an annotation cannot be read: {error}") from None


def _refuse_shape(parameter: inspect.Parameter) -> None:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
        raise SetupError(f"{stars}{parameter.name} cannot be filled; name each parameter")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise SetupError(f"parameter {parameter.name!r} is positional only; drop the `/`")


def _refuse_rivals(parameters: list[_Parameter]) -> None:
    """Refuse two parameters filled from one body: which one gets it would be a guess."""
    rivals = [each.name for each in parameters if each.data and each.required]
    if not any(each.body and each.required for each in parameters):
        rivals = [each.name for each in parameters if each.body]
    if len(rivals) > 1:
        names = " and ".join(repr(name) for name in rivals)
        raise SetupError(
            f"parameters {names} would both be filled from the event's data; declare one model "
            f"that holds both, or take `event: Event`"
        )


def _optional(
    parameters: list[_Parameter],
) -> tuple[tuple[str, Fill, Callable[[Event], bool]], ...]:
    """Return the parameters with a default, and when an event fills them instead."""
    taken = any(each.body and each.required for each in parameters)
    return tuple(
        (each.name, each.fill, _has_body if each.body else _has_path)
        for each in parameters
        if not each.required and not (each.body and taken)
    )


def _has_body(event: Event) -> bool:
    return event.has_body


def _has_path(event: Event) -> bool:
    return event.path is not None


def _resource_of(annotation: Any) -> Resource[Any] | None:
    if get_origin(annotation) is typing.Annotated:
        for extra in annotation.__metadata__:
            if isinstance(extra, Resource):
                return extra
    if isinstance(annotation, Resource):
        raise SetupError(
            f"{annotation.name!r} is a resource, not a type; write it as "
            f"`Annotated[T, {annotation.name}]`"
        )
    return None


# ---------------------------------------------------------------- lists, of the events of a window


def _item(name: str, annotation: Any) -> Any:
    """Return what the items of a list are; raises `SetupError` for what is no list."""
    if annotation is list:
        return Any
    if get_origin(annotation) in (list, Sequence):
        return get_args(annotation)[0]
    shown = getattr(annotation, "__name__", str(annotation))
    raise SetupError(
        f"parameter `{name}: {shown}`: the flow is called with a list, one item for each event of "
        f"its window; write `{name}: list[{shown}]`"
    )


def _listed(name: str, annotation: Any, item: _Parameter, required: bool) -> _Parameter:
    """Return how one event fills a list, when the flow is called by hand or by another flow."""
    if item.data:
        return _source(name, annotation, required)
    return _Parameter(
        name,
        annotation,
        lambda event: [item.fill(event)],
        body=item.body,
        data=item.data,
        required=required or item.required,
    )


# ---------------------------------------------------------------- where an argument comes from


def _source(name: str, annotation: Any, required: bool) -> _Parameter:
    kind, may_be_none = _kind(annotation)
    body = data = False
    fill: Fill
    checks: TypeAdapter[Any] | None = None
    if kind is Event:
        required, fill = True, _event
    elif kind is Path:
        required, fill = required or may_be_none, _path_or_none if may_be_none else _path
    elif kind is bytes:
        body, fill = True, _body_or_none if may_be_none else _body
    else:
        body = data = True
        fill, checks = _data_fill(name, annotation)
    if kind in (Path, bytes) and annotation not in (kind, kind | None):
        fill = _constrained(name, annotation, fill)
    return _Parameter(
        name, annotation, fill, body=body, data=data, required=required, checks=checks
    )


def _kind(annotation: Any) -> tuple[Any, bool]:
    """Return what an annotation is below its constraints and names, and whether it may be None."""
    if get_origin(annotation) is typing.Annotated:
        return _kind(get_args(annotation)[0])
    if isinstance(annotation, typing.NewType):
        return _kind(annotation.__supertype__)
    if type(annotation).__name__ == "TypeAliasType":  # from typing, or typing_extensions
        with suppress(NameError):  # which whoever makes the adapter will tell of
            return _kind(annotation.__value__)
    if get_origin(annotation) in (Union, UnionType):
        others = [each for each in get_args(annotation) if each is not NoneType]
        if len(others) == 1:
            return _kind(others[0])[0], True
    return annotation, False


def _column(fill: Fill, checks: TypeAdapter[Any] | None, columns: EventColumns) -> list[Any]:
    """Return what each event fills in; `checks` are those of the data, if they alone fill it."""
    if fill is _data:
        return columns.data
    if checks is None:
        return [fill(event) for event in columns.decoded()]
    try:
        return list(map(checks.validator.validate_python, columns.data))
    except ValueError:
        return [fill(event) for event in columns]  # it fits as it was sent, or tells the field


def _event(event: Event) -> Event:
    return event


def _body(event: Event) -> bytes:
    return event.body if event.has_body else b""


def _body_or_none(event: Event) -> bytes | None:
    return event.body if event.has_body else None


def _data(event: Event) -> Any:
    return event.data


def _path(event: Event) -> Path:
    path = event.path
    if path is None:
        raise InvalidData(f"the flow wants a file, and event {event.id} ({event.type}) has none")
    return path


def _path_or_none(event: Event) -> Path | None:
    return event.path


def _text(name: str, event: Event) -> str:
    data = event.data if event.has_body else ""
    if isinstance(data, str):
        return data
    if not isinstance(data, bytes):
        raise InvalidData(f"parameter {name!r}: Input should be a valid string")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidData(
            f"the body is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from None


# ---------------------------------------------------------------- what pydantic validates


def _data_fill(name: str, annotation: Any) -> tuple[Fill, TypeAdapter[Any] | None]:
    """Return what fills a parameter from the data, and what checks the data for it."""
    if annotation in (Any, object):
        return _data, None
    if annotation is str:
        return partial(_text, name), None
    checks = _adapter(name, annotation)
    if mentions(annotation, Event):
        raise SetupError(
            f"parameter {name!r}: an Event inside data would be the sender's word; "
            f"write `event: Event` for the event itself"
        )
    kind, may_be_none = _kind(annotation)
    is_text = kind is str and not may_be_none

    def fill(event: Event) -> Any:
        data = "" if is_text and not event.has_body else event.data
        try:
            return checks.validator.validate_python(data)
        except ValueError as error:
            with _naming(name):
                return _validated_as_sent(event, checks, error)

    return fill, checks


def _constrained(name: str, annotation: Any, source: Fill) -> Fill:
    checks = _adapter(name, annotation)

    def fill(event: Event) -> Any:
        given = source(event)
        with _naming(name):
            return validated(checks.validate_python, given)

    return fill


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the parameter where it takes the data as a whole, so that no field is to blame."""
    try:
        yield
    except InvalidData as error:
        if error.field is not None:
            raise
        raise InvalidData(f"parameter {name!r}: {error}") from None


def _adapter(name: str, annotation: Any) -> TypeAdapter[Any]:
    try:
        return adapter(annotation)
    except TypeError as error:
        shown = getattr(annotation, "__name__", str(annotation))
        raise SetupError(
            f"parameter `{name}: {shown}` cannot be filled from an event ({error}); use Event, "
            f"a pydantic model, a dataclass, a TypedDict, dict, list, bytes, str or Path"
        ) from None


def validated(validate: Callable[[Any], Any], data: Any) -> Any:
    """Return what `validate` makes of data; raises `InvalidData` naming the field."""
    try:
        return validate(data)
    except ValueError as error:
        raise _refusal(error) from None


def _refusal(error: ValueError) -> Exception:
    from pydantic import ValidationError  # not for every event: an import is a look-up

    if not isinstance(error, ValidationError):
        return error
    message, field = explain(error)
    return InvalidData(message, field=field)


def _validated_as_sent(event: Event, checks: TypeAdapter[Any], error: ValueError) -> Any:
    """Validate refused data again in the form it was sent: as JSON, or as a form."""
    if event.encoding == "json" and event.body:
        return validated(checks.validate_json, event.body)
    if event.encoding == "form" and event.has_body:
        read = _corrected(event.data, error)
        is_flat = all(isinstance(value, str) for value in read.values())
        return validated(checks.validate_strings if is_flat else checks.validate_python, read)
    raise _refusal(error) from None


_LISTS = frozenset({"list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type"})
_CHOICES = frozenset({"enum", "literal_error"})


def _corrected(data: Form, error: ValueError) -> Form:
    """Return a refused form with lists where lists are expected, and without unfilled fields.

    A form cannot say what is a list. An empty field is text where text is expected; elsewhere
    nobody filled it in, so its default applies.
    """
    from pydantic import ValidationError

    read = dict(data)
    problems = error.errors(include_input=False) if isinstance(error, ValidationError) else ()
    for problem in problems:
        name = next((str(part) for part in problem["loc"] if part in data), "")
        value, kind = data.get(name), problem["type"]
        if isinstance(value, str) and kind in _LISTS:
            read[name] = [value]
        elif value == "" and (kind.endswith("_parsing") or kind in _CHOICES):
            read.pop(name, None)
    return read
