"""Finds requests whose address comes from an event, for `turnout check`: who sends it chooses it.

Followed are the parameters of a flow, `current().event`, and the names that are bound to parts of
them in its body. An address with its host written out, `f"https://crm.example/{order.id}"`, is the
author's own. Not here: refusing the address (`service.client.outbound`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from turnout.service.domain.condition import SOURCE
from turnout.service.domain.errors import SetupError
from turnout.service.domain.flow import Flow

from .explain import HTTP_ACTION
from .source import AnyFunction, SourceVisitor, first_line

_CURRENT = ("turnout.service.steps.context", "current")
_OWN_HOST = re.compile(r"https?://[^/?#@]+[/?#]")


def untrusted_urls(module: ModuleType) -> Sequence[SetupError]:
    """Return a warning for each request of a loaded flow file whose address is of an event."""
    visitor = _Visitor(vars(module), str(module.__file__))
    visitor.visit(ast.parse(vars(module)[SOURCE]))
    return visitor.found


class _Visitor(SourceVisitor):
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
        if self._is_of_event(node.value):
            for target in node.targets:
                self._bind(target)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:  # noqa: N802  the name that `ast` calls
        if self._is_of_event(node.iter):
            self._bind(node.target)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """Bind the names of a comprehension."""
        if self._is_of_event(node.iter):
            self._bind(node.target)
        self.generic_visit(node)

    def _visit_comprehension(self, node: ast.ListComp | ast.GeneratorExp) -> None:
        for each in node.generators:
            self.visit(each)
        self.visit(node.elt)

    visit_ListComp = visit_GeneratorExp = _visit_comprehension  # noqa: N815  as above

    def _bind(self, target: ast.expr) -> None:
        self._given |= {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}

    def visit_Call(self, node: ast.Call) -> None:  # noqa: N802  the name that `ast` calls
        address = self._address(node)
        options = {each.arg for each in node.keywords}
        if address is not None and not options & {"untrusted", None} and self._is_of_event(address):
            self.report(
                node,
                f"{ast.unparse(node.func)}(…): the address comes from the event, so whoever sends "
                "it chooses what this machine asks; write untrusted=True",
            )
        self.generic_visit(node)

    def _address(self, node: ast.Call) -> ast.expr | None:
        """Return the address of a request, None for another call."""
        if not isinstance(self.step, Flow):
            return None
        called = self.named(node.func)
        owner = getattr(called, "__self__", called)
        if (type(owner).__module__, type(owner).__qualname__) != HTTP_ACTION:
            return None
        index = 1 if owner is called else 0  # http("GET", url), http.get(url)
        named = next((each.value for each in node.keywords if each.arg == "url"), None)
        return node.args[index] if len(node.args) > index else named

    def _is_of_event(self, node: ast.expr) -> bool:
        """Whether a value is, or is made of, what an event brings."""
        if isinstance(node, ast.Name):
            return node.id in self._given
        if isinstance(node, ast.Attribute):
            return self._is_current_event(node) or self._is_of_event(node.value)
        if isinstance(node, ast.Subscript | ast.Await | ast.Starred | ast.FormattedValue):
            return self._is_of_event(node.value)
        if isinstance(node, ast.JoinedStr):
            return self._is_made_of_event(node.values)
        if isinstance(node, ast.BinOp):
            return self._is_made_of_event([node.left, node.right])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            return self._is_of_event(node.func.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str":
            return any(map(self._is_of_event, node.args))
        return isinstance(node, ast.BoolOp) and any(map(self._is_of_event, node.values))

    def _is_made_of_event(self, parts: Sequence[ast.expr]) -> bool:
        first = parts[0] if parts else None
        if isinstance(first, ast.Constant) and _OWN_HOST.match(str(first.value)):
            return False
        return any(map(self._is_of_event, parts))

    def _is_current_event(self, node: ast.Attribute) -> bool:
        if node.attr != "event" or not isinstance(node.value, ast.Call):
            return False
        called = self.value(node.value.func)
        return (getattr(called, "__module__", ""), getattr(called, "__name__", "")) == _CURRENT
