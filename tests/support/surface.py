"""What users build on, written from the code: signatures, log events, metrics and JSON fields.

`python -m tests.support.surface` rewrites the files in `tests/snapshots/`; a test compares them, so
that a change of the public surface is a decision and is seen in review.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_overloads

from turnout._signatures import subject_of
from turnout.service.telemetry import trace_conventions

from . import CHECKOUT, pages
from .documents import fields_of_documents

SNAPSHOTS = CHECKOUT / "tests" / "snapshots"
CODE = tuple(CHECKOUT / name for name in ("service", "triggers", "handlers", "turnout/testing"))


# ---- signatures


def signatures() -> str:
    """Return what `turnout` and `turnout.testing` export, with the members of classes."""
    lines: list[str] = []
    for name in ("turnout", "turnout.testing"):
        module = importlib.import_module(name)
        lines += ["", f"from {name} import …", "", *_exports(module)]
    return "\n".join([*lines[1:], ""])


def _exports(module: ModuleType) -> Iterator[str]:
    for name in sorted(module.__all__, key=str.lower):
        value = getattr(module, name)
        if inspect.isclass(value):
            yield f"class {name}{_signature(value)}"
            yield from (f"    {line}" for line in _members(value))
        elif callable(value):
            yield from _callable(name, subject_of(value))
            yield from (f"{name}.{line}" for line in _members(type(value)) if _is_ours(value))
        else:
            yield f"{name}: {type(value).__name__}"


def _is_ours(value: object) -> bool:
    """Whether an object that can be called has members of its own, as `kafka` and `http`."""
    return type(value).__module__ in (
        "turnout._kafka", "turnout.handlers.actions.http", "turnout.handlers.actions.shell",
    )  # fmt: skip


def _members(kind: type) -> Iterator[str]:
    for name in sorted(dir(kind)):
        owner = next((base for base in kind.__mro__ if name in vars(base)), kind)
        if name.startswith("_") or not owner.__module__.startswith("turnout"):
            continue
        value = inspect.getattr_static(kind, name)
        if isinstance(value, property):
            yield f"{name}: {_annotation(inspect.signature(_getter(value)).return_annotation)}"
        elif callable(getattr(kind, name)):
            yield from _callable(name, getattr(kind, name))
        elif name not in getattr(kind, "__dataclass_fields__", {}):  # those are in the signature
            yield name


def _getter(value: property) -> Callable[..., Any]:
    assert value.fget is not None
    return value.fget


def _callable(name: str, value: Callable[..., Any]) -> Iterator[str]:
    overloads = get_overloads(value) if inspect.isroutine(value) else []
    for one in overloads or [value]:
        kind = "async " if inspect.iscoroutinefunction(one) else ""
        yield f"{kind}{name}{_signature(one)}"


class _Text(str):
    """An annotation as its author wrote it: every version of Python prints it the same way."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _annotation(value: Any) -> Any:
    if value is inspect.Signature.empty:
        return value
    return _Text(value if isinstance(value, str) else inspect.formatannotation(value))


def _signature(value: Callable[..., Any]) -> str:
    found = inspect.signature(value)
    kept = [
        each.replace(annotation=_annotation(each.annotation)) for each in found.parameters.values()
    ]
    returned = inspect.Signature.empty if inspect.isclass(value) else found.return_annotation
    text = str(found.replace(parameters=kept, return_annotation=_annotation(returned)))
    text = text.replace("= Ellipsis", "= ...")
    return re.sub(r"<(\w+) object at 0x[0-9a-f]+>", r"<\1>", text)


# ---- log events

_LEVELS = {"debug", "info", "warning", "error", "exception"}
LOG_EVENT = re.compile(r"[a-z_]+\.[a-z_]+")


@cache
def log_events() -> str:
    """Return each log event with its level and its fields; `…` are fields chosen at run time."""
    lines: set[str] = set()
    for folder in CODE:
        for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            if "examples" not in inner.parts:
                lines |= _events_of(inner)
    return "\n".join([*sorted(lines), ""])


def _events_of(folder: Path) -> set[str]:
    trees = [ast.parse(path.read_text("utf-8")) for path in folder.glob("*.py")]
    calls = [call for tree in trees for call in ast.walk(tree) if _is_log_call(call)]
    named = {line.split(" ")[0] for call in calls for line in _event(call, ())}
    nouns = {event.partition(".")[0] for event in named}
    constants = {
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    # An event that is chosen in one place and logged in another is found by its noun.
    chosen = [
        each
        for each in constants - named
        if LOG_EVENT.fullmatch(each) and each.partition(".")[0] in nouns
    ]
    return {line for call in calls for line in _event(call, chosen)}


def _is_log_call(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _LEVELS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in {"log", "_log"}
    )


def _event(call: ast.AST, chosen: Iterable[str]) -> Iterator[str]:
    assert isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
    first, fields = call.args[0], sorted(each.arg or "…" for each in call.keywords)
    if isinstance(first, ast.Constant):
        event, *rest = str(first.value).split()  # `logging` has the fields in the text
        fields += [each.partition("=")[0] for each in rest]
        yield " ".join([event, call.func.attr, *fields])
        return
    for event in chosen:
        yield " ".join([event, call.func.attr, *fields])


# ---- metrics, JSON


def metrics() -> str:
    """Return each metric with its labels and type."""
    rows = pages.metrics_table().splitlines()[2:]
    return "\n".join(" ".join(row.replace("`", "").split(" | ")[:2])[2:] for row in rows) + "\n"


def traces() -> str:
    """Return each span with the attributes it may have."""
    of_each = trace_conventions.ON_SPANS.items()
    lines = [line for name, attributes in of_each for line in (name, *attributes)]
    return "".join(
        f"{line}\n" if line in trace_conventions.ON_SPANS else f"    {line}\n" for line in lines
    )


def json_fields() -> str:
    """Return the fields of every document of the HTTP API and of the commands."""
    with tempfile.TemporaryDirectory() as folder:
        found = fields_of_documents(Path(folder))
    lines: list[str] = []
    for document, fields in sorted(found.items()):
        lines += ["", document, *(f"    {field}" for field in sorted(fields))]
    return "\n".join([*lines[1:], ""])


WRITERS: Mapping[str, Callable[[], str]] = {
    "signatures.txt": signatures,
    "log_events.txt": log_events,
    "metrics.txt": metrics,
    "traces.txt": traces,
    "json_fields.txt": json_fields,
}

if __name__ == "__main__":
    SNAPSHOTS.mkdir(exist_ok=True)
    for file, writer in WRITERS.items():
        (SNAPSHOTS / file).write_text(writer(), "utf-8")
