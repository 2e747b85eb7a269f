"""From an annotation to what checks data against it: one cached pydantic `TypeAdapter` each.

Pydantic is imported at the first annotation that needs it. `typing.TypedDict` works on Python 3.11
too, where pydantic itself asks for the one of `typing_extensions`.
"""

from __future__ import annotations

import sys
import types
import typing
from collections import OrderedDict, deque
from collections.abc import Mapping
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


def mentions(annotation: Any, kind: type) -> bool:
    """Whether an annotation describes a `kind` anywhere inside."""
    return _mentions(adapter(annotation).core_schema, kind)


def _mentions(schema: Any, kind: type) -> bool:
    if isinstance(schema, dict):
        return schema.get("cls") is kind or any(_mentions(each, kind) for each in schema.values())
    return isinstance(schema, list | tuple) and any(_mentions(each, kind) for each in schema)


def _build(annotation: Any) -> TypeAdapter[Any] | str:
    """Return the adapter of an annotation that is known whole, or why there is none."""
    from pydantic import PydanticUndefinedAnnotation, TypeAdapter

    try:
        made = TypeAdapter(_readable(annotation, {}))
        if not made.pydantic_complete:  # it would say so at the first data
            made.rebuild(raise_errors=True)
    except PydanticUndefinedAnnotation as error:
        return (
            f"its annotation {error.name!r} is not known when the flow runs; import it at the top "
            f"of its file, not under TYPE_CHECKING; write an alias of itself with TypeAliasType"
        )
    except RecursionError:
        return "it refers to itself; write it as a class, or with TypeAliasType"
    except Exception as error:  # noqa: BLE001  a type may bring code of its own, an author's
        return str(error).partition("\n")[0] or type(error).__name__
    return made


# ---------------------------------------------------------------- typing.TypedDict


def _readable(annotation: Any, seen: dict[Any, Any]) -> Any:
    """Swap each `typing.TypedDict` for its equal that pydantic reads before Python 3.12."""
    if sys.version_info >= (3, 12):
        return annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if _is_foreign(annotation if origin is None else origin):
        return _twin(annotation, seen)
    if not arguments or origin is typing.Literal:
        return annotation
    swapped = tuple(_readable(argument, seen) for argument in arguments)
    if all(new is old for new, old in zip(swapped, arguments, strict=True)):
        return annotation
    if isinstance(annotation, types.UnionType):
        return Union[swapped]  # noqa: UP007  a union of values known at run time only
    if origin is typing.Annotated:
        return typing.Annotated[(swapped[0], *annotation.__metadata__)]
    return annotation.copy_with(swapped) if hasattr(annotation, "copy_with") else (
        origin[swapped]
    )  # fmt: skip


def _is_foreign(declared: Any) -> bool:
    return typing.is_typeddict(declared) and type(declared).__module__ == "typing"


def _twin(annotation: Any, seen: dict[Any, Any]) -> Any:
    """Return the equal of a TypedDict, or of a generic one with its arguments, made once."""
    import typing_extensions

    if annotation in seen:
        return seen[annotation]
    declared = get_origin(annotation) or annotation
    twin = typing_extensions.TypedDict(declared.__name__, {})  # type: ignore[misc]  # noqa: UP013  name and fields are known at run time only
    seen[annotation] = twin  # before its fields, which may lead back to it
    twin.__module__ = declared.__module__
    twin.__qualname__ = declared.__qualname__
    twin.__doc__ = declared.__doc__
    if hasattr(declared, "__pydantic_config__"):
        twin.__pydantic_config__ = declared.__pydantic_config__  # type: ignore[attr-defined]  # pydantic looks for it
    given = dict(zip(getattr(declared, "__parameters__", ()), get_args(annotation), strict=False))
    fields: dict[str, Any] = {}
    required = set()
    for name, hint in typing.get_type_hints(declared, include_extras=True).items():
        is_required, inner = _requirement(hint, name in declared.__required_keys__)
        fields[name] = _readable(_filled(inner, given), seen)
        if is_required:
            required.add(name)
    twin.__annotations__ = fields
    twin.__required_keys__ = frozenset(required)
    twin.__optional_keys__ = frozenset(fields) - required
    return twin


def _requirement(hint: Any, is_required: bool) -> tuple[bool, Any]:
    """Return whether a field must be there, and its type; the words at the field come first.

    Where annotations are postponed the class itself has not seen them.
    """
    if get_origin(hint) is typing.Required:
        return True, get_args(hint)[0]
    if get_origin(hint) is typing.NotRequired:
        return False, get_args(hint)[0]
    return is_required, hint


def _filled(hint: Any, given: Mapping[Any, Any]) -> Any:
    """Return a hint of a generic class with that class's arguments in it."""
    if isinstance(hint, typing.TypeVar):
        return given.get(hint, hint)
    parameters = getattr(hint, "__parameters__", ())
    if not given or not parameters or isinstance(hint, type):
        return hint
    return hint[tuple(given.get(each, each) for each in parameters)]


# ---------------------------------------------------------------- what reading depends on


def reads_alike(annotation: Any) -> bool:
    """Whether the same data is always read as the same value.

    Not where reading asks the clock (`FutureDatetime`) or the disk (`FilePath`), or where a default
    is computed (`default_factory=uuid4`) for a field that the data may leave out.
    """
    try:
        known = _alike.get(annotation)
    except TypeError:  # an unhashable annotation
        return _is_alike(adapter(annotation).core_schema)
    if known is None:
        known = _alike[annotation] = _is_alike(adapter(annotation).core_schema)
    return known


_alike: dict[Any, bool] = {}

_EMPTY = (list, dict, set, frozenset, tuple, str, bytes, int, float, bool, OrderedDict, deque)
"""Factories of defaults that are always the same."""


def _is_alike(schema: Any) -> bool:
    """Whether a schema of pydantic's, or a part of one, has nothing that varies."""
    if isinstance(schema, list | tuple):
        return all(map(_is_alike, schema))
    if not isinstance(schema, dict):
        return True
    kind = schema.get("type")
    if "now_op" in schema or _asks_disk(schema.get("function")):
        return False
    if kind == "model" and not all(
        _is_constant(private.default_factory)
        for private in schema["cls"].__private_attributes__.values()
    ):
        return False
    may_be_left_out = kind == "model-field" or (
        kind == "dataclass-field" and schema.get("init") is False
    )
    if may_be_left_out and not _is_constant(_default_factory(schema["schema"])):
        return False
    return all(_is_alike(part) for name, part in schema.items() if name != "metadata")


def _default_factory(schema: Any) -> Any:
    while schema["type"].startswith("function-") and "schema" in schema:
        schema = schema["schema"]  # below the field's own validators
    return schema.get("default_factory")


def _is_constant(factory: Any) -> bool:
    """Whether a factory makes equal defaults; what a model's own fields hold is looked at there."""
    is_model = isinstance(factory, type) and hasattr(factory, "__pydantic_fields__")
    return factory is None or factory in _EMPTY or is_model


def _asks_disk(validator: Any) -> bool:
    """Whether a validator is that of pydantic's `FilePath`, `DirectoryPath` or the like."""
    function = validator.get("function") if isinstance(validator, dict) else None
    return getattr(function, "__qualname__", "").startswith("PathType.")
