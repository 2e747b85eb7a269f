"""Finds budgets of one name that count over different times, for `turnout check`.

Compared is what is written out: a name or a time that is computed is compared when it is taken from
(`handlers.actions.budget`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from types import FunctionType, ModuleType

from turnout.service.domain.condition import SOURCE
from turnout.service.domain.errors import SetupError
from turnout.service.domain.units import format_duration, parse_duration

from .source import SourceVisitor

_BUDGET = ("turnout.handlers.actions.budget", "budget")


def unequal_budgets(modules: Iterable[ModuleType]) -> Sequence[SetupError]:
    """Return each budget of these flow files that has another period than the first of its name."""
    found: list[SetupError] = []
    first: dict[str, tuple[timedelta, str]] = {}
    for module in modules:
        visitor = _Visitor(vars(module), str(module.__file__))
        visitor.visit(ast.parse(vars(module)[SOURCE]))
        for name, period, line in visitor.declared:
            other, place = first.setdefault(name, (period, f"{visitor.file}:{line}"))
            if other != period:
                found.append(
                    SetupError(
                        f"budget({name!r}) has per={format_duration(period)!r} here and "
                        f"per={format_duration(other)!r} at {place}: what is counted together has "
                        "one period; write the same one, or another name",
                        file=visitor.file,
                        line=line,
                    )
                )
    return found


class _Visitor(SourceVisitor):
    def __init__(self, names: dict[str, object], file: str) -> None:
        super().__init__(names, file)
        self.declared: list[tuple[str, timedelta, int]] = []

    def visit_Call(self, node: ast.Call) -> None:  # noqa: N802  the name that `ast` calls
        called = self.value(node.func)
        if isinstance(called, FunctionType) and (called.__module__, called.__name__) == _BUDGET:
            options = {each.arg: each.value for each in node.keywords}
            name = self._written(node.args[0] if node.args else options.get("name"))
            period = self._written(options.get("per"))
            if isinstance(name, str) and isinstance(period, str | timedelta):
                with suppress(SetupError):  # it is refused where it is declared
                    self.declared.append((name, parse_duration(period), node.lineno))
        self.generic_visit(node)

    def _written(self, node: ast.expr | None) -> object:
        if isinstance(node, ast.Constant):
            return node.value
        return None if node is None else self.named(node)
