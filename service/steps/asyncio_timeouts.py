"""Finds an author's `asyncio.timeout` around a durable wait, which would outlast it.

A durable wait ends the attempt, and the timeout with it: after the wait the run would continue
without the timeout. asyncio keeps no list of its timeouts, so the code of the waiting functions is
read: is their current line in the body of such a `with`? `asyncio.timeout` and anyio's `fail_after`
and `move_on_after` are found under any name, but not inside a context manager of the author's own.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import linecache
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from turnout.service.domain.condition import SOURCE

_OWN_FOLDER = str(Path(__file__).parents[1])
_EXECUTOR = str(Path(__file__).parents[1] / "dispatch" / "executor.py")
"""The file that starts the attempt: frames above it are not the author's."""

_WORDS = (b"timeout", b"fail_after", b"move_on_after")
_NAMES = frozenset({
    ("asyncio.timeouts", "timeout"), ("asyncio.timeouts", "timeout_at"),
    ("anyio", "fail_after"), ("anyio", "move_on_after"),
})  # fmt: skip

Bodies = tuple[tuple[int, int, ast.withitem], ...]
"""(first line, last line, what the `with` is on)"""

_UNKNOWN: Any = object()


def around() -> str | None:
    """Return FILE:LINE of the timeout around the calling code, None if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != _EXECUTOR:
        code = frame.f_code
        if not code.co_filename.startswith(_OWN_FOLDER):
            for first, last, item in _bodies(code, frame.f_globals.get(SOURCE)):
                if first <= frame.f_lineno <= last and _ends(item, frame):
                    return f"{code.co_filename}:{item.context_expr.lineno}"
        frame = frame.f_back
    return None


@lru_cache(maxsize=1024)
def _bodies(code: CodeType, source: bytes | None) -> Bodies:
    """Return the bodies of a function's `with` statements; some may be timeouts."""
    text = source or "".join(linecache.getlines(code.co_filename)).encode()
    if not any(word in text for word in _WORDS):
        return ()
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # the file has changed since
        return ()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            if (node.name, first) == (code.co_name, code.co_firstlineno):
                return tuple(_with_bodies(node))
    return ()


def _with_bodies(function: ast.AST) -> Iterator[tuple[int, int, ast.withitem]]:
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue  # code of its own
        if isinstance(node, ast.With | ast.AsyncWith):
            last = node.end_lineno or node.lineno
            for item in node.items:
                yield node.body[0].lineno, last, item
        yield from _with_bodies(node)


def _ends(item: ast.withitem, frame: FrameType) -> bool:
    """Whether a `with` is on a timeout that ends some day: not on `asyncio.timeout(None)`."""
    entered = item.context_expr
    if isinstance(entered, ast.Call):
        made = _value(entered.func, frame)
        if (getattr(made, "__module__", ""), getattr(made, "__name__", "")) not in _NAMES:
            return False
    # The timeout itself where it has a name: it may be rescheduled.
    timeout = _value(item.optional_vars or entered, frame)
    if isinstance(timeout, asyncio.Timeout):
        return timeout.when() is not None
    if isinstance(entered, ast.Call):
        given = [*entered.args, *(keyword.value for keyword in entered.keywords)]
        return not given or _value(given[0], frame) is not None
    return False


def _value(expression: ast.expr, frame: FrameType) -> Any:
    """Return what a constant or a dotted name stands for in a frame, else `_UNKNOWN`."""
    if isinstance(expression, ast.Constant):
        return expression.value
    if isinstance(expression, ast.Attribute):
        return getattr(_value(expression.value, frame), expression.attr, _UNKNOWN)
    if isinstance(expression, ast.Name):
        for names in (frame.f_locals, frame.f_globals, vars(builtins)):
            if expression.id in names:
                return names[expression.id]
    return _UNKNOWN
