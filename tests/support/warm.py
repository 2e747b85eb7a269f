"""A warm interpreter, from which programs under test are forked: their imports are done already.

To import what `turnout` needs takes most of a second of processor time, and the tests start it
hundreds of times. What is forked is a process of its own, as a spawned one is: with its session,
folder, environment and output it runs the same `main`, may be killed, and ends the same ways. It
shares with its siblings what imports have made, and the order of hashes. So what measures a start
or memory spawns its program, and so does what needs another interpreter (`PYTHON…`, a tracer).

This file is also the script that stays warm, on a socket to the tests.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

MODULE = "turnout.service.cli"
WARMED = (
    "turnout.service.app.serve", "turnout.service.cli.session", "turnout.service.project.check",
    "turnout.service.http.rest.application", "turnout.handlers.flow", "turnout.triggers.webhook",
    "turnout.triggers.timers", "turnout.triggers.files", "httpx", "rich.table", "uvloop",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk.trace.export",
)  # fmt: skip
"""What a service and the commands import when they run."""

READ_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "TZ")
"""How variables begin that are read before the first line of a program."""

LONGEST_ORDER = 1 << 18


# ---------------------------------------------------------------- in a test


class Forked:
    """A process that was forked from the warm interpreter; it has what `subprocess.Popen` has."""

    def __init__(self, pid: int, ended: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = ended
        self._asking = threading.Lock()  # a supervisor in a thread asks too

    def poll(self) -> int | None:
        """Return how it ended, or None while it runs."""
        with self._asking:
            if self.returncode is None:
                try:
                    told = os.read(self._ended, 16)
                except BlockingIOError:
                    return None
                os.close(self._ended)
                assert told, "the warm interpreter has ended"
                self.returncode = int(told)
            return self.returncode

    def wait(self, timeout: float) -> int:
        """Return how it ended, once it has."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.002)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        self.send_signal(signal.SIGKILL)


def is_plain(env: Mapping[str, str]) -> bool:
    """Whether a program with this environment needs no other interpreter than these tests."""
    return _read_at_start(env) == _read_at_start(os.environ)


def _read_at_start(env: Mapping[str, str]) -> Mapping[str, str]:
    return {name: env[name] for name in env if name.startswith(READ_AT_START)}


def start(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    out: int,
    error: int,
    code: str = "",
) -> Forked:
    """Start `turnout` in a session of its own, after `code`; `out` and `error` are descriptors."""
    return _interpreter().fork([code, *arguments], dict(env), (out, error))


class _Interpreter:
    """The warm interpreter of this process; it ends with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._orders, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST_ORDER)
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(its.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
            )
        atexit.register(self._end)

    def fork(self, words: Sequence[str], env: dict[str, str], output: tuple[int, int]) -> Forked:
        ended, told = os.pipe()
        os.set_blocking(ended, False)
        order = json.dumps([words, env, str(Path.cwd())]).encode()
        try:
            with self._lock:
                socket.send_fds(self._orders, [order], [*output, told])
                return Forked(int(self._orders.recv(16)), ended)
        except BaseException:  # a test that timed out: the next one would get its answer
            _interpreter.cache_clear()
            raise
        finally:
            os.close(told)

    def _end(self) -> None:
        self._orders.close()
        self._process.wait()


_interpreter = cache(_Interpreter)


# ---------------------------------------------------------------- in the warm interpreter


class Order(NamedTuple):
    """What a forked process is to run: code, the arguments of `turnout`, where, and its files."""

    words: list[str]
    env: dict[str, str]
    folder: str
    output: list[int]


def serve(orders: socket.socket) -> Order | None:
    """Fork a process for each order. Returns the order in the fork, and None at the end."""
    told: dict[int, tuple[int, int]] = {}  # by the descriptor of a process: its id and who waits
    with selectors.DefaultSelector() as waits:
        waits.register(orders, selectors.EVENT_READ)
        while True:
            for key, _ in waits.select():
                if key.fileobj is not orders:
                    waits.unregister(key.fd)
                    os.close(key.fd)
                    _tell_end(*told.pop(key.fd))
                    continue
                message, files, _, _ = socket.recv_fds(orders, LONGEST_ORDER, 3)
                if not message:
                    return None
                pid = os.fork()
                if pid == 0:
                    words, env, folder = json.loads(message)
                    return Order(words, env, folder, files[:2])
                for each in files[:2]:
                    os.close(each)
                ends = os.pidfd_open(pid)
                told[ends] = pid, files[2]
                waits.register(ends, selectors.EVENT_READ)


def _tell_end(pid: int, told: int) -> None:
    _, status = os.waitpid(pid, 0)
    with suppress(BrokenPipeError):  # the tests have ended
        os.write(told, b"%d" % os.waitstatus_to_exitcode(status))
    os.close(told)


def become(order: Order, orders: socket.socket) -> None:
    """Make the forked process what a spawned one is before its first line, and say so."""
    os.setsid()
    for number, name in enumerate(("stdout", "stderr"), 1):
        os.dup2(order.output[number - 1], number)
        _open_stream(name, number)
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.env)
    orders.send(b"%d" % os.getpid())
    orders.detach()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def _open_stream(name: str, number: int) -> None:
    """Make a standard stream anew: the one from before knows what its file was."""
    before: io.TextIOWrapper = getattr(sys, name)
    stream = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(number, "w", closefd=False)),
        before.encoding,
        before.errors,
        line_buffering=name == "stderr",
    )
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def main() -> None:
    """Stay warm until the tests end; in a fork, be the program."""
    for module in WARMED:
        __import__(module)
    orders = socket.socket(fileno=int(sys.argv[1]))
    order = serve(orders)
    if order is None:
        return
    become(order, orders)
    code, *arguments = order.words
    sys.path.insert(0, order.folder)
    sys.argv[:] = [MODULE, *arguments]
    exec(code, {"__name__": "__main__"})
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
