"""The guardian of a command: a small program that starts it, and ends all of it with the service.

`python -I -S shell_guardian.py STATUS STDIN`: the request comes through standard input, a pipe
whose other end only the service holds. When that closes, however the service ended, every process
of the command is killed: its process group, and on Linux also those that left it, since orphans
become children of the guardian. It says through STATUS what became of the command.

It also ends the command when its time is over: the service may be held up then, by a log that
nobody reads. It imports nothing of turnout and little else: it runs beside each command. Not here:
output, which goes to the service directly, and what an exit code means.
"""

from __future__ import annotations

import errno
import marshal
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator
else:
    import _signal as signal  # `signal` and `typing` take longer to import than all the rest

CONTROL = 0
LEFT_SECONDS = 0.2
"""How long what the command leaves behind may take to end by itself."""
KILL_SECONDS = 10.0
"""How long killed processes are waited for; the kernel may hold one that waits for a disk."""

_LOOK_SECONDS = 0.05
"""How often a group is looked at whose members are not the guardian's children."""

_MOST_SECONDS = 24 * 3600.0
"""How long `poll` is asked to wait at most: it takes no month."""

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
_CAUGHT = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
"""Signals that a supervisor may send to every process; the service says what happens."""


def main() -> None:
    """Start the command, watch it and the service, and end with both."""
    status, stdin = int(sys.argv[1]), int(sys.argv[2])
    for descriptor in (CONTROL, status, stdin):
        os.set_inheritable(descriptor, False)
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_CAUGHT):
        signal.signal(number, lambda *_: None)
    argv, env, folder, seconds, grace_seconds = _request()
    prctl = _prctl()
    adopts = prctl is not None and prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    failed, fails = os.pipe()
    guardian = os.getpid()
    child = os.fork()
    if child == 0:
        _prepare(stdin, status, prctl, guardian)
        _become(argv, env, folder, fails)
    os.close(fails)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2, stdin):
        os.dup2(null, descriptor)
    os.chdir("/")
    Guardian(
        child, status, woken, failed, adopts=adopts, seconds=seconds, grace_seconds=grace_seconds
    ).watch()


def _request() -> tuple[list[bytes], dict[bytes, bytes], bytes | None, float | None, float]:
    """Return arguments, environment, folder, the time there is, and that from SIGTERM to SIGKILL.

    Both times are in seconds.
    """
    size = int.from_bytes(_exactly(8), "big")
    argv, env, folder, seconds, grace_seconds = marshal.loads(_exactly(size))
    return argv, env, folder, seconds, grace_seconds


def _exactly(size: int) -> bytes:
    parts = []
    while size:
        part = os.read(CONTROL, min(size, 2**20))
        if not part:
            os._exit(0)  # the service is gone, and nothing has been started
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _prctl() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        prctl: Callable[..., int] = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return None
    return prctl


def _prepare(stdin: int, status: int, prctl: Callable[..., int] | None, guardian: int) -> None:
    """Give this process what a command has: a session of its own, and signals as at a login."""
    os.setsid()
    os.write(status, b"pid %d\n" % os.getpid())  # before it can do anything to its guardian
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, *_CAUGHT):
        signal.signal(number, signal.SIG_DFL)  # Python ignores two of them
    if prctl is not None:
        prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guardian:
            os._exit(127)
    os.dup2(stdin, 0)


def _become(argv: list[bytes], env: dict[bytes, bytes], folder: bytes | None, fails: int) -> None:
    """Turn this process into the command; never returns."""
    stage = b"folder"
    try:
        if folder is not None:
            os.chdir(folder)
        stage = b"program"
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        os.write(fails, b"%s %d" % (stage, error.errno or errno.EINVAL))
    except Exception:  # noqa: BLE001  whatever it is, the command has not been started
        os.write(fails, b"%s %d" % (stage, errno.EINVAL))
    finally:
        os._exit(127)


