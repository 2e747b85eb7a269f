"""The event a file version becomes. Pure: the same version gives the same id and the same body."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

import orjson

from turnout.service.domain.event import Event, file_url

from .scan import Version

CREATED = "turnout.file.created"
CHANGED = "turnout.file.changed"


class Sighting(NamedTuple):
    """A version of a file that is to become an event.

    `changed` says that an earlier version of the path was emitted. `error` says why the file
    cannot be read.
    """

    path: str
    version: Version
    generation: int = 0
    changed: bool = False
    error: str | None = None


def file_event(root: str, sighting: Sighting, *, time: datetime) -> Event:
    """Return the event: exact bytes in extension `fileurl`, names fit to be shown in the data.

    Extension `fileerror` marks a file that could not be read; no flow can do anything with it.
    """
    path, version = sighting.path, sighting.version
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
    if sighting.error is not None:
        extensions["fileerror"] = sighting.error
    return Event(
        id=_identity(sighting),
        source=file_url(root),
        type=CHANGED if sighting.changed else CREATED,
        time=time,
        subject=displayed(path),
        datacontenttype="application/json",
        body=_json(body),
        extensions=extensions,
    )


def _json(body: Mapping[str, object]) -> bytes:
    """Write the body; a file's own times may lie outside of 64 bits (before 1677, after 2554)."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def displayed(path: str) -> str:
    """Write a path so that a terminal, a log and a page can show it: one line, no controls."""
    if path.isprintable():
        return path
    readable = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in readable
    )


def _identity(sighting: Sighting) -> str:
    version = sighting.version
    stamp = f"{version.inode} {version.size} {version.mtime_ns} {sighting.generation}"
    content = os.fsencode(sighting.path) + b"\0" + stamp.encode("ascii")
    return hashlib.sha256(content).hexdigest()[:32]
