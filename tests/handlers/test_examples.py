"""Every example runs as it is printed, in the real program, on real input."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support import CHECKOUT
from tests.support.program import Program, turnout, until
from tests.support.serving import serving

pytestmark = pytest.mark.slow

EXAMPLES = CHECKOUT / "handlers" / "examples"
DELIVERIES = sorted((EXAMPLES / "deliveries").glob("*.json"))
SECRET = "a-secret-of-the-test"
TOKEN = "the-token-of-this-test"


def serve(tmp_path: Path, example: str, **env: str) -> Program:
    """Return an example as a program in `tmp_path`, which is its working folder."""
    return Program(
        flows=EXAMPLES / example,
        data=tmp_path / "data",
        log=tmp_path / "log",
        env={"TURNOUT_API_TOKEN": TOKEN, **env},
        prefix=("env", "-C", str(tmp_path)),
    )


def ended(program: Program, flow: str, count: int = 1) -> list[dict[str, Any]]:
    """Wait until so many runs of a flow have ended; return them."""

    def look() -> list[dict[str, Any]] | None:
        runs: list[dict[str, Any]] = program.api(f"/runs?flow={flow}")["items"]
        over = [run for run in runs if run["finished_at"] is not None]
        return over if len(over) >= count else None

    return until(look, 15, f"{count} ended runs of {flow}")


def fire(program: Program, trigger: str) -> None:
    """Have a timer's tick now."""
    path = f"/api/triggers/{quote(trigger, safe='')}/fire"
    fired = program.ask(path, method="POST", headers={"Authorization": f"Bearer {TOKEN}"})
    assert fired is not None and fired.status in (200, 202), fired


def test_six_lines_are_six_and_run(tmp_path: Path) -> None:
    """`tests/test_pages.py` waits for a tick of their own."""
    source = (EXAMPLES / "six_lines.py").read_text()
    code = source.split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) == 6
    with serve(tmp_path, "six_lines.py").start() as program:
        program.ready()
        fire(program, "every:10s")
        (run, *_) = ended(program, "disk_free")
        assert run["state"] == "succeeded"
        assert run["trigger"] == "every:10s"
        assert run["result"] > 0
        assert program.stop() == 0


def deliver(program: Program, delivery: Path, **changed: str) -> tuple[int, Any]:
    """Post a delivery as GitHub does."""
    body = delivery.read_bytes()
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    answer = program.ask(
        "/hooks/github",
        method="POST",
        body=body,
        headers={
            "Content-Type": "application/json",
            "X-GitHub-Event": delivery.name.split(".")[0],
            "X-GitHub-Delivery": f"delivery-of-{delivery.stem}",
            "X-Hub-Signature-256": f"sha256={signature}",
        }
        | changed,
    )
    assert answer is not None
    return answer.status, answer.json


def test_github_takes_every_real_delivery_once(tmp_path: Path) -> None:
    assert len(DELIVERIES) == 10
    with serve(tmp_path, "github.py", GITHUB_WEBHOOK_SECRET=SECRET).start() as program:
        program.ready()
        for delivery in DELIVERIES:
            status, answer = deliver(program, delivery)
            expected = 2 if delivery.name.startswith("push") else 1
            assert (status, len(answer["runs"]), answer["duplicate"]) == (202, expected, False)
            assert deliver(program, delivery)[1]["duplicate"] is True
        forged = deliver(program, DELIVERIES[0], **{"X-Hub-Signature-256": f"sha256={'0' * 64}"})
        assert forged[0] == 401

        runs = ended(program, "activity", len(DELIVERIES))
        assert {run["state"] for run in runs} == {"succeeded"}
        lines = {run["result"] for run in runs}
        assert "Codertocat/Hello-World: issues edited by Codertocat" in lines
        assert "Octocoders/Hello-World: ping by Codertocat" in lines
        (push,) = ended(program, "pushed")
        assert push["result"] == {"ref": "refs/tags/simple-tag", "change": "pushed", "commits": 0}
        assert len(program.api("/runs?flow=activity")["items"]) == len(DELIVERIES)
        assert program.stop() == 0


def test_csv_drop_summarises_good_files_and_names_bad_lines(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    head = "day,product,amount\n"
    (inbox / "good.csv").write_text(f"{head}2026-01-05,pears,0.10\n2026-01-05,pears,0.20\n")
    with serve(tmp_path, "csv_drop.py").start() as program:
        program.ready()
        (good,) = ended(program, "sales")
        assert good["state"] == "succeeded"
        assert good["result"] == {"rows": 2, "total": "0.30", "by_product": {"pears": "0.30"}}
        until((inbox / "done" / "good.csv").exists, 10, "the good file in done/")

        (inbox / "bad.csv").write_text(f"{head}2026-01-05,pears,1\n2026-13-05,pears,1\nx,,-1\n")
        (bad,) = [run for run in ended(program, "sales", 2) if run["state"] == "failed"]
        assert re.search(r"line 3: day: .*; line 4: day: ", bad["error"]["message"])
        assert bad["attempts"] == 1
        until((inbox / "failed" / "bad.csv").exists, 10, "the bad file in failed/")
        until(lambda: not list(inbox.glob("*.csv")), 10, "nothing left in the inbox")
        assert program.stop() == 0


@contextmanager
def receiver(*statuses: int) -> Iterator[tuple[str, list[str]]]:
    """Receive notifications, answering each with the next status; the last one stays."""
    texts: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["text"])
            self.send_response(statuses[min(len(texts), len(statuses)) - 1])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}/report", texts


def test_daily_report_is_sent_again_until_it_arrives(tmp_path: Path) -> None:
    done = tmp_path / "inbox" / "done"
    done.mkdir(parents=True)
    (done / "a.csv").write_bytes(b"12345")
    with (
        receiver(503, 204) as (url, texts),
        serve(tmp_path, "daily_report.py", REPORT_URL=url).start() as program,
    ):
        program.ready()
        fire(program, "cron:0 7 * * *")
        (run,) = ended(program, "daily_report")
        assert (run["state"], run["result"]) == ("succeeded", {"files": 1, "bytes": 5})
        assert texts == ["files done: 1, bytes: 5"] * 2
        assert url not in program.log_text()
        assert "HTTP Request" not in program.log_text()
        assert program.stop() == 0


PROJECTS = [  # files of one are served together: they share the names of flows and triggers
    [
        EXAMPLES / f"{name}.py"
        for name in ("six_lines", "github", "csv_drop", "daily_report", "trip", "dynamic")
    ],
    [EXAMPLES / "data/sales_report.py", EXAMPLES / "data/etl.py"],
]
CHECKED = [path for project in PROJECTS for path in project]


def test_check_accepts_each_example() -> None:
    for project in PROJECTS:
        checked = turnout("check", *project)
        assert checked.returncode == 0, checked.stdout


def test_check_names_each_secret_that_an_example_misses() -> None:
    strict = turnout("check", "--env", *CHECKED)
    wanted = {
        (path.name, name)
        for path in CHECKED
        for name in re.findall(r'secret\("(\w+)"\)', path.read_text())
    }
    assert wanted
    assert strict.returncode == 1
    assert set(re.findall(r"(\w+\.py):\d+: secret '(\w+)'", strict.stdout)) == wanted
