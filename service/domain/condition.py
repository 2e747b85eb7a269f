"""The text of an author's condition, as it stands in the file, for people who ask why."""

from __future__ import annotations

import ast
import linecache
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any

SOURCE = "__turnout_source__"
"""The name under which the loader leaves the bytes of a flow file, as loaded, in its module."""

_LAMBDA = "<lambda>"
_SHOWN = 160


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition in words, such as `when=lambda event: event.data["paid"]`, and where it is."""

    words: str
    file: str
    line: int

    @property
    def location(self) -> str:
        """`FILE:LINE`."""
        return f"{self.file}:{self.line}"


def condition_of(option: str, function: Callable[..., Any], file: str, line: int) -> Condition:
    """Return the condition that an option holds; `file` and `line` stand in where it has none."""
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        name = getattr(function, "__name__", type(function).__name__)
        return Condition(f"{option}={name}", file, line)
    words = code.co_name if code.co_name != _LAMBDA else _lambda_text(function, code)
    return Condition(f"{option}={words}", code.co_filename, code.co_firstlineno)


def _lambda_text(function: Callable[..., Any], code: CodeType) -> str:
    """Return a lambda as written, `lambda` alone where the source does not tell which it is."""
    source = _source_of(function, code)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return "lambda"
    spans = _spans(code)
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Lambda)
        and node.lineno == code.co_firstlineno
        and all(_lies_in(node.body, span) for span in spans)
    ]
    if not found or (len(found) > 1 and not spans):
        return "lambda"
    texts = [_text(node, source) for node in found]
    words = min(texts, key=len)  # of nested ones the innermost
    return words if len(words) <= _SHOWN else f"{words[: _SHOWN - 1]}…"


def _text(node: ast.Lambda, source: str) -> str:
    """Return a lambda as written if that is one line, else put into one."""
    text = ast.get_source_segment(source, node) or ""
    return text if text and "\n" not in text else ast.unparse(node)


def _source_of(function: Callable[..., Any], code: CodeType) -> str:
    module = sys.modules.get(function.__module__)
    loaded = getattr(module, SOURCE, None)
    if isinstance(loaded, bytes) and getattr(module, "__file__", None) == code.co_filename:
        return loaded.decode("utf-8", "replace")
    return "".join(linecache.getlines(code.co_filename))


_Span = tuple[tuple[int, int], tuple[int, int]]


def _spans(code: CodeType) -> list[_Span]:
    """Return begin and end of each instruction; none if Python was told to keep none."""
    return [
        ((line, column), (end_line, end_column))
        for line, end_line, column, end_column in code.co_positions()
        if line and end_line and column is not None and end_column
    ]


def _lies_in(body: ast.expr, span: _Span) -> bool:
    begin, end = span
    last = (body.end_lineno or body.lineno, body.end_col_offset or body.col_offset)
    return (body.lineno, body.col_offset) <= begin and end <= last
