"""What a flow is, read from its declaration and its source: for `turnout explain`.

Nothing runs. A call in the body is a step, a wait or a child run if its name is one in the loaded
file; every other call runs again from the first line, which is what an author most often does not
expect. Functions of the same file that the body calls are read too. Not here: what a run did
(`turnout show`), and the text for people (`cli.explain`).
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from turnout.service.domain.condition import SOURCE
from turnout.service.domain.flow import Flow
from turnout.service.domain.resource import Resource
from turnout.service.domain.shape import adapter
from turnout.service.domain.task import NO_FALLBACK, Task
from turnout.service.domain.units import format_duration

from . import AnyFlow

_WAITS = frozenset({"sleep", "wait_for", "approval", "emit", "first", "poll", "budget"})
"""Names of turnout whose calls are recorded, in the modules of the steps."""

HTTP_ACTION = ("turnout.handlers.actions.http", "Http")
SHELL_ACTION = ("turnout.handlers.actions.shell", "Shell")
"""Where the types of `http` and `shell` are, whose calls are steps."""

_BUDGET = ("turnout.handlers.actions.budget", "Budget")

_RECORDING = ("turnout.service.steps", "turnout.handlers.actions")

_PURE = frozenset(vars(builtins)) - {"print", "open", "input", "exec", "eval", "__import__"}
_APART = frozenset({"on", "awaits", "name", "was", "version", "owner", "tags", "description"})
_SHOWN = 100

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Call:
    """A call in the body of a flow: a recorded one has a `kind` and may have a policy."""

    line: int
    text: str
    name: str = ""
    kind: str = ""
    policy: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON shows it."""
        shown: dict[str, Any] = {"line": self.line, "call": self.text}
        return (
            {**shown, "name": self.name, "kind": self.kind, **self.policy} if self.kind else shown
        )


