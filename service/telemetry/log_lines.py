"""What a log record looks like: one line of JSON, or of text for people.

Control characters are escaped and revealed secrets masked, so a record cannot forge a second line
or a terminal sequence. Not here: where records come from and go (`logs`).
"""

from __future__ import annotations

import re
import sys
import traceback
from datetime import datetime
from typing import Any

import orjson

from turnout.service.domain.errors import FOREIGN
from turnout.service.governance import secrets

from .unseen import IN_LINE, json_escape, python_escape

MAX_FIELD = 8192
"""The most characters of one field; the rest is cut, so that one field cannot fill the log."""

_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_BARE = re.compile(r"[\w.:/@+-]+")

Fields = dict[str, Any]


def record_of(at: datetime, level: str, message: str, fields: Fields) -> Fields:
    """Return a record; a field whose name is taken gets an underscore behind it."""
    record: Fields = {
        "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "message": message,
    }
    error = fields.pop("exc_info", None)
    for name, value in fields.items():
        record[f"{name}_" if name in record else name] = value
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        record.setdefault("error", _headline(error))
        record["traceback"] = "".join(traceback.format_exception(error))
    return record


def _headline(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    return f"{text} (at {frames[-1].filename}:{frames[-1].lineno})" if frames else text


def as_json(record: Fields) -> bytes:
    """Return a record as one line of JSON; a value that JSON cannot hold becomes text."""
    options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
    try:
        line = orjson.dumps(_clean(record), default=_text, option=options)
        if len(line) > MAX_FIELD:
            line = orjson.dumps(_nested_cut(record), default=_text, option=options)
    except (TypeError, RecursionError):  # a nested lone surrogate, an integer past 64 bits, a cycle
        plain = {name: _escape(_text(value)) for name, value in record.items()}
        line = orjson.dumps(plain, option=options)
    return _escape_line(line)


def _clean(record: Fields) -> Fields:
    """Mask and cut the text fields of a record; nested text is masked after encoding."""
    return {
        name: _cut(secrets.mask(value)) if isinstance(value, str) else value
        for name, value in record.items()
    }


def _nested_cut(record: Fields) -> Fields:
    """Return a record in which what is no text either is cut as text where it is too long."""
    cut = _clean(record)
    for name, value in cut.items():
        if not isinstance(value, str | int | float | None):
            text = orjson.dumps(value, default=_text, option=orjson.OPT_NON_STR_KEYS).decode()
            cut[name] = value if len(text) <= MAX_FIELD else _cut(secrets.mask(text))
    return cut


def _escape_line(line: bytes) -> bytes:
    text = line.decode()[:-1]
    if secrets.live_forms:
        text = secrets.mask(text)
    return (IN_LINE.sub(json_escape, text) + "\n").encode()


def as_text(record: Fields, context: Fields) -> str:
    """Return a record as a line for people: time, level, message, fields, then the run."""
    shown = [
        f"{name}={_shown(value)}"
        for name, value in record.items()
        if name not in ("at", "level", "message", "logger", "traceback")
    ]
    if context:
        shown.append(f"[{context['flow']} {context['run']} #{context['attempt']}]")
    head = f"{record['at'][11:23]} {record['level']:<7} {_escape(_mask(record['message']))}"
    return "  ".join([head, *shown]) + "\n"


def _shown(value: object) -> str:
    text = _escape(_mask(_text(value)))
    return text if _BARE.fullmatch(text) else f'"{text}"' if isinstance(value, str) else text


def _mask(text: str) -> str:
    return _cut(secrets.mask(text))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_FIELD else f"{text[:MAX_FIELD]}… ({len(text)} characters)"


def _escape(text: str) -> str:
    return IN_LINE.sub(lambda match: _SHORT.get(match[0]) or python_escape(match), text)


def _text(value: object) -> str:
    try:
        return str(value)
    except FOREIGN as error:  # an author's __str__ may raise anything; a log must not
        return f"<{type(value).__name__}: {type(error).__name__}>"
