"""Load on an HTTP server, made by wrk (C, so that the client is never what is measured)."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs among the project's dependencies

from .measure import Unavailable

BODY = (
    b'{"id":"ord-2041","customer":"c-77","amount":129.95,"currency":"EUR","items":['
    b'{"sku":"A-100","count":2,"price":39.95},{"sku":"B-220","count":1,"price":50.05}],'
    b'"address":{"street":"Long Street 12","city":"Hamburg","zip":"20095","country":"DE"},'
    b'"note":"leave it at the door, ring twice"}'
)

_LATENCY = re.compile(r"^\s+(50|75|90|99)%\s+([\d.]+)(us|ms|s|m)\b", re.MULTILINE)
_TOTAL = re.compile(r"(\d+) requests in ([\d.]+)(ms|s|m)\b")
_BAD = re.compile(r"Non-2xx or 3xx responses: (\d+)")
_SOCKET = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")
_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True, slots=True)
class Load:
    """What a run of wrk came to."""

    requests: int
    seconds: float
    refused: int
    broken: int
    latency_ms: Mapping[int, float]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def post(
    url: str,
    *,
    seconds: float,
    connections: int = 64,
    body: bytes = BODY,
) -> Load:
    """POST `body` over and over on kept connections, as fast as answers come (a closed loop)."""
    if shutil.which("wrk") is None:
        raise Unavailable("there is no wrk (apt-get install wrk)")
    threads = 1 if connections < 256 else 2
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as place:
        script = Path(place) / "post.lua"
        script.write_text(_script(body))
        whole = max(1, round(seconds))
        done = subprocess.run(
            ["wrk", f"-t{threads}", f"-c{connections}", f"-d{whole}s", "--timeout", "20s",
             "--latency", "-s", str(script), url],
            capture_output=True, text=True, check=True, timeout=whole + 60,
        ).stdout  # fmt: skip
    return _read(done)


def _script(body: bytes) -> str:
    text = body.decode().replace("'", "\\'")
    lines = [
        "wrk.method = 'POST'",
        f"wrk.body = '{text}'",
        "wrk.headers['content-type'] = 'application/json'",
    ]
    return "\n".join(lines)


def _read(text: str) -> Load:
    total = _TOTAL.search(text)
    assert total is not None, text
    bad, errors = _BAD.search(text), _SOCKET.search(text)
    refused = int(bad.group(1)) if bad else 0
    return Load(
        requests=int(total.group(1)) - refused,
        seconds=float(total.group(2)) * _MS[total.group(3)] / 1000,
        refused=refused,
        broken=sum(map(int, errors.groups())) if errors else 0,
        latency_ms={
            int(part): float(value) * _MS[unit] for part, value, unit in _LATENCY.findall(text)
        },
    )


def client_seconds() -> float:
    """Return the processor time of all clients that have ended: user and system."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def processor_seconds(pid: int) -> float:
    """Return the processor time a process and its children have used: user and system."""
    root = psutil.Process(pid)
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return float(total)
