"""Find calls in a flow file that are not awaited, from its source: for `turnout check`.

Reports statements that only call a task, a flow, `emit` or another `async def` function; calls
passed to a task where their result is meant; and `def` flows that call what they cannot await.
Names are looked up in the loaded module, so imports and aliases are followed; names bound inside a
function are ignored. Not here: detection at run time (`steps.unawaited`).
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import FunctionType, MethodType, ModuleType
from typing import Any

from turnout.service.domain.condition import SOURCE
from turnout.service.domain.errors import SetupError
from turnout.service.domain.flow import Flow
from turnout.service.domain.task import Task

_AWAITED = ("Coroutine", "Awaitable", "Asked")
"""Prefixes of the return annotations of functions whose result is awaited."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def unawaited(module: ModuleType) -> list[SetupError]:
    """Return each call of a loaded flow file that is not awaited, with its line."""
    visitor = _Visitor(vars(module), str(module.__file__))
    visitor.visit(ast.parse(vars(module)[SOURCE]))
    return visitor.found


class _Visitor(ast.NodeVisitor):
    """Walks a file with the names each function binds; collects what is not awaited."""

    def __init__(self, names: Mapping[str, Any], file: str) -> None:
        self.found: list[SetupError] = []
        self._names = names
        self._file = file
        self._functions: list[_Function | ast.Lambda] = []
        self._bound: list[set[str]] = []
        self._sync_flows = {
            value.function.__code__.co_firstlineno: value
            for value in names.values()
            if isinstance(value, Flow) and value.file == file and not value.is_async
        }

    # ---- the enclosing functions

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._enter(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._enter(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._enter(node)

    def _enter(self, node: _Function | ast.Lambda) -> None:
        self._functions.append(node)
        self._bound.append(set(_bound(node)))
        self.generic_visit(node)
        self._bound.pop()
        self._functions.pop()

    # ---- findings

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and self._refused_here(node.value) is None:
            called = self._to_await(node.value)
            if called is not None:
                self._report(node, f"{called}(…) is called and not awaited, so that it never runs; "
                                 f"{self._fix(called)}")  # fmt: skip
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        flow = self._refused_here(node)
        if flow is not None:
            self._report(node, f"flow {flow.name!r} is a plain `def` and cannot await "
                             f"{ast.unparse(node.func)}(…); write `async def`")  # fmt: skip
        elif self._takes_results(node.func):
            for given in (*node.args, *(keyword.value for keyword in node.keywords)):
                called = self._to_await(given)
                if called is not None:
                    self._report(given, f"{ast.unparse(node.func)}(…) is given {called}(…) itself, "
                                      f"not its result; {self._fix(called)}")  # fmt: skip
        self.generic_visit(node)

    def _report(self, node: ast.stmt | ast.expr, message: str) -> None:
        self.found.append(SetupError(message, file=self._file, line=node.lineno))

    def _fix(self, called: str) -> str:
        if self._functions and not isinstance(self._functions[-1], ast.AsyncFunctionDef):
            return f"write `async def` and `await {called}(…)`"
        return f"write `await {called}(…)`"

    def _refused_here(self, node: ast.Call) -> Flow[..., Any] | None:
        """Return the enclosing `def` flow if the call can never be awaited there."""
        if not self._functions or isinstance(self._functions[-1], ast.Lambda):
            return None
        function = self._functions[-1]
        first = min((function.lineno, *(each.lineno for each in function.decorator_list)))
        flow = self._sync_flows.get(first)
        value = self._value(node.func)
        is_refused = _is_async_step(value) or (
            _is_ours(value) and getattr(value, "__name__", "") != "gather"
        )
        return flow if is_refused else None

    # ---- resolving names

    def _to_await(self, node: ast.expr) -> str | None:
        """Return the called name if `node` is a call whose result must be awaited."""
        if not isinstance(node, ast.Call):
            return None
        value = self._value(node.func)
        is_awaited = _is_async_step(value) or (
            isinstance(value, FunctionType | MethodType)
            and (inspect.iscoroutinefunction(value) or _returns(value).startswith(_AWAITED))
        )
        return ast.unparse(node.func) if is_awaited else None

    def _takes_results(self, node: ast.expr) -> bool:
        """Whether a call takes plain values: a step, its `run` and `map`, or `emit`."""
        value = self._value(node)
        owner = value.__self__ if isinstance(value, MethodType) else value
        return _is_step(owner) or (_is_ours(value) and getattr(value, "__name__", "") == "emit")

    def _value(self, node: ast.expr) -> Any:
        """Return the module, flow, task or function that a name refers to, else None."""
        value: Any = None
        if isinstance(node, ast.Name):
            if not any(node.id in names for names in self._bound):
                value = self._names.get(node.id)
        elif isinstance(node, ast.Attribute):
            owner = self._value(node.value)
            if owner is not None and not isinstance(owner, FunctionType | MethodType):
                with suppress(Exception):  # a module may define __getattr__
                    value = getattr(owner, node.attr, None)
        # By type: other objects of a user's module may raise on attribute access.
        is_plain = issubclass(type(value), ModuleType | FunctionType | MethodType)
        return value if is_plain or _is_step(value) else None


def _bound(function: _Function | ast.Lambda) -> Iterator[str]:
    """Return the names a function binds itself, its parameters first."""
    given = function.args
    for each in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
        if each is not None:
            yield each.arg
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, _Function) and node is not function:
            yield node.name
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]


def _is_step(value: Any) -> bool:
    """Whether a value is a flow or a task."""
    return issubclass(type(value), Flow | Task)


def _is_async_step(value: Any) -> bool:
    return _is_step(value) and inspect.iscoroutinefunction(getattr(value, "function", None))


def _is_ours(value: Any) -> bool:
    """Whether a value is a function of turnout whose result is awaited."""
    return (
        isinstance(value, FunctionType)
        and value.__module__.startswith("turnout.")
        and _returns(value).startswith(_AWAITED)
    )


def _returns(function: Any) -> str:
    said = getattr(function, "__annotations__", {}).get("return", "")
    return said if isinstance(said, str) else getattr(said, "__name__", str(said))
