"""What fault tests ask of the machine: root, tools, a small disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def need_root(purpose: str, *tools: str) -> None:
    """Skip by name where root or a tool is missing; in CI that is a failure, never a pass."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if os.geteuid() != 0:
        missing.append("root")
    if not missing:
        return
    reason = f"{purpose} needs {', '.join(missing)}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def run_tool(*command: str) -> None:
    """Run a tool of the machine; fails with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@contextmanager
def small_disk(place: Path, mebibytes: int) -> Iterator[Path]:
    """Mount a file system in memory that is full after `mebibytes`."""
    need_root("a disk that can be filled", "mount")
    place.mkdir()
    run_tool("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "none", str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


class Ballast:
    """A file that takes all the room there is, and gives it back."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "ballast"

    def fill(self) -> None:
        """Write until the disk has no room for another page."""
        with self._file.open("ab", buffering=0) as file:
            for piece in (2**20, 4096):
                try:
                    while True:
                        file.write(bytes(piece))
                except OSError:
                    continue

    def free(self) -> None:
        """Give the room back."""
        self._file.unlink()
