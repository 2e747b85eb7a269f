"""Invisible characters, written as escapes: control, bidirectional and zero-width characters.

Text from outside reaches terminals, editors and log viewers. There a control character is a
command, a bidirectional mark changes the order in which a line is shown, and zero-width or tag
characters hide text. Variation selectors of emoji are left alone.
"""

from __future__ import annotations

import re

_LINES = "\t\n"

_UNSEEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f"  # zero-width, line ends, bidirectional marks
    "\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\ud800-\udfff"  # half characters
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # musical format marks, tags
)
IN_TEXT = re.compile(f"[{_UNSEEN}]")
"""The characters escaped in text of several lines."""

IN_LINE = re.compile(f"[{_LINES}{_UNSEEN}]")
"""The characters escaped where one line is one record."""


def json_escape(match: re.Match[str]) -> str:
    """Write a character as JSON does, so that a JSON text stays the same document."""
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def python_escape(match: re.Match[str]) -> str:
    """Write a character as Python does."""
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