class Guardian:
    """Watches one command: its processes, and the pipe of the service."""

    def __init__(
        self,
        child: int,
        status: int,
        woken: int,
        failed: int,
        *,
        adopts: bool,
        seconds: float | None,
        grace_seconds: float,
    ) -> None:
        self._child = child
        self._status = status
        self._woken = woken
        self._failed = failed
        self._adopts = adopts
        self._grace_seconds = grace_seconds
        self._ended: int | None = None
        self._time_over = None if seconds is None else time.monotonic() + seconds
        self._deadline: float | None = None
        self._is_ending = False
        self._is_left = False
        self._has_begun = False

    def watch(self) -> None:
        """Return when nothing of the command is left, and that is said."""
        poll = select.poll()
        parent = _pidfd(os.getppid())
        for descriptor in (CONTROL, self._woken, self._failed, parent):
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
        while not self._is_over():
            for descriptor, _ in poll.poll(self._patience()):
                if descriptor == self._woken:
                    _drain(self._woken)
                elif descriptor == self._failed:
                    poll.unregister(self._failed)
                    self._begin()
                elif descriptor == parent or not os.read(CONTROL, 64):
                    self._kill()  # the service is gone
                    return
                else:
                    self._end()
            self._look_at_time()
        self._begin()
        if self._ended is not None:
            self._say(b"exit %d %d" % (self._ended, self._is_left))

    # ---- what is there

    def _is_over(self) -> bool:
        """Reap what has ended; whether nothing is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return self._adopts or not self._group_lives()
            if pid == 0:
                return False
            if pid == self._child:
                self._ended = status
                if self._deadline is None:
                    self._deadline = time.monotonic() + LEFT_SECONDS

    def _group_lives(self) -> bool:
        try:
            os.killpg(self._child, 0)
        except OSError:
            return False
        return True

    def _processes(self) -> Iterator[int]:
        """Yield all processes of the command, where the guardian adopts them."""
        found = [os.getpid()] if self._adopts else []
        while found:
            children = _children(found.pop())
            found += children
            yield from children

    # ---- ending it

    def _patience(self) -> float | None:
        """Return for how many milliseconds nothing has to be looked at."""
        if self._deadline is None:
            left = None if self._time_over is None else _left(self._time_over)
            return None if left is None else min(left, _MOST_SECONDS) * 1000
        left = min(_left(self._deadline), _MOST_SECONDS)
        return (left if self._adopts else min(left, _LOOK_SECONDS)) * 1000

    def _look_at_time(self) -> None:
        if self._deadline is None:
            if self._time_over is not None and not _left(self._time_over):
                self._say(b"timeout")
                self._end()
            return
        if _left(self._deadline):
            return
        if self._is_ending:
            self._kill()
            return
        self._is_left = True  # the command has ended, and others of it have not
        self._end()

    def _end(self) -> None:
        """Ask every process to end; those that are there after the grace time are killed."""
        if not self._is_ending:
            self._is_ending = True
            self._deadline = time.monotonic() + self._grace_seconds
            self._send(signal.SIGTERM)
            self._send(signal.SIGCONT)

    def _kill(self) -> None:
        """Kill every process, also those that are made meanwhile."""
        until = time.monotonic() + KILL_SECONDS
        self._deadline = None
        while True:
            self._send(signal.SIGKILL)
            if self._is_over():
                return
            if time.monotonic() > until:
                self._say(b"stuck")
                os._exit(1)
            select.select([self._woken], [], [], 0.01)
            _drain(self._woken)

    def _send(self, number: int) -> None:
        """Send a signal once to each: the second SIGTERM means to some that they end at once."""
        # Once it is reaped its number may be another's, so others are then found as descendants.
        has_group = self._ended is None or not self._adopts
        others = [pid for pid in self._processes() if not has_group or not self._is_in_group(pid)]
        if has_group:
            _signal(os.killpg, self._child, number)
        for pid in others:
            _signal(os.kill, pid, number)

    def _is_in_group(self, pid: int) -> bool:
        try:
            return os.getpgid(pid) == self._child
        except OSError:  # it has ended
            return True

    # ---- saying it

    def _begin(self) -> None:
        """Say it if the command could not be started: it has run, or ended before."""
        if self._has_begun:
            return
        self._has_begun = True
        said = os.read(self._failed, 100)
        if said:
            self._say(b"failed " + said)

    def _say(self, line: bytes) -> None:
        try:
            os.write(self._status, line + b"\n")
        except OSError:  # the service is gone; the pipe of requests says so too
            return


def _signal(send: Callable[[int, int], None], whom: int, number: int) -> None:
    try:
        send(whom, number)
    except OSError:  # it has ended, or runs as another user
        return


def _pidfd(pid: int) -> int | None:
    """Return what becomes readable when a process ends: a fork of it may hold its pipe open."""
    try:
        return os.pidfd_open(pid) if sys.platform == "linux" else None
    except (OSError, AttributeError):  # an old kernel, or a Python that was built on one
        return None


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 4096):
            pass
    except BlockingIOError:
        return


def _children(parent: int) -> list[int]:
    if not _lists_children:
        return _children_by_scan(parent)
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{parent}/task"):  # noqa: PTH208  pathlib is slow to import
            with open(f"/proc/{parent}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                found += map(int, file.read().split())
    except OSError:  # it has ended meanwhile, and its children are the guardian's
        return found
    return found


_lists_children = os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children")  # noqa: PTH110


def _children_by_scan(parent: int) -> list[int]:
    """Return the children by looking at all processes: some kernels keep no list of them."""
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208  as above
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(name))
    return found


if __name__ == "__main__":
    main()
