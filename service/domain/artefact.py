"""Artefacts: files that a run keeps, under checked names and types.

A name is shown on terminals, in a browser and as a file somebody saves; so it is one plain part of
a path. Only types that no browser executes are ever shown in place. Not here: storing them
(`journal`), attaching and reading them in a step (`steps.artefacts`).
"""

from __future__ import annotations

import re

from .errors import NotKept

MAX_NAME_BYTES = 255
MAX_A_STEP = 100
"""How many artefacts one step may attach."""
MAX_LISTED = 1000
"""How many artefacts of a run are listed: its first ones."""
MAX_TYPE_CHARACTERS = 100

INLINE_TYPES = frozenset({"image/png", "image/jpeg", "text/plain"})
"""The types that a browser may show in place: it executes nothing in them."""
UNKNOWN_TYPE = "application/octet-stream"

_TYPES = {
    "bz2": "application/x-bzip2", "css": "text/css", "csv": "text/csv", "gif": "image/gif",
    "gz": "application/gzip", "htm": "text/html", "html": "text/html", "jpeg": "image/jpeg",
    "jpg": "image/jpeg", "js": "text/javascript", "json": "application/json",
    "log": "text/plain", "md": "text/markdown", "mp4": "video/mp4",
    "parquet": "application/vnd.apache.parquet", "pdf": "application/pdf", "png": "image/png",
    "svg": "image/svg+xml", "tar": "application/x-tar", "tsv": "text/tab-separated-values",
    "txt": "text/plain", "webp": "image/webp", "xls": "application/vnd.ms-excel",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "xml": "application/xml", "yaml": "application/yaml", "yml": "application/yaml",
    "zip": "application/zip", "zst": "application/zstd",
}  # fmt: skip
"""What names say, the same on every machine: Python's `mimetypes` reads files of the system."""

_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*")


_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""What Python counts as printable and nobody sees (Unicode: Default_Ignorable_Code_Point), and the
blank of braille: two names would look the same."""


def check_name(name: object) -> str:
    """Return the name of an artefact; raises `NotKept` for one that is no plain file name."""
    if not isinstance(name, str):
        raise NotKept(f"the name of an artefact is text, not {type(name).__name__}")
    problem = _problem_of(name)
    if problem is not None:
        raise NotKept(f"{name[:80]!a} cannot be the name of an artefact: {problem}")
    return name


def _problem_of(name: str) -> str | None:
    if not name:
        return "it is empty"
    if "/" in name or "\\" in name:
        return "a name is one part of a path, without / and \\"
    if name[0] in ".-":
        return "it begins with a dot or a dash"
    if not name.isprintable() or name.strip() != name or _INVISIBLE.search(name):
        return "it has characters that cannot be seen, or blanks around it"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"it has more than {MAX_NAME_BYTES} bytes"
    return None


def check_type(type_: object, name: str) -> str:
    """Return a media type, guessed by the name where none is given; raises `NotKept`."""
    if type_ is None:
        return _TYPES.get(name.rpartition(".")[2].lower() if "." in name else "", UNKNOWN_TYPE)
    if (
        not isinstance(type_, str)
        or len(type_) > MAX_TYPE_CHARACTERS
        or not _TYPE.fullmatch(type_.lower())
    ):
        raise NotKept(f"type={str(type_)[:80]!a}: write a media type such as text/csv")
    return type_.lower()
