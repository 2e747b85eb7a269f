"""Check the file of an event again, just before its path is passed to a flow.

Between the event and the run the name may come to mean something else: a symbolic link out of the
watched folder, or another version of the file, which has its own event. Such a path is refused. A
missing file is left to the flow, which may know why it is gone.

A hard link is the file itself: a private file under a second name is not detected here. The kernel
(`fs.protected_hardlinks`) lets users link only files they can read and write.
"""

from __future__ import annotations

import os
import stat

from turnout.service.domain.errors import InvalidData
from turnout.service.domain.event import Event

FILE_TYPES = frozenset({"turnout.file.created", "turnout.file.changed"})
"""The types of events about files."""


def check_file_unchanged(event: Event, *, has_begun: bool) -> None:
    """Raise `InvalidData` unless the event's file is unchanged.

    Once the run has begun, its own code may have changed the file: then it need only be a regular
    file. Blocks: call it in a thread.
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
    if not has_begun and not _is_same_version(event, status):
        raise InvalidData(
            f"the file changed: {str(path)!r} is another version now, which has its own event"
        )


def _is_same_version(event: Event, status: os.stat_result) -> bool:
    data = event.data
    if event.extensions["fileurl"] != data["url"]:
        return True  # its trigger has moved it out of the watched folder: it may be edited there
    version = (status.st_size, status.st_mtime_ns, status.st_ino)
    return version == (data["size"], data["mtime_ns"], data["inode"])
