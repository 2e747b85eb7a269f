"""Knows which values in the source of a flow come from an event: for checks of what it chooses.

Followed are the parameters of a flow, `current().event`, and the names that are bound to parts of
them in its body. Not here: what must not come from an event (`untrusted_urls`, `commands`).
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from turnout.service.domain.flow import Flow

from .source import AnyFunction, SourceVisitor, first_line

_CURRENT = ("turnout.service.steps.context", "current")


class EventVisitor(SourceVisitor):
    """Walks a file, and knows what is an event's."""

    def __init__(self, names: dict[str, Any], file: str) -> None:
        super().__init__(names, file)
        self._given: set[str] = set()

    def entering(self, node: AnyFunction | ast.Lambda) -> None:
        """Begin with the parameters of a flow."""
        if isinstance(node, ast.Lambda) or not isinstance(self.steps.get(first_line(node)), Flow):
            return
        listed = [*node.args.posonlyargs, *node.args.args]
        if node.args.defaults:
            listed = listed[: -len(node.args.defaults)]  # those are resources
        self._given = {each.arg for each in listed}

    def visit_Assign(self, node: ast.Assign) -> None:  # noqa: N802  the name that `ast` calls
        """Bind the names of an assignment, to an event's value or to another one."""
        self.generic_visit(node)
        if self.is_of_event(node.value):
            for target in node.targets:
                self._bind(target)
        else:
            self._given -= {each.id for each in node.targets if isinstance(each, ast.Name)}

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:  # noqa: N802  the name that `ast` calls
        """Bind the name of an assignment with a type."""
        if node.value is not None:
            self.visit_Assign(ast.copy_location(ast.Assign([node.target], node.value), node))

    def visit_AugAssign(self, node: ast.AugAssign) -> None:  # noqa: N802  the name that `ast` calls
        """Bind the name that an event's value is added to."""
        self.generic_visit(node)
        if self.is_of_event(node.value):
            self._bind(node.target)

    def visit_If(self, node: ast.If) -> None:  # noqa: N802  the name that `ast` calls
        """Know after it what is an event's after one of its branches."""
        self.visit(node.test)
        before, after = self._given, set[str]()
        for branch in (node.body, node.orelse):
            self._given = set(before)
            for each in branch:
                self.visit(each)
            after |= self._given
        self._given = after

    def _visit_what_may_not_run(self, node: ast.AST) -> None:
        before = set(self._given)
        self.generic_visit(node)
        self._given |= before

    visit_While = visit_Try = visit_TryStar = visit_Match = _visit_what_may_not_run  # noqa: N815

    def visit_For(self, node: ast.For) -> None:  # noqa: N802  the name that `ast` calls
        """Bind the names of a loop."""
        if self.is_of_event(node.iter):
            self._bind(node.target)
        self._visit_what_may_not_run(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """Bind the names of a comprehension."""
        if self.is_of_event(node.iter):
            self._bind(node.target)
        self.generic_visit(node)

    def _visit_comprehension(self, node: ast.ListComp | ast.GeneratorExp) -> None:
        for each in node.generators:
            self.visit(each)
        self.visit(node.elt)

    visit_ListComp = visit_GeneratorExp = _visit_comprehension  # noqa: N815  as above

    def _bind(self, target: ast.expr) -> None:
        self._given |= {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}

    def is_of_event(self, node: ast.expr) -> bool:
        """Whether a value is, or is made of, what an event brings."""
        if isinstance(node, ast.Name):
            return node.id in self._given
        if isinstance(node, ast.Attribute):
            return self._is_current_event(node) or self.is_of_event(node.value)
        if isinstance(node, ast.Subscript | ast.Await | ast.Starred | ast.FormattedValue):
            return self.is_of_event(node.value)
        if isinstance(node, ast.JoinedStr):
            return self.is_made_of_event(node.values)
        if isinstance(node, ast.BinOp):
            return self.is_made_of_event([node.left, node.right])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            return self.is_of_event(node.func.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str":
            return any(map(self.is_of_event, node.args))
        return isinstance(node, ast.BoolOp) and any(map(self.is_of_event, node.values))

    def is_made_of_event(self, parts: Sequence[ast.expr]) -> bool:
        """Whether a text is an event's, by its parts."""
        return any(map(self.is_of_event, parts))

    def _is_current_event(self, node: ast.Attribute) -> bool:
        if node.attr != "event" or not isinstance(node.value, ast.Call):
            return False
        called = self.value(node.value.func)
        return (getattr(called, "__module__", ""), getattr(called, "__name__", "")) == _CURRENT
