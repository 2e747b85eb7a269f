"""From an annotation to what checks data against it: one cached pydantic `TypeAdapter` each.

Pydantic is imported at the first annotation that needs it. `typing.TypedDict` works on Python 3.11
too, where pydantic itself asks for the one of `typing_extensions`.
"""

from __future__ import annotations

import sys
import types
import typing
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

_adapters: dict[Any, TypeAdapter[Any] | str] = {}
"""By annotation: its adapter, or why it has none (finding that out again costs a millisecond)."""


def adapter(annotation: Any) -> TypeAdapter[Any]:
    """Return the adapter of an annotation; raises `TypeError` when pydantic cannot describe it."""
    try:
        known = _adapters.get(annotation)
    except TypeError:  # an unhashable annotation, such as Annotated[int, []]
        known = _build(annotation)
    else:
        if known is None:
            known = _adapters[annotation] = _build(annotation)
    if isinstance(known, str):
        raise TypeError(known)
    return known


def explain(error: ValidationError) -> tuple[str, str | None]:
    """Return (one readable line, path of the first bad field) of a validation error.

    The data itself is left out: it may be private.
    """
    problems = error.errors(include_input=False, include_url=False)
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"]) or None
    text = first["msg"] if field is None else f"{field}: {first['msg']}"
    more = len(problems) - 1
    return (text if not more else f"{text} (and {more} more)"), field


def _build(annotation: Any) -> TypeAdapter[Any] | str:
    from pydantic import PydanticUserError, TypeAdapter
    from pydantic.errors import PydanticUndefinedAnnotation

    try:
        return TypeAdapter(_readable(annotation, {}))
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        return str(error).splitlines()[0]


def _readable(annotation: Any, seen: dict[Any, Any]) -> Any:
    """Swap each `typing.TypedDict` for its equal that pydantic reads before Python 3.12."""
    if sys.version_info >= (3, 12):
        return annotation
    if typing.is_typeddict(annotation):
        return _typed_dict(annotation, seen)
    arguments = get_args(annotation)
    if not arguments or get_origin(annotation) is typing.Literal:
        return annotation
    swapped = tuple(_readable(argument, seen) for argument in arguments)
    if all(new is old for new, old in zip(swapped, arguments, strict=True)):
        return annotation
    if isinstance(annotation, types.UnionType):
        return Union[swapped]  # noqa: UP007  a union of values known at run time only
    if get_origin(annotation) is typing.Annotated:
        return typing.Annotated[(swapped[0], *annotation.__metadata__)]
    return annotation.copy_with(swapped) if hasattr(annotation, "copy_with") else (
        get_origin(annotation)[swapped]
    )  # fmt: skip


def _typed_dict(declared: Any, seen: dict[Any, Any]) -> Any:
    import typing_extensions

    if type(declared).__module__ != "typing":
        return declared
    if declared in seen:
        return seen[declared]
    hints = typing.get_type_hints(declared, include_extras=True)
    fields = {
        name: _readable(hint, seen)
        if name in declared.__required_keys__
        else typing_extensions.NotRequired[_readable(hint, seen)]
        for name, hint in hints.items()
    }
    twin = typing_extensions.TypedDict(declared.__name__, fields)  # type: ignore[misc]  # name and fields are known at run time only
    twin.__module__ = declared.__module__
    twin.__doc__ = declared.__doc__
    seen[declared] = twin
    return twin
