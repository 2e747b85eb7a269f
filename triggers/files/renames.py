"""Guesses whether a file was renamed into place when complete, or is written where it is.

Pure. Only a guess: `watcher` also asks the kernel for proof that nobody has the file open.
"""

from __future__ import annotations

from .scan import Version


def looks_renamed(path: str, version: Version, finished: set[str]) -> bool:
    """Whether a new name looks renamed; `watcher` asks for proof besides.

    Its inode changed after its content, or its temporary name vanished at the same moment
    (`finished` are the `stems` of vanished names).
    """
    if version.size == 0:
        return False
    folder, _, name = path.rpartition("/")
    return version.changed_ns > version.mtime_ns or (
        f"{folder}/{name.rpartition('.')[0] or name}" in finished
    )


def stems(temporary: str) -> list[str]:
    """Return the names that a temporary name may stand for: `a` and `a.csv` for `.a.csv.X3f9`."""
    folder, _, name = temporary.rpartition("/")
    bare = name.lstrip(".~_")
    ends = (at for at, char in enumerate(f"{bare}.") if not char.isalnum())
    return [f"{folder}/{bare[:end]}" for end in ends]
