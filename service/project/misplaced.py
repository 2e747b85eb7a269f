"""Find what stands in the wrong place, from the source of a flow file: for `turnout check`.

Waits in tasks, files that the body of a flow attaches, signals that nobody raises, calls that are
made when the file is loaded. Each would fail in the first run, or do nothing without a word.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

from turnout.service.domain.errors import SetupError
from turnout.service.domain.flow import Flow
from turnout.service.domain.pending import Pending
from turnout.service.domain.run import Fail, Retry, Skip
from turnout.service.domain.task import Task
from turnout.service.domain.units import parse_duration

from .source import SourceVisitor

_SIGNALS = (Retry, Fail, Skip)
_WAITS = frozenset({"sleep", "wait_for", "approval", "poll", "first"})
_LONG_SLEEP_SECONDS = 60


def misplaced(module: ModuleType) -> tuple[Sequence[SetupError], Sequence[SetupError]]:
    """Return the problems and the warnings of a loaded flow file."""
    return _Visitor.look(module)


class _Visitor(SourceVisitor):
    """Collects what stands in the wrong place."""

    def visit_If(self, node: ast.If) -> None:  # noqa: N802  the name that `ast` calls
        """Leave out `if __name__ == "__main__":`, which no flow file is."""
        if self.functions or "__name__" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:  # noqa: N802  the name that `ast` calls
        signal = self._signal(node.value)
        if signal is not None:
            self.report(node, f"{signal}(…) alone ends nothing; write `raise {signal}(…)`")
        called = self._called(node.value)
        if not self.functions and issubclass(type(called), Flow):
            self.report(
                node, f"the file calls {called.words} when it is loaded; remove the call: `turnout "
                f"run {Path(self.file).name}:{called.name}` runs it once",
            )  # fmt: skip
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:  # noqa: N802  the name that `ast` calls
        signal = self._signal(node.value)
        if self.step is not None and signal is not None:
            self.report(node, f"{signal}(…) is raised, not returned; write `raise {signal}(…)`")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:  # noqa: N802  the name that `ast` calls
        call = node.exc
        name = call.func if isinstance(call, ast.Call) else call
        if name is not None and self.named(name) is Pending:
            self.report(node, "Pending is returned, not raised; write `return Pending(…)`")
        if isinstance(call, ast.Call) and self.named(call.func) is Retry:
            for each in call.keywords:
                self._check_delay(each)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:  # noqa: N802  the name that `ast` calls
        called = self.value(node.func)
        if isinstance(self.step, Task) and _waits(called):
            written = ast.unparse(node.func)
            self.report(
                node, f"{written}(…) in {self.step.words} is for the flow itself: move it there, "
                "before or after the call of the task",
            )  # fmt: skip
        if not self.functions and _is(called, "current"):
            self.report(
                node, "current() at the top of a file belongs to no run; call it in the flow or "
                "the task",
            )  # fmt: skip
        if isinstance(self.step, Flow) and _is(called, "sleep", "asyncio."):
            self._warn_of_long_sleep(node)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:  # noqa: N802  the name that `ast` calls
        of_current = isinstance(node.value, ast.Call) and _is(
            self.value(node.value.func), "current"
        )
        if of_current and node.attr == "attach" and isinstance(self.step, Flow):
            self.report(
                node, "current().attach(…) in the body of a flow, which runs again after each "
                "wait; call it in the task that makes the file",
            )  # fmt: skip
        if of_current and node.attr == "state" and isinstance(self.step, Task):
            self.report(
                node, f"current().state in {self.step.words}, which is not run again once it is "
                "recorded; read and set it in the flow, and pass the value to the task",
            )  # fmt: skip
        self.generic_visit(node)

    # ---- what it is

    def _called(self, node: ast.expr | None) -> Any:
        return self.named(node.func) if isinstance(node, ast.Call) else None

    def _signal(self, node: ast.expr | None) -> str | None:
        called = self._called(node)
        is_one = any(called is each for each in _SIGNALS)
        return ast.unparse(node.func) if is_one and isinstance(node, ast.Call) else None

    def _check_delay(self, option: ast.keyword) -> None:
        value = option.value.value if isinstance(option.value, ast.Constant) else None
        if option.arg != "after" or value is None:
            return
        try:
            parse_duration(value)  # type: ignore[arg-type]  # refused by it where it is no duration
        except SetupError as error:
            self.report(option.value, f"Retry(after=…): {error.message}")

    def _warn_of_long_sleep(self, node: ast.Call) -> None:
        given = node.args[0] if node.args else None
        seconds = given.value if isinstance(given, ast.Constant) else None
        if isinstance(seconds, int | float) and seconds >= _LONG_SLEEP_SECONDS:
            self.warn(
                node,
                f"{ast.unparse(node)} keeps its slot and begins anew after a restart; write "
                f'`await sleep("{seconds:g}s")` of turnout',
            )


def _is(called: Any, name: str, package: str = "turnout.") -> bool:
    """Whether a value is the function of this name that a package brings."""
    return (
        isinstance(called, FunctionType)
        and called.__name__ == name
        and f"{called.__module__}.".startswith(package)
    )


def _waits(called: Any) -> bool:
    """Whether a call of it is a wait: of a flow itself, and of nothing else."""
    if isinstance(called, MethodType):
        return type(called.__self__).__name__ == "Budget" and called.__name__ == "take"
    return any(_is(called, name) for name in _WAITS)
