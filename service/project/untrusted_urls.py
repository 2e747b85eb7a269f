"""Finds requests whose address comes from an event, for `turnout check`: who sends it chooses it.

An address with its host written out, `f"https://crm.example/{order.id}"`, is the author's own. Not
here: what is of an event (`event_values`), and refusing the address (`service.client.outbound`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from types import ModuleType

from turnout.service.domain.condition import SOURCE
from turnout.service.domain.errors import SetupError
from turnout.service.domain.flow import Flow

from .event_values import EventVisitor
from .explain import HTTP_ACTION

_OWN_HOST = re.compile(r"https?://[^/?#@]+[/?#]")


def untrusted_urls(module: ModuleType) -> Sequence[SetupError]:
    """Return a warning for each request of a loaded flow file whose address is of an event."""
    visitor = _Visitor(vars(module), str(module.__file__))
    visitor.visit(ast.parse(vars(module)[SOURCE]))
    return visitor.found


class _Visitor(EventVisitor):
    def visit_Call(self, node: ast.Call) -> None:  # noqa: N802  the name that `ast` calls
        address = self._address(node)
        options = {each.arg for each in node.keywords}
        if address is not None and not options & {"untrusted", None} and self.is_of_event(address):
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

    def is_made_of_event(self, parts: Sequence[ast.expr]) -> bool:
        """Whether an address is an event's, by its parts."""
        first = parts[0] if parts else None
        if isinstance(first, ast.Constant) and _OWN_HOST.match(str(first.value)):
            return False
        return super().is_made_of_event(parts)
