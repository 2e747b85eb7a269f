"""A socket that a supervisor hands over is taken, or refused with what the socket unit lacks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.program import environment

INHERIT = """
import os
from turnout.service.domain.errors import SetupError
from turnout.service.http.server.listening import inherit

try:
    sock = inherit()
    print("nothing" if sock is None else sock.getsockname()[1], os.get_inheritable(3))
except SetupError as error:
    print("refused:", error)
print([name for name in os.environ if name.startswith("LISTEN_")])
"""


def inherited(handed: socket.socket | None, *, count: str = "1", own: bool = True) -> list[str]:
    """Say what a process makes of a socket at descriptor 3 (or a file), and what it leaves."""
    process = "$$" if own else "1"
    with Path(os.devnull).open("rb") as file:
        number = file.fileno() if handed is None else handed.fileno()
        given = f'LISTEN_FDS={count} LISTEN_PID={process} exec "$@" 3<&{number}'
        done = subprocess.run(
            ["bash", "-c", given, "bash", sys.executable, "-c", INHERIT],
            env=environment({}), pass_fds=[number], capture_output=True, text=True, check=True,
        )  # fmt: skip
    return done.stdout.splitlines()


def test_it_is_taken_and_no_child_gets_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as handed:
        said, left = inherited(handed)
        assert said == f"{handed.getsockname()[1]} False"
    assert left == "[]"


@pytest.mark.parametrize(("count", "own"), [("1", False), ("0", True)])
def test_it_is_left_where_it_is_meant_for_another_process(count: str, own: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as handed:
        said, left = inherited(handed, count=count, own=own)
    assert said.startswith("nothing")
    assert left == "[]"


@pytest.mark.slow
def test_what_is_no_listening_tcp_socket_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as handed:
        assert "one ListenStream=" in inherited(handed, count="2")[0]
    assert "is no socket" in inherited(None)[0]
    with socket.socket() as deaf:
        assert "does not listen on TCP" in inherited(deaf)[0]
    with socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "socket"))
        local.listen()
        assert "does not listen on TCP" in inherited(local)[0]
