"""Signs that a file was renamed into place when it was complete, and not written where it is.

Pure. Signs only: `watching` asks the kernel for proof besides (that nobody has the file open).
"""

from __future__ import annotations

from .scan import Version


def looks_renamed(path: str, version: Version, finished: set[str]) -> bool:
    """Whether a name that appeared shows signs of a rename; `_settle` asks for proof besides.

    Its inode changed after its content, or its own temporary name (`stems` of those that went
    away are in `finished`) vanished in the same moment.
    """
    if version.size == 0:
        return False
    folder, _, name = path.rpartition("/")
    return version.changed_ns > version.mtime_ns or (
        f"{folder}/{name.rpartition('.')[0] or name}" in finished
    )


def stems(temporary: str) -> list[str]:
    """Return of what a name may be a temporary one: `a` and `a.csv` for `.a.csv.X3f9`."""
    folder, _, name = temporary.rpartition("/")
    bare = name.lstrip(".~_")
    ends = (at for at, char in enumerate(f"{bare}.") if not char.isalnum())
    return [f"{folder}/{bare[:end]}" for end in ends]
