"""A second look at the file of an event, just before its path is handed to a flow.

Between the event and the run the name may have come to stand for something else: a symbolic link
that leads out of the watched folder, or another version of the file, which has its own event. The
flow is then refused the path. A file that is gone is left to the flow, which may know why.

A hard link is the file itself, whoever made it: that its other name is private is not seen here.
The kernel (`fs.protected_hardlinks`) lets others link only what they could read and write.
"""

from __future__ import annotations

import os
import stat

from turnout.service.domain.errors import InvalidData
from turnout.service.domain.event import Event

FILE_TYPES = frozenset({"turnout.file.created", "turnout.file.changed"})
"""The events of files that a trigger has seen."""


def look_again(event: Event, *, has_begun: bool) -> None:
    """Raise `InvalidData` unless the event's file is what it was.

    Once a run has begun, its own code may have changed the file: then it must be a file still.
    Blocks, and belongs in a thread.
    """
    path = event.path
    if path is None or event.type not in FILE_TYPES:
        return
    try:
        status = os.lstat(path)
    except OSError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise InvalidData(f"the file changed: {str(path)!r} is no regular file any more")
    if not has_begun and not _is_same(event, status):
        raise InvalidData(
            f"the file changed: {str(path)!r} is another version now, which has its own event"
        )


def _is_same(event: Event, status: os.stat_result) -> bool:
    data = event.data
    if event.extensions["fileurl"] != data["url"]:
        return True  # its trigger has moved it: there nobody watches, and an operator may mend it
    version = (status.st_size, status.st_mtime_ns, status.st_ino)
    return version == (data["size"], data["mtime_ns"], data["inode"])
