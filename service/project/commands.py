"""Find mistakes in the calls of `shell` that the source of a flow file shows: for `turnout check`.

A problem is a call that fails whenever it is reached. Warned of is a text for `/bin/sh` that an
event is a part of: whoever sends the event chooses what runs. Not here: what is of an event
(`event_values`), and the call itself (`handlers.actions.shell`).
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from types import ModuleType

from turnout.service.domain.errors import SetupError
from turnout.service.domain.flow import Flow

from .event_values import EventVisitor
from .explain import SHELL_ACTION


def commands(module: ModuleType) -> tuple[Sequence[SetupError], Sequence[SetupError]]:
    """Return the problems and the warnings of a loaded flow file."""
    return _Visitor.look(module)


class _Visitor(EventVisitor):
    def visit_Call(self, node: ast.Call) -> None:  # noqa: N802  the name that `ast` calls
        called = self.named(node.func)
        owner = getattr(called, "__self__", called)
        if (type(owner).__module__, type(owner).__qualname__) == SHELL_ACTION:
            self._refuse_text(node)
            if owner is not called:
                self._refuse_blocking(node)
            self._warn_of_event(node)
        self.generic_visit(node)

    def _refuse_text(self, node: ast.Call) -> None:
        """Refuse a text that no shell is asked to read."""
        options = {each.arg: each.value for each in node.keywords}
        command = node.args[0] if node.args else options.get("command")
        is_text = isinstance(command, ast.JoinedStr) or (
            isinstance(command, ast.Constant) and isinstance(command.value, str)
        )
        if is_text and not {"shell", None} & set(options):
            self.report(
                node,
                f"{ast.unparse(node.func)}(…) is given one text: write a list of its words, or "
                "shell=True to have /bin/sh read it",
            )

    def _refuse_blocking(self, node: ast.Call) -> None:
        if self.functions and isinstance(self.functions[-1], ast.AsyncFunctionDef):
            written = ast.unparse(node.func)
            self.report(
                node,
                f"{written}(…) would block the service in an `async def`: write "
                f"`await {written.rpartition('.')[0]}(…)`",
            )

    def _warn_of_event(self, node: ast.Call) -> None:
        options = {each.arg: each.value for each in node.keywords}
        asks = options.get("shell")
        if not (isinstance(self.step, Flow) and isinstance(asks, ast.Constant) and asks.value):
            return
        command = node.args[0] if node.args else options.get("command")
        if command is not None and self.is_of_event(command):
            self.warn(
                node,
                f"{ast.unparse(node.func)}(…, shell=True): parts of the text come from the "
                "event, so whoever sends it chooses what this machine runs; write a list of "
                "arguments, or shlex.quote(…) around each part",
            )
