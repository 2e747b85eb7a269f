"""Signatures as people read them: names, annotations as written, defaults that mean something."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, get_overloads

from turnout.service.domain.units import format_duration

_WIDTH = 88


def subject_of(value: Any) -> Any:
    """Return what has the docstring and the signature: of an object that is called, its call."""
    called = inspect.getattr_static(type(value), "__call__", None)
    return called.__func__ if isinstance(called, staticmethod) else value


def shown(name: str, value: Any, subject: Any) -> str:
    """Return how a name is written, with each form it has."""
    if not callable(subject):
        return f"{name}: {type(value).__name__}"
    if name == "Service":
        return f"class {name}"  # nobody makes one by hand
    found = inspect.signature(subject)
    first = next(iter(found.parameters.values()), None)
    if first is not None and first.name == "function" and first.default is None:
        kept = [each for each in found.parameters.values() if each is not first]
        return f"@{name}\n@{name}{written(found.replace(parameters=kept), returns=False)}"
    if first is not None and first.name == "function":
        return f"@{name}"
    forms = _forms(subject, found)
    prefix = "await " if inspect.iscoroutinefunction(getattr(value, "function", None)) else ""
    prefix = "async with " if hasattr(subject, "__wrapped__") and name == "serve" else prefix
    returns = not inspect.isclass(value)
    return "\n".join(f"{prefix}{written(each, name=name, returns=returns)}" for each in forms)


def _forms(subject: Any, found: inspect.Signature) -> Sequence[inspect.Signature]:
    """Return the overloads where they have names of their own, with the defaults of the code."""
    overloads = get_overloads(subject) if inspect.isroutine(subject) else []
    forms = [inspect.signature(each) for each in overloads]
    if all(set(each.parameters) <= set(found.parameters) for each in forms) or len(forms) > 3:
        return [found]
    return [
        form.replace(
            parameters=[
                each.replace(default=found.parameters[each.name].default)
                if each.default is ... and each.name in found.parameters
                else each
                for each in form.parameters.values()
            ]
        )
        for form in forms
    ]


def parameters_of(name: str, subject: Any) -> Sequence[str]:
    """Return the parameters that are shown, each once."""
    if not callable(subject) or name == "Service":
        return ()
    forms = _forms(subject, inspect.signature(subject))
    shown = [
        each.name
        for form in forms
        for each in form.parameters.values()
        if not _is_refused(each) and (each.name, each.default) != ("function", None)
    ]
    return tuple(dict.fromkeys(shown))


def defaults_of(subject: Any) -> Mapping[str, str]:
    """Return the defaults worth telling: not those that stand for "none"."""
    if not callable(subject):
        return {}
    return {
        name: text
        for name, each in inspect.signature(subject).parameters.items()
        if each.default not in (inspect.Parameter.empty, None, (), "", b"", timedelta(0))
        and (text := _default(each.default)) != "…"
    }


def written(
    found: inspect.Signature, *, name: str = "", returns: bool = True, skip_first: bool = False
) -> str:
    """Return a signature as a formatter writes it: on one line if it fits, else one a parameter."""
    given = list(found.parameters.values())[1 if skip_first else 0 :]
    listed = [each for each in given if not _is_refused(each)]
    parts = list(_arguments(listed))
    answer = found.return_annotation
    arrow = f" -> {_annotation(answer)}" if returns and answer is not found.empty else ""
    line = f"{name}({', '.join(parts)}){arrow}"
    if len(line) <= _WIDTH or skip_first:
        return line
    return f"{name}(\n" + "".join(f"    {each},\n" for each in parts) + f"){arrow}"


def _is_refused(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is there to be refused by name, whatever it is given."""
    more = parameter.kind is parameter.VAR_POSITIONAL and parameter.name == "more"
    return more or bool(parameter.annotation == "Never")


def _arguments(listed: Sequence[inspect.Parameter]) -> Iterator[str]:
    starred = False
    for number, each in enumerate(listed):
        if each.kind is each.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        starred = starred or each.kind is each.VAR_POSITIONAL
        stars = "*" * (each.kind is each.VAR_POSITIONAL) + "**" * (each.kind is each.VAR_KEYWORD)
        kind = "" if each.annotation is each.empty else f": {_annotation(each.annotation)}"
        default = "" if each.default is each.empty else f" = {_default(each.default)}"
        if not kind:
            default = default.replace(" ", "")
        yield f"{stars}{each.name}{kind}{default}"
        following = listed[number + 1].kind if number + 1 < len(listed) else None
        if each.kind is each.POSITIONAL_ONLY and following is not each.POSITIONAL_ONLY:
            yield "/"


def _annotation(value: Any) -> str:
    return value if isinstance(value, str) else inspect.formatannotation(value)


def _default(value: Any) -> str:
    if isinstance(value, timedelta):
        return f'"{format_duration(value)}"'
    if isinstance(value, datetime):
        return "START"
    text = repr(value)
    if text.startswith(("<", "b''")) or value is ...:
        return "…"
    return text.replace("'", '"')
