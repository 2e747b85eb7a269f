"""`kill -9` at every boundary of a flow of requests: a recorded answer is never asked for again.

The server lies outside the program, in the test, and keeps what it was asked. The program dies
before a request, when the server has it, while the body comes, when the answer is there and not
recorded, and when it is. The one request in flight may be repeated, with the same
`Idempotency-Key`; no part of a download, no connection and no process is left.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Say
from tests.support.program import until
from tests.support.stub_http import Asked, Reply, Stub, stubbed

from .crash_battery import CrashBattery, crashing
from .crash_points import forgetting, plans_of

pytestmark = pytest.mark.timeout(600)

FLOWS = Path(__file__).parent / "flows" / "requests.py"
DUMP = bytes(range(256)) * 10_000
STEPS = {
    "order": ("http.post#1", 1), "price": ("http.get#1", 2), "dump": ("http.get#2", 1),
    "note": ("note#1", 1),
}  # fmt: skip
"""By the kind of a request: the step that records it, and how often it is sent undisturbed."""

POINTS = """
from urllib.parse import urlsplit
from turnout.handlers.actions import http_exchange
from turnout.service.journal.sqlite.staging import StagedBlob

exchange = http_exchange.exchange

async def watched_exchange(request, open_body):
    what = f"{request.method} {urlsplit(request.url).path.split('/')[1]}"
    def opened(status, headers):
        passed(f"{what} answers")
        return open_body(status, headers)
    passed(f"before {what}")
    answer = await exchange(request, opened)
    passed(f"{what} is answered")
    return answer

http_exchange.exchange = watched_exchange

def watched_file(name):
    honest = getattr(StagedBlob, name)
    def called(self, *arguments):
        answer = honest(self, *arguments)
        passed(f"file {name}")
        return answer
    setattr(StagedBlob, name, called)

watched_file("write")
watched_file("close")
watched_file("keep")
"""

OTHER_KEY = """
import uuid
from turnout.handlers.actions import http
exchanged = http.exchanged
http.exchanged = lambda url, request, key: exchanged(url, request, uuid.uuid4().hex)
"""
PARTS_STAY = """
from pathlib import Path
glob = Path.glob
Path.glob = lambda self, pattern, **named: glob(self, "nothing" if pattern == "*.part" else pattern)
"""


@dataclass
class Battery(CrashBattery):
    """A program whose flow asks a server."""

    stub: Stub
    path = "/hooks/requests"

    def is_by_the_test(self, number: int, plan: str) -> bool:
        """Prepare the server: it kills the program at "server …"."""
        self._answers(number, plan)
        return not plan or plan.startswith("server")

    def _answers(self, number: int, plan: str) -> None:
        """Have the server answer for a run; as planned it kills the program instead."""
        _, _, planned = plan.partition("server ") if plan.startswith("server") else ("", "", "")

        def told(asked: Asked) -> None:
            nonlocal planned
            kind = asked.path.split("/")[1]
            if planned == f"{kind}|{len(self.stub.to(asked.path))}":
                planned = ""
                self.program.kill()

        def dump() -> Iterator[bytes]:
            nonlocal planned
            half = len(DUMP) // 2
            yield DUMP[:half]
            if planned == "half of dump":
                planned = ""
                until(lambda: list(self.blobs("*.part")), 10, "a part on the disk")
                self.program.kill()
            yield DUMP[half:]

        self.stub.when_asked = told
        self.stub.says(f"/order/{number}", Reply(201, b'"taken"'))
        self.stub.says(f"/price/{number}", Reply(503), Reply(200, b"7"))
        self.stub.says(f"/dump/{number}", Reply(200, dump, has_length=False))
        self.stub.says(f"/note/{number}", Reply(204))

    def check(self, number: int, run: dict[str, Any], recorded: set[str]) -> None:
        """Compare what a run came to, and what the server was asked, with what is promised."""
        assert run["result"] == {
            "order": "taken", "price": 7, "noted": 204, "bytes": len(DUMP),
        }  # fmt: skip
        assert [each["name"] for each in run["artefacts"]] == ["dump.bin"]
        again = 0
        keys = defaultdict[str, set[str]](set)
        for kind, (step, times) in STEPS.items():
            asked = self.stub.to(f"/{kind}/{number}")
            again += len(asked) - times
            assert len(asked) == times or step not in recorded, f"{kind}: {len(asked)} requests"
            keys[kind] = {each.headers.get("idempotency-key", "") for each in asked}
            assert len(keys[kind]) == 1, f"{kind} had several idempotency keys"
            assert len({each.body for each in asked}) == 1
        assert 0 <= again <= 1, f"{again} requests were sent again"
        assert keys["price"] == keys["dump"] == {""}, "what reads has none"
        assert len(keys["order"] | keys["note"]) == 2
        self._check_nothing_is_left()

    def _check_nothing_is_left(self) -> None:
        assert not list(self.blobs("*.part")), "a part of a download is left"
        kept = [path for path in self.blobs("*/*") if path.is_file()]
        assert [path.read_bytes() == DUMP for path in kept] == [True], "one content, whole"
        until(lambda: not self.stub.open, 10, "no connection is left")
        assert not self.open_blobs(), "a file is open"


@contextmanager
def served(folder: Path, sabotage: str = "") -> Iterator[Battery]:
    with stubbed() as stub:
        program = crashing(folder, FLOWS, POINTS + sabotage, {"STUB": stub.url})
        with program.start():
            program.ready()
            yield Battery(folder, program, stub)


BY_THE_SERVER = [
    "server order|1", "server price|1", "server price|2", "server dump|1", "server half of dump",
    "server note|1",
]  # fmt: skip


def test_killed_at_any_point_each_request_has_one_effect(
    tmp_path: Path, full: bool, seed: int, say: Say
) -> None:
    with served(tmp_path) as battery:
        battery.one_run()
        plans = plans_of(battery.points())
        assert sum(plan.startswith("before") for plan in plans) == 5
        assert sum("#" in plan and "succeeded|" in plan for plan in plans) == 5
        chosen = plans + BY_THE_SERVER
        if not full:
            chosen = [random.Random(seed).choice(plans), "POST order is answered|1"]
            chosen += ["server order|1", "server half of dump"]
        for plan in chosen:
            battery.one_run(plan)
        assert battery.program.stop() == 0
        battery.program.check_journal()
    say(f"{len(chosen)} of {len(plans) + len(BY_THE_SERVER)} points, each killed at once")


@pytest.mark.parametrize(
    ("sabotage", "plan", "words"),
    [
        pytest.param(
            OTHER_KEY, "server order|1", "order had several idempotency keys", id="another key"
        ),
        pytest.param(
            forgetting("http.post#1"),
            "before GET price|1",
            "order: 2 requests",
            id="a forgotten answer",
            marks=pytest.mark.full,
        ),
        pytest.param(
            PARTS_STAY,
            "server half of dump",
            "a part of a download is left",
            id="a part that stays",
            marks=pytest.mark.full,
        ),
    ],
)
def test_the_battery_notices(tmp_path: Path, sabotage: str, plan: str, words: str) -> None:
    with served(tmp_path, sabotage) as battery, pytest.raises(AssertionError, match=words):
        battery.one_run(plan)
