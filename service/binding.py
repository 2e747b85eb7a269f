"""From an event to a function's arguments, by the function's annotations.

Everything is decided once, when the flow is declared: a parameter that no event could fill is a
`SetupError` at the flow's file and line. At run time annotations only validate; the trigger has
decoded (decision 8). Data that does not fit is `InvalidData` naming the field, never retried.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from .errors import InvalidData, SetupError
from .event import Event
from .resource import Resource
from .shape import adapter, explain

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
    """

    fills: tuple[tuple[str, Fill], ...] = ()
    optional: tuple[tuple[str, Fill, Callable[[Event], bool]], ...] = ()
    resources: Mapping[str, Resource[Any]] = field(default_factory=lambda: _NO_RESOURCES)
    returns: Any = UNANNOTATED

    @classmethod
    def of(cls, function: Callable[..., Any], *, file: str, line: int, flow: str) -> Binding:
        """Read a function's annotations; raises `SetupError` for what no event can fill."""
        try:
            return _read(function)
        except SetupError as error:
            raise SetupError(f"flow {flow!r}: {error.message}", file=file, line=line) from None

    def arguments(self, event: Event) -> dict[str, Any]:
        """Return the arguments for `event`; raises `InvalidData` naming the field."""
        filled = {name: fill(event) for name, fill in self.fills}
        for name, fill, present in self.optional:
            if present(event):
                filled[name] = fill(event)
        return filled


# ---------------------------------------------------------------- reading a signature


@dataclass(slots=True)
class _Parameter:
    """A parameter with its source; `body`: made of the body, `data`: of the decoded body."""

    name: str
    annotation: Any
    fill: Fill
    body: bool
    data: bool
    required: bool


def _read(function: Callable[..., Any]) -> Binding:
    signature = inspect.signature(function)
    hints = _hints(function)
    resources: dict[str, Resource[Any]] = {}
    parameters: list[_Parameter] = []
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
            continue
        resource = _resource_of(annotation)
        if resource is not None:
            resources[parameter.name] = resource
        else:
            parameters.append(_source(parameter.name, annotation, required))
    _refuse_rivals(parameters)
    return Binding(
        fills=tuple((each.name, each.fill) for each in parameters if each.required),
        optional=_optional(parameters),
        resources=MappingProxyType(resources) if resources else _NO_RESOURCES,
        returns=hints.get("return", UNANNOTATED),
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
    """Refuse two parameters made of one body: which gets what would be a guess."""
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
    """Parameters with a default: filled when the event has it, and no other one takes the body."""
    taken = any(each.body and each.required for each in parameters)
    return tuple(
        (each.name, each.fill, _has_body if each.body else _has_path)
        for each in parameters
        if not each.required and not (each.body and taken)
    )


def _has_body(event: Event) -> bool:
    return bool(event.body)


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


# ---------------------------------------------------------------- where an argument comes from


def _source(name: str, annotation: Any, required: bool) -> _Parameter:
    plain = get_args(annotation)[0] if get_origin(annotation) is typing.Annotated else annotation
    if plain is Event:
        return _Parameter(name, annotation, _event, body=False, data=False, required=True)
    if plain is Path:
        return _Parameter(name, annotation, _path, body=False, data=False, required=required)
    if _is_optional_path(plain):
        return _Parameter(name, annotation, _path_or_none, body=False, data=False, required=True)
    if plain is bytes:
        return _Parameter(name, annotation, _body, body=True, data=False, required=required)
    if plain is str:
        return _Parameter(name, annotation, _text, body=True, data=False, required=required)
    fill = _data if annotation in (Any, object) else _validated(name, annotation)
    return _Parameter(name, annotation, fill, body=True, data=True, required=required)


def _is_optional_path(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType) and set(get_args(annotation)) == {
        Path,
        NoneType,
    }


def _event(event: Event) -> Event:
    return event


def _body(event: Event) -> bytes:
    return event.body


def _data(event: Event) -> Any:
    return event.data


def _text(event: Event) -> str:
    try:
        return event.body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidData(
            f"the body is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from None


def _path(event: Event) -> Path:
    path = event.path
    if path is None:
        raise InvalidData(f"the flow wants a file, and event {event.id} ({event.type}) has none")
    return path


def _path_or_none(event: Event) -> Path | None:
    return event.path


def _validated(name: str, annotation: Any) -> Fill:
    try:
        checks: TypeAdapter[Any] = adapter(annotation)
    except TypeError as error:
        shown = getattr(annotation, "__name__", str(annotation))
        raise SetupError(
            f"parameter `{name}: {shown}` cannot be filled from an event ({error}); use Event, "
            f"a pydantic model, a dataclass, a TypedDict, dict, list, bytes, str or Path"
        ) from None
    from pydantic import ValidationError

    def fill(event: Event) -> Any:
        try:
            return checks.validate_python(event.data)
        except ValidationError as error:
            message, place = explain(error)
            raise InvalidData(message, field=place) from None

    return fill
