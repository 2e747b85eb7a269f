"""Checks who owns the files that the service trusts: its journal, its token and its key.

A file that others may write is refused: a pickle put into a journal would run as the service.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from turnout.service.domain.errors import SetupError


def refuse_shared(path: Path, what: str) -> None:
    """Raise `SetupError` for a file or folder that another user owns or may write."""
    found = path.stat()
    if found.st_uid not in (0, os.geteuid()):
        raise SetupError(
            f"{what} belongs to {_name(found.st_uid)} and this runs as {_name(os.geteuid())}; "
            f"run it as its owner, or give it away: chown {os.geteuid()} {path}",
            file=str(path),
        )
    if rights_of_others(path) & 0o022:
        raise SetupError(
            f"others may write {what}; once you trust what is in there, run: chmod go-w {path}",
            file=str(path),
        )


def rights_of_others(path: Path) -> int:
    """Return the permission bits of users other than the owner.

    With `fsGroup`, Kubernetes gives a volume to the group of the pod, and its folders pass that
    group on. It is a group of this process, so its permissions do not count as those of others.
    """
    found, parent = path.stat(), path.parent.stat()
    is_ours = found.st_gid in (os.getegid(), *os.getgroups())
    is_given = is_ours and parent.st_gid == found.st_gid and bool(parent.st_mode & stat.S_ISGID)
    return found.st_mode & (0o007 if is_given else 0o077)


def _name(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:  # as in containers
        return f"user {number}"
