"""What services and containers run in: as a user who is not root, in namespaces of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from .prometheus import IN_CI


def stranger() -> dict[str, Any]:
    """Return the options that run a child as a user who is not root."""
    return {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}


def interpreter() -> str:
    """Return a Python 3.11 or newer that the stranger may run (root's own may be out of reach)."""
    new_enough = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3.11", "/usr/bin/python3"):
        try:
            tried = subprocess.run([python, "-c", new_enough], cwd="/", check=False, **stranger())
        except OSError:
            continue
        if tried.returncode == 0:
            return python
    pytest.skip("no Python 3.11 that a user other than root may run")


def needs_namespaces() -> None:
    """Fail in CI, and skip elsewhere, where this user may not make namespaces and mounts."""
    tried = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--cgroup",
        "mount",
        "-t",
        "tmpfs",
        "x",
        "/mnt",
    ]
    if os.getuid() != 0 or subprocess.run(tried, capture_output=True, check=False).returncode != 0:
        (pytest.fail if IN_CI else pytest.skip)("it takes a root who may mount")
