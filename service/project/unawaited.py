"""Find calls in a flow file that are not awaited, from its source: for `turnout check`.

Reports statements that only call a task, a flow, `emit` or another `async def` function; calls
passed to a task where their result is meant; and `def` flows that call what they cannot await.
Not here: detection at run time (`steps.unawaited`).
"""

from __future__ import annotations

import ast
import inspect
from types import FunctionType, MethodType, ModuleType
from typing import Any

from turnout.service.domain.condition import SOURCE
from turnout.service.domain.errors import SetupError
from turnout.service.domain.flow import Flow

from .source import SourceVisitor, is_async_step, is_step

_AWAITED = ("Coroutine", "Awaitable", "Asked")
"""Prefixes of the return annotations of functions whose result is awaited."""


def unawaited(module: ModuleType) -> list[SetupError]:
    """Return each call of a loaded flow file that is not awaited, with its line."""
    visitor = _Visitor(vars(module), str(module.__file__))
    visitor.visit(ast.parse(vars(module)[SOURCE]))
    return visitor.found


class _Visitor(SourceVisitor):
    """Collects what is not awaited."""

    # ---- findings

    def visit_Expr(self, node: ast.Expr) -> None:  # noqa: N802  the name that `ast` calls
        if isinstance(node.value, ast.Call) and self._refused_here(node.value) is None:
            called = self._to_await(node.value)
            is_flow = issubclass(type(self.value(node.value.func)), Flow)
            if called is not None and (self.functions or not is_flow):  # else it is `misplaced`
                self.report(node, f"{called}(…) is called and not awaited, so that it never runs; "
                                 f"{self._fix(called)}")  # fmt: skip
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:  # noqa: N802  the name that `ast` calls
        flow = self._refused_here(node)
        if flow is not None:
            self.report(node, f"flow {flow.name!r} is a plain `def` and cannot await "
                             f"{ast.unparse(node.func)}(…); write `async def`")  # fmt: skip
        elif self._takes_results(node.func):
            for given in (*node.args, *(keyword.value for keyword in node.keywords)):
                called = self._to_await(given)
                if called is not None:
                    self.report(given, f"{ast.unparse(node.func)}(…) is given {called}(…) itself, "
                                      f"not its result; {self._fix(called)}")  # fmt: skip
        self.generic_visit(node)

    def _fix(self, called: str) -> str:
        if self.functions and not isinstance(self.functions[-1], ast.AsyncFunctionDef):
            return f"write `async def` and `await {called}(…)`"
        return f"write `await {called}(…)`"

    def _refused_here(self, node: ast.Call) -> Flow[..., Any] | None:
        """Return the enclosing `def` flow if the call can never be awaited there."""
        flow = self.step
        if not isinstance(flow, Flow) or flow.is_async:
            return None
        value = self.value(node.func)
        is_refused = is_async_step(value) or (
            _is_ours(value) and getattr(value, "__name__", "") != "gather"
        )
        return flow if is_refused else None

    # ---- resolving names

    def _to_await(self, node: ast.expr) -> str | None:
        """Return the called name if `node` is a call whose result must be awaited."""
        if not isinstance(node, ast.Call):
            return None
        value = self.value(node.func)
        is_awaited = is_async_step(value) or (
            isinstance(value, FunctionType | MethodType)
            and (
                inspect.iscoroutinefunction(value)
                or _returns(value).startswith(_AWAITED)
                or (self._is_async and _returns(value).startswith("Results"))
            )
        )
        return ast.unparse(node.func) if is_awaited else None

    @property
    def _is_async(self) -> bool:
        """Whether the code that is walked is of an `async def`."""
        return bool(self.functions) and isinstance(self.functions[-1], ast.AsyncFunctionDef)

    def _takes_results(self, node: ast.expr) -> bool:
        """Whether a call takes plain values: a step, its `run` and `map`, or `emit`."""
        value = self.value(node)
        owner = value.__self__ if isinstance(value, MethodType) else value
        return is_step(owner) or (_is_ours(value) and getattr(value, "__name__", "") == "emit")


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
