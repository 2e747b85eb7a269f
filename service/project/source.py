"""Walks the source of a loaded flow file, and knows what its names refer to.

Names are looked up in the loaded module, so imports and aliases are followed; names bound inside a
function are ignored.
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

AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


class SourceVisitor(ast.NodeVisitor):
    """Walks a file with the names each function binds, and the functions that it is inside of."""

    def __init__(self, names: Mapping[str, Any], file: str) -> None:
        self.found: list[SetupError] = []
        self.warnings: list[SetupError] = []
        self.names = names
        self.file = file
        self.functions: list[AnyFunction | ast.Lambda] = []
        self._bound: list[set[str]] = []
        # By type: other objects of a user's module may raise on attribute access.
        self.steps: dict[int, Flow[..., Any] | Task[Any]] = {
            value.function.__code__.co_firstlineno: value
            for value in names.values()
            if is_step(value) and value.file == file
        }

    @classmethod
    def look(cls, module: ModuleType) -> tuple[list[SetupError], list[SetupError]]:
        """Return the problems and the warnings of a loaded flow file."""
        visitor = cls(vars(module), str(module.__file__))
        visitor.visit(ast.parse(vars(module)[SOURCE]))
        return visitor.found, visitor.warnings

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Walk a function."""
        self._enter(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """Walk a function."""
        self._enter(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """Walk a function."""
        self._enter(node)

    def entering(self, node: AnyFunction | ast.Lambda) -> None:
        """Look at a function before it is walked."""

    def _enter(self, node: AnyFunction | ast.Lambda) -> None:
        self.entering(node)
        decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
        for each in decorators:  # they are run outside of it
            self.visit(each)
        self.functions.append(node)
        self._bound.append(set(_bound(node)))
        for part in ast.iter_child_nodes(node):
            if part not in decorators:
                self.visit(part)
        self._bound.pop()
        self.functions.pop()

    def report(self, node: ast.stmt | ast.expr, message: str) -> None:
        """Note a finding at the line of a node."""
        self.found.append(SetupError(message, file=self.file, line=node.lineno))

    def warn(self, node: ast.stmt | ast.expr, message: str) -> None:
        """Note what works and may surprise, at the line of a node."""
        self.warnings.append(SetupError(message, file=self.file, line=node.lineno))

    @property
    def step(self) -> Flow[..., Any] | Task[Any] | None:
        """The flow or task whose own code is walked, None in a function that is neither."""
        if not self.functions or isinstance(self.functions[-1], ast.Lambda):
            return None
        return self.steps.get(first_line(self.functions[-1]))

    def named(self, node: ast.expr) -> Any:
        """Return what a name, or an attribute of a module or of turnout's, refers to; else None."""
        if isinstance(node, ast.Name):
            is_own = any(node.id in names for names in self._bound)
            return None if is_own else self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.named(node.value)
            if issubclass(type(owner), ModuleType) or is_step(owner) or _is_of_turnout(owner):
                with suppress(Exception):  # a module may define __getattr__
                    return getattr(owner, node.attr, None)
        return None

    def value(self, node: ast.expr) -> Any:
        """Return the module, flow, task or function that a name refers to, else None."""
        value = self.named(node)
        if _is_of_turnout(value) and not is_step(value):  # an action that is called: `shell`
            called = inspect.getattr_static(type(value), "__call__", None)
            return called.__func__ if isinstance(called, staticmethod) else called
        # By type: other objects of a user's module may raise on attribute access.
        is_plain = issubclass(type(value), ModuleType | FunctionType | MethodType)
        return value if is_plain or is_step(value) else None


def first_line(function: AnyFunction) -> int:
    """Return the line of a function's first decorator, or of the function itself."""
    return min((function.lineno, *(each.lineno for each in function.decorator_list)))


def _bound(function: AnyFunction | ast.Lambda) -> Iterator[str]:
    """Return the names a function binds itself, its parameters first."""
    given = function.args
    for each in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
        if each is not None:
            yield each.arg
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, AnyFunction | ast.ClassDef) and node is not function:
            yield node.name
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
            if node.name is not None:
                yield node.name
        elif isinstance(node, ast.MatchMapping) and node.rest is not None:
            yield node.rest
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]


def _is_of_turnout(value: Any) -> bool:
    """Whether a value is an object of turnout's with parts of its own, such as `kafka`."""
    kind = type(value)
    return kind.__module__.startswith("turnout.") and not issubclass(kind, FunctionType)


def is_step(value: Any) -> bool:
    """Whether a value is a flow or a task."""
    return issubclass(type(value), Flow | Task)


def is_async_step(value: Any) -> bool:
    """Whether a value is a flow or task of an `async def` function."""
    return is_step(value) and inspect.iscoroutinefunction(getattr(value, "function", None))
