"""The value of `--input` and `--fields`: JSON, `@FILE`, or `-` for standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    pass


def read_json(input_text: str) -> bytes:
    """Return the bytes of `--input`, which is JSON; a usage error says where it is not."""
    from turnout.service.domain.errors import InvalidData
    from turnout.service.domain.payload import decode_json

    data = read_input(input_text)
    try:
        decode_json(data)
    except InvalidData as error:
        raise click.UsageError(f"--input: {error}") from None
    return data


def read_input(input_text: str) -> bytes:
    """Return the bytes of an option: the text itself, `@FILE`, or `-` for standard input."""
    if input_text == "-":
        return sys.stdin.buffer.read()
    if not input_text.startswith("@"):
        return input_text.encode()
    try:
        return Path(input_text[1:]).read_bytes()
    except OSError as error:
        raise click.UsageError(f"cannot read {input_text[1:]}: {error.strerror}") from None
