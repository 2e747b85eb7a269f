"""Find mistakes in a flow file that its source shows: for `turnout check`.

Problems are calls and attributes that fail whenever they are reached; warnings are calls that work
and harm others, as those that block the event loop. Not here: what is not awaited (`unawaited`),
and calls whose arguments cannot work (`arguments`).
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from types import FunctionType, ModuleType
from typing import Any

from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.guess import OF_CURRENT, OF_EVENT, no_attribute
from turnout.service.domain.task import Task

from .source import AnyFunction, SourceVisitor, first_line

_CONTEXT = "turnout.service.steps.context"
_DECORATORS = frozenset({("turnout.handlers.flow", "flow"), ("turnout.handlers.task", "task")})
_QUESTIONS = frozenset({"when", "per", "key", "ordered_by", "priority"})
"""Options whose function is asked about an event."""

_OF_EVENTS = frozenset((*dir(Event), *(each.name for each in fields(Event))))

_BLOCKING = re.compile(
    r"time\.sleep|subprocess\.(run|call|check_call|check_output|getoutput|getstatusoutput)"
    r"|posix\.system|urllib\.request\.(urlopen|urlretrieve)|builtins\.input"
    r"|requests\.api\.\w+|httpx(\._api)?\.(get|post|put|patch|delete|head|options|request|stream)"
    r"|socket\.create_connection|smtplib\.SMTP(_SSL)?|shutil\.(copytree|rmtree|make_archive)"
)
"""Functions that take the time of everything else on the event loop."""


def misused(module: ModuleType) -> tuple[Sequence[SetupError], Sequence[SetupError]]:
    """Return the problems and the warnings of a loaded flow file."""
    return _Visitor.look(module)


class _Visitor(SourceVisitor):
    def __init__(self, names: dict[str, Any], file: str) -> None:
        super().__init__(names, file)
        self._asked: set[ast.Lambda] = set()

    def visit_Module(self, node: ast.Module) -> None:  # noqa: N802  the name that `ast` calls
        self.found += _replaced(node, self)
        self.generic_visit(node)

    def entering(self, node: AnyFunction | ast.Lambda) -> None:
        """Warn of a flow inside a function, which nobody finds there."""
        if (
            isinstance(node, AnyFunction)
            and self.functions
            and first_line(node) not in self.steps
            and any(_declares(each, self, "flow") for each in node.decorator_list)
        ):
            self.warnings.append(
                SetupError(
                    f"flow {node.name!r} is inside a function, where it is not found; move it to "
                    "the top of the file, or keep what the function returns under a name there",
                    file=self.file,
                    line=first_line(node),
                )
            )

    def visit_Call(self, node: ast.Call) -> None:  # noqa: N802  the name that `ast` calls
        called = self.value(node.func)
        self._warn_of_blocking(node)
        self._refuse_plain_call(node, called)
        self._refuse_unknown_wait(node, called)
        if _is_of_turnout(called):
            self._asked |= {
                each.value
                for each in node.keywords
                if each.arg in _QUESTIONS and isinstance(each.value, ast.Lambda)
            }
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:  # noqa: N802  the name that `ast` calls
        called: Any = self.value(node.value.func) if isinstance(node.value, ast.Call) else None
        if _is_of_turnout(called) and called.__name__ == "budget":
            self.report(
                node, "budget(…) alone takes nothing: write `await budget(…).take(1)` before the "
                "change",
            )  # fmt: skip
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:  # noqa: N802  the name that `ast` calls
        if isinstance(node.value, ast.Call):
            self._refuse_unknown_context(node, self.value(node.value.func))
        elif (
            isinstance(node.value, ast.Name)
            and self._is_event(node.value.id)
            and node.attr not in _OF_EVENTS
        ):
            self.report(node, no_attribute(node.value.id, "Event", node.attr, OF_EVENT, _OF_EVENTS))
        self.generic_visit(node)

    # ---- findings

    def _warn_of_blocking(self, node: ast.Call) -> None:
        if not self.functions or not isinstance(self.functions[-1], ast.AsyncFunctionDef):
            return
        if _BLOCKING.fullmatch(self._full_name(node.func)) is None:
            return
        written = ast.unparse(node.func)
        is_sleep = self._full_name(node.func) == "time.sleep"
        fix = 'write `await sleep("5s")`' if is_sleep else "call it in a `def` task: `.run(…)`"
        self.warn(
            node,
            f"{written}(…) in an `async def` stops every other run and request while it works; "
            f"{fix}",
        )

    def _full_name(self, node: ast.expr) -> str:
        value = self.named(node)
        if value is None and isinstance(node, ast.Name) and node.id not in self.names:
            value = getattr(builtins, node.id, None)
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"

    def _refuse_plain_call(self, node: ast.Call, called: Any) -> None:
        """Refuse the plain call of a `def` task or flow in an `async def` flow."""
        flow = self.step
        if (
            isinstance(flow, Flow)
            and flow.is_async
            and issubclass(type(called), Flow | Task)
            and not called.is_async
        ):
            written = ast.unparse(node.func)
            self.report(
                node,
                f"{called.words} is a plain `def`, and flow {flow.name!r} is `async def`; write "
                f"`await {written}.run(…)`",
            )

    def _refuse_unknown_wait(self, node: ast.Call, called: Any) -> None:
        """Refuse a wait for a trigger that the flow does not name."""
        flow, (first, *_) = self.step, (*node.args, None)
        is_wait = (
            _is_of_turnout(called) and called.__name__ == "wait_for" and isinstance(flow, Flow)
        )
        if not is_wait or first is None:
            return
        trigger = self.named(first)
        assert isinstance(flow, Flow)
        if hasattr(trigger, "check") and trigger not in flow.awaits:
            written = ast.unparse(first)
            self.report(
                node,
                f"wait_for({written}, …) waits for a trigger that flow {flow.name!r} does not "
                f"watch; write @flow(awaits=[{written}])",
            )

    def _refuse_unknown_context(self, node: ast.Attribute, called: Any) -> None:
        """Refuse an attribute that `current()` does not have."""
        if not _is_of_turnout(called) or (called.__module__, called.__name__) != (
            _CONTEXT, "current",
        ):  # fmt: skip
            return
        context = sys.modules[_CONTEXT].RunContext
        if not hasattr(context, node.attr):
            self.report(
                node, no_attribute("current()", "current", node.attr, OF_CURRENT, dir(context))
            )

    def _is_event(self, name: str) -> bool:
        """Whether a name is a parameter that is filled with an event."""
        for function in reversed(self.functions):
            for each in (*function.args.args, *function.args.kwonlyargs):
                if each.arg == name:
                    if isinstance(function, ast.Lambda):
                        return function in self._asked and each is function.args.args[0]
                    return each.annotation is not None and self._is_event_type(each.annotation)
        return False

    def _is_event_type(self, annotation: ast.expr) -> bool:
        written = annotation.value if isinstance(annotation, ast.Constant) else None
        if isinstance(written, str):
            return self.names.get(written) is Event
        return self.named(annotation) is Event


def _replaced(tree: ast.Module, visitor: SourceVisitor) -> Iterator[SetupError]:
    """Yield the flows and tasks that a later definition of the same name replaces."""
    defined: dict[str, AnyFunction] = {}
    for node in tree.body:
        if not isinstance(node, AnyFunction | ast.ClassDef):
            continue
        before = defined.pop(node.name, None)
        if before is not None:
            yield SetupError(
                f"{node.name!r} is defined again at line {node.lineno}, which replaces this one, "
                "so that it never runs; rename one of them",
                file=visitor.file,
                line=first_line(before),
            )
        decorators = [] if isinstance(node, ast.ClassDef) else node.decorator_list
        if any(_declares(each, visitor, "flow", "task") for each in decorators):
            assert not isinstance(node, ast.ClassDef)
            defined[node.name] = node


def _declares(decorator: ast.expr, visitor: SourceVisitor, *kinds: str) -> bool:
    """Whether a decorator is one of these: `flow`, `task`."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    value = visitor.value(called)
    return (
        isinstance(value, FunctionType)
        and (value.__module__, value.__name__) in _DECORATORS
        and value.__name__ in kinds
    )


def _is_of_turnout(value: Any) -> bool:
    return isinstance(value, FunctionType) and value.__module__.startswith("turnout.")
