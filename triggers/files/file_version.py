"""Turns a version of a file into an event. Pure: the same version has the same id and body."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

import orjson

from turnout.service.domain.event import FILE_CONTENT, Event, file_url, like
from turnout.service.domain.payload import write_json
from turnout.triggers.identity import EventId, identified

from .scan import Version

CREATED = "turnout.file.created"
CHANGED = "turnout.file.changed"


class FileVersion(NamedTuple):
    """A version of a file that becomes an event.

    `changed` says that an earlier version of the path was emitted. `error` says why the file cannot
    be read. `content` is the digest of its bytes, where that is its identity.
    """

    path: str
    version: Version
    generation: int = 0
    changed: bool = False
    error: str | None = None
    content: str | None = None


def file_event(root: str, file: FileVersion, *, time: datetime) -> Event:
    """Return the event: exact bytes in extension `fileurl`, printable names in the data.

    Extension `fileerror` marks a file that could not be read; every flow refuses it. The id is that
    of the version or, if it was read, of the content.
    """
    path, version = file.path, file.version
    url = file_url(f"{root}/{path}")
    body = {
        "path": displayed(f"{root}/{path}"),
        "name": displayed(path.rpartition("/")[2]),
        "size": version.size,
        "mtime_ns": version.mtime_ns,
        "inode": version.inode,
        "url": url,
    }
    extensions = {"fileurl": url}
    if file.error is not None:
        extensions["fileerror"] = file.error
    if file.content is not None:
        extensions |= {FILE_CONTENT: f"sha256:{file.content}", "fileversion": _identity(file)}
    return Event(
        id=file.content or _identity(file),
        source=file_url(root),
        type=CHANGED if file.changed else CREATED,
        time=time,
        subject=displayed(path),
        datacontenttype="application/json",
        body=_json(body),
        extensions=extensions,
    )


def named(event: Event, ask: EventId, version: Version) -> Event:
    """Return a file's event with the id that an author's function answers with.

    Its content is then compared by its size; the id of its version is kept beside it.
    """
    if "fileerror" in event.extensions:
        return event
    answered = identified(event, ask)
    if answered.id == event.id:
        return answered
    own = {FILE_CONTENT: f"{version.size} bytes", "fileversion": event.id}
    return like(answered, extensions={**answered.extensions, **own})


def _json(body: Mapping[str, object]) -> bytes:
    """Write the body; a file's times may not fit 64 bits (before 1677, after 2554)."""
    try:
        return write_json(body)
    except orjson.JSONEncodeError:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def displayed(path: str) -> str:
    """Write a path for terminals, logs and pages: one line, no control characters."""
    if path.isprintable():
        return path
    readable = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in readable
    )


def _identity(file: FileVersion) -> str:
    version = file.version
    stamp = f"{version.inode} {version.size} {version.mtime_ns} {file.generation}"
    content = os.fsencode(file.path) + b"\0" + stamp.encode("ascii")
    return hashlib.sha256(content).hexdigest()[:32]
