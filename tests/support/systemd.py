"""A real systemd that runs units, on a throw-away copy of this machine's files.

It is the first process of namespaces of its own (processes, mounts, network, cgroups), with an
overlay as its root: whatever is written there is gone afterwards. Needs root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .program import until
from .prometheus import tool
from .stranger import needs_namespaces

INIT = "/lib/systemd/systemd"
GROUP = f"turnout-test-{os.getpid()}"

# As the first process may not be in a chroot (it could make no user namespace), it pivots.
_BOOT = """
mkdir groups
mount -t cgroup2 none groups
mkdir groups/$GROUP
echo $$ > groups/$GROUP/cgroup.procs
exec unshare --pid --fork --kill-child --uts --ipc --cgroup --net bash -euc '
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
rm -rf lib/systemd/system/*.wants
mount -t proc proc proc
mount --bind -o ro proc/sys proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 none sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
pivot_root . mnt
umount --lazy mnt
ip link set lo up
exec env --ignore-environment container=unshare PATH="$PATH" "$INIT" --log-target=console
'
"""

# Nothing of this machine's own is started, beside the journal: only what a test asks for.
_TARGET = """[Unit]
DefaultDependencies=no
Requires=systemd-journald.service
"""

_JOURNAL = "[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\n"

# What is left of the cgroups, once no process is.
_CLEAR = """
mount -t cgroup2 none groups
find groups/$GROUP -depth -type d -exec rmdir {} +
"""


class Systemd:
    """A running systemd."""

    def __init__(self) -> None:
        self._leader = 0

    @property
    def root(self) -> Path:
        """Its files."""
        return Path(f"/proc/{self._leader}/root")

    def run(self, *words: str, timeout: float = 20) -> subprocess.CompletedProcess[str]:
        """Run a command as root beside the units."""
        return subprocess.run(
            ["nsenter", f"--target={self._leader}", "--all", "--", *words],
            capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip

    def systemctl(self, *words: str) -> str:
        """Run systemctl; returns what it prints, fails with what it says."""
        done = self.run("systemctl", "--no-pager", *words)
        assert done.returncode == 0, f"systemctl {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def log(self, unit: str = "turnout.service") -> str:
        """Return what a unit has logged."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout

    def boot(self, folder: Path) -> subprocess.Popen[bytes]:
        """Start it in a folder with its layers; returns the process that started it."""
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                # It dies with the tests, and with it all of its namespaces.
                ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "bash", "-euc", _BOOT],
                cwd=folder, env={"PATH": os.environ["PATH"], "INIT": INIT, "GROUP": GROUP},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

        def is_up() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            self._leader = int(children[0]) if children else 0
            return bool(children) and self.run("systemctl", "is-system-running").stdout in (
                "running\n", "degraded\n",
            )  # fmt: skip

        until(is_up, 20, "a systemd that has started")
        return process

    def halt(self) -> None:
        """End the first process, and with it all others."""
        os.kill(self._leader, signal.SIGKILL)


@contextmanager
def systemd(files: Path) -> Iterator[Systemd]:
    """Run a systemd that starts nothing by itself; what is in a folder is put below its root."""
    needs_namespaces()
    tool("systemctl")
    folder = Path(tempfile.mkdtemp(prefix="turnout-systemd-"))
    try:
        for name in ("upper", "work", "root"):
            (folder / name).mkdir()
        folder.chmod(0o755)
        settings = folder / "upper" / "etc" / "systemd"
        (settings / "system").mkdir(parents=True)
        (settings / "system" / "default.target").write_text(_TARGET)
        (settings / "journald.conf").write_text(_JOURNAL)
        shutil.copytree(files, folder / "upper", symlinks=True, dirs_exist_ok=True)
        machine = Systemd()
        process = machine.boot(folder)
        try:
            yield machine
        finally:
            machine.halt()
            process.wait()
    finally:
        group = {**os.environ, "GROUP": GROUP}
        clear = ["unshare", "--mount", "bash", "-euc", _CLEAR]
        subprocess.run(clear, cwd=folder, env=group, check=False, timeout=20)
        shutil.rmtree(folder, ignore_errors=True)
