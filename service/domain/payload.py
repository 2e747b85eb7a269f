"""Bytes to data, strictly: what is decoded is what was sent, or it is refused with a reason.

The raw bytes stay the truth in the journal; this module never encodes them again. Refused in JSON
because some reader would change or choke on them: NaN and Infinity, lone surrogates, invalid
UTF-8, numbers beyond a float, integers of more than 4,300 digits, more than 64 levels of nesting.
Integers past 64 bits stay exact. Of duplicate keys the last one wins (RFC 8259 section 4 leaves
it open; every common parser does this).
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NoReturn
from urllib.parse import parse_qsl

import orjson

from .errors import InvalidData

Encoding = Literal["json", "text", "form", "bytes"]

Form = dict[str, str | list[str]]
"""The fields of a form: text, or a list where a field was sent several times."""

MAX_DEPTH = 64
"""Levels of nesting accepted in JSON; deeper bodies are attacks or mistakes."""

MAX_FORM_FIELDS = 1000

# Nineteen digits in a row may be an integer orjson would turn into a float (2^63 has nineteen).
# Found as nineteen zeros after mapping every digit to 0: six times as fast as a pattern. What opens
# a level becomes one character, since counting takes longest.
_ZEROS = b"0" * 19
_OPENING = b"["
_OUTLINE = bytes.maketrans(b"0123456789{", b"0" * 10 + _OPENING)


def decoder(encoding: Encoding) -> Callable[[bytes], Any]:
    """Return what decodes bodies of an encoding, as `decode` does."""
    return decode_json if encoding == "json" else partial(decode, encoding=encoding)


def decode(body: bytes, encoding: Encoding) -> Any:
    """Return the data of `body`; raises `InvalidData` saying what is wrong and where."""
    if encoding == "json":
        return decode_json(body)
    if encoding == "bytes":
        return body
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidData(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    return text if encoding == "text" else _decode_form(text)


def decode_json(body: bytes) -> Any:
    """Decode one strict JSON document; see the module for what is refused."""
    if not body:
        raise InvalidData("the body is empty where JSON was expected")
    outline = body.translate(_OUTLINE)
    data = _decode_exactly(body) if _ZEROS in outline else _decode_strictly(body)
    if outline.count(_OPENING) > MAX_DEPTH:
        _check_depth(data)
    return data


def write_json(value: Any) -> bytes:
    """Write a value as JSON that is kept: a result, a mark of a step, the body of an event.

    The copy has the length of its text. What orjson 3.13 returns keeps the room it was given,
    4 KiB or up to 13 times the text (measured), which ten thousand results would hold as well.
    Raises `TypeError` as orjson does.
    """
    return bytes(memoryview(orjson.dumps(value)))


def read_json(text: bytes) -> Any:
    """Decode JSON that turnout itself wrote; integers past 64 bits stay exact."""
    return json.loads(text) if _ZEROS in text.translate(_OUTLINE) else orjson.loads(text)


def _decode_strictly(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("Not enough memory"):  # that says nothing of the body
            raise MemoryError(error.msg) from None
        raise InvalidData(f"the body is not JSON: {error}") from None


def _decode_exactly(body: bytes) -> Any:
    """Decode with exact integers: slower, and only for bodies that hold very long numbers."""
    try:
        data = json.loads(
            body.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite_float
        )
        # Refuses lone surrogates, and what else json lets by.
        _decode_strictly(re.sub(rb"\d{19,}", b"1", body))
    except InvalidData:
        raise
    except RecursionError:
        raise InvalidData(f"the JSON is nested more than {MAX_DEPTH} levels deep") from None
    except ValueError as error:
        if "digits" in str(error):  # the interpreter's own bound, and its own advice
            raise InvalidData(
                f"a number in the JSON has more than {sys.get_int_max_str_digits()} digits"
            ) from None
        raise InvalidData(f"the body is not JSON: {error}") from None
    return data


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidData(f"{name} is not JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidData("a number in the JSON is too large for a float")
    return value


def _check_depth(data: Any) -> None:
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        level = [value for value in level if isinstance(value, dict | list)]
        if not level:
            return
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, dict) else value)
        ]
    raise InvalidData(f"the JSON is nested more than {MAX_DEPTH} levels deep")


def _decode_form(text: str) -> Form:
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, errors="strict", max_num_fields=MAX_FORM_FIELDS
        )
    except UnicodeDecodeError as error:
        raise InvalidData(f"a field of the form is not UTF-8: {error.reason}") from None
    except ValueError:
        raise InvalidData(f"the form has more than {MAX_FORM_FIELDS} fields") from None
    fields: Form = {}
    for name, value in pairs:
        known = fields.get(name)
        if known is None:
            fields[name] = value
        elif isinstance(known, list):
            known.append(value)
        else:
            fields[name] = [known, value]
    return fields