@dataclass(frozen=True)
class Explanation:
    """A flow, explained: `options` are those of its policy, as they are written."""

    flow: AnyFlow
    about: str
    options: Mapping[str, str]
    recorded: tuple[Call, ...]
    repeated: tuple[Call, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the document of `turnout explain --json`."""
        flow = self.flow
        return {
            "name": flow.name,
            "file": flow.file,
            "line": flow.line,
            "about": self.about,
            "owner": flow.owner,
            "tags": list(flow.tags),
            "description": flow.description,
            "version": flow.version,
            "code_version": flow.code_version,
            "triggers": [trigger.name for trigger in flow.triggers],
            "keeps_state": flow.keeps_state,
            "awaits": [trigger.name for trigger in flow.awaits],
            "options": dict(self.options),
            "parameters": list(parameters(flow)),
            "steps": [call.as_dict() for call in self.recorded],
            "runs_again": [call.as_dict() for call in self.repeated],
        }


def explain(flow: AnyFlow) -> Explanation:
    """Explain a loaded flow."""
    names = vars(sys.modules[flow.function.__module__])
    source: bytes = names.get(SOURCE, b"")
    tree = ast.parse(source)
    node = _function_at(tree, flow.function.__code__.co_firstlineno)
    if node is None:
        return Explanation(flow, "", {}, (), ())
    text = source.decode("utf-8", "replace")
    reader = _Reader(names, tree, text)
    reader.read(node)
    return Explanation(
        flow,
        (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " "),
        dict(_options(node, text, has_window=flow.window is not None)),
        tuple(reader.recorded),
        tuple(reader.repeated),
    )


def parameters(flow: AnyFlow) -> Iterator[dict[str, Any]]:
    """Yield what the flow takes, where each comes from, and the JSON schema of data."""
    binding = flow.binding
    optional = {name for name, *_ in binding.optional}
    for name, resource in binding.resources.items():
        yield {"name": name, "type": resource.name, "from": "resource", "required": True}
    for name, annotation in binding.declared.items():
        written = flow.function.__annotations__.get(name, "Any")
        kind = written if isinstance(written, str) else getattr(written, "__name__", str(written))
        source = {"Event": "event", "Path": "file", "bytes": "body"}.get(kind, "data")
        shown = {"name": name, "type": kind, "from": source, "required": name not in optional}
        schema = _schema(annotation) if source == "data" else None
        yield shown if schema is None else {**shown, "schema": schema}


def _schema(annotation: Any) -> dict[str, Any] | None:
    if isinstance(annotation, Resource):
        return None
    try:
        return adapter(annotation).json_schema()
    except Exception:  # noqa: BLE001  a type may bring code of its own, and have no schema
        return None


# ---------------------------------------------------------------- reading the source


def _function_at(tree: ast.Module, first_line: int) -> _Function | None:
    for node in ast.walk(tree):
        if isinstance(node, _Function):
            lines = [node.lineno, *(each.lineno for each in node.decorator_list)]
            if min(lines) == first_line:
                return node
    return None


def _options(node: _Function, source: str, *, has_window: bool) -> Iterator[tuple[str, str]]:
    """Yield the policy as it is written in `@flow(…)`, and `on=` where it is a window."""
    apart = _APART - {"on"} if has_window else _APART
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call):
            for each in decorator.keywords:
                if each.arg is not None and each.arg not in apart:
                    yield each.arg, _written(each.value, source)


def _written(node: ast.expr, source: str) -> str:
    text = " ".join((ast.get_source_segment(source, node) or ast.unparse(node)).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


class _Reader:
    """Reads a function, and those of the file that it calls, into recorded and repeated calls."""

    def __init__(self, names: Mapping[str, Any], tree: ast.Module, source: str) -> None:
        self.recorded: list[Call] = []
        self.repeated: list[Call] = []
        self._names = names
        self._source = source
        self._functions = {node.name: node for node in tree.body if isinstance(node, _Function)}
        self._read: set[str] = set()

    def read(self, node: _Function) -> None:
        """Read one function, in the order of its lines."""
        self._read.add(node.name)
        found = [each for part in node.body for each in ast.walk(part)]
        calls = [each for each in found if isinstance(each, ast.Call)]
        inner = {each for call in calls for each in _chain(call)}  # of a.b().c() the whole is told
        calls = [each for each in calls if each not in inner]
        for call in sorted(calls, key=lambda each: (each.lineno, each.col_offset)):
            self._call(call)

    def _call(self, call: ast.Call) -> None:
        function = call.func
        method = ""
        if isinstance(function, ast.Attribute):
            value = self._value(function)
            if value is None:
                owner, method = function.value, function.attr
                if isinstance(owner, ast.Call) and method == "take":  # budget(…).take(1)
                    owner = owner.func
                value = self._value(owner)
        else:
            value = self._value(function)
        known = _recorded(value, method)
        if known is not None:
            name, kind, policy = known
            self.recorded.append(
                Call(call.lineno, _written(call, self._source), name, kind, policy)
            )
        elif isinstance(function, ast.Name) and function.id in self._functions:
            if function.id not in self._read:
                self.read(self._functions[function.id])
        elif not self._is_harmless(function, value):
            self.repeated.append(Call(call.lineno, _written(call, self._source)))

    def _value(self, node: ast.expr) -> Any:
        """Return what a dotted name stands for in the loaded file, None if that is not known."""
        if isinstance(node, ast.Name):
            return self._names.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._value(node.value)
            return None if owner is None else getattr(owner, node.attr, None)
        return None

    def _is_harmless(self, function: ast.expr, value: Any) -> bool:
        """Whether a call has no effect: turnout's own, a type of the file, or Python's own."""
        root = function
        while isinstance(root, ast.Attribute | ast.Call):
            root = root.func if isinstance(root, ast.Call) else root.value
        if isinstance(root, ast.Constant | ast.JoinedStr | ast.Await):  # reads a value
            return True
        if isinstance(function, ast.Attribute) and isinstance(root, ast.Name):
            begun = getattr(self._names.get(root.id), "__module__", None) or ""
            logs = isinstance(function.value, ast.Attribute) and function.value.attr == "log"
            if begun.startswith("turnout.") and not logs:
                return True
        module = getattr(value, "__module__", None) or ""
        if isinstance(value, type) or module.startswith("turnout."):
            return True
        return isinstance(function, ast.Name) and value is None and function.id in _PURE


def _chain(call: ast.Call) -> Iterator[ast.Call]:
    """Yield the calls on whose result a call is a method."""
    node: ast.expr = call.func
    while isinstance(node, ast.Attribute | ast.Call):
        if isinstance(node, ast.Call):
            yield node
        node = node.func if isinstance(node, ast.Call) else node.value


def _recorded(value: Any, method: str) -> tuple[str, str, Mapping[str, Any]] | None:
    """Return name, kind and policy of what a call records; None for what is not recorded."""
    if getattr(value, "__self__", None) is not None and isinstance(value.__self__, Task | Flow):
        value, method = value.__self__, value.__name__
    if isinstance(value, Task):
        return value.name, "step for each item" if method == "map" else "step", _policy(value)
    if isinstance(value, Flow):
        return value.name, "child run for each item" if method == "map" else "child run", {}
    name = getattr(value, "__name__", "")
    action = getattr(value, "__self__", value)
    kind = (type(action).__module__, type(action).__qualname__)
    if kind == HTTP_ACTION:
        return "http" if action is value else f"http.{name}", "step", {}
    if kind == SHELL_ACTION:
        return "shell", "step", {}
    if kind == _BUDGET and name == "take":
        return "budget", "wait", {}
    if name in _WAITS and str(getattr(value, "__module__", "")).startswith(_RECORDING):
        return name, "event" if name == "emit" else "wait", {}
    return None


def _policy(task: Task[Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {"retries": task.retry.count} if task.retry.count else {}
    if task.timeout_seconds is not None:
        shown["timeout"] = format_duration(timedelta(seconds=task.timeout_seconds))
    if task.undo is not None:
        shown["undo"] = getattr(task.undo, "__name__", str(task.undo))
    if task.cache is not None:
        shown["cached"] = format_duration(task.cache.ttl)
    if task.fallback is not NO_FALLBACK:
        shown["fallback"] = True
    if not task.is_async and task.pool == "process":
        shown["pool"] = task.pool
    return shown
