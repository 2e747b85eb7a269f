"""Where the code that runs comes from: a wheel that anybody can build again, a bill of materials,
what bandit finds, and the audit of known vulnerabilities. The commands are those of the pages.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support import CHECKOUT
from tests.support.pages import blocks

from .conftest import build_wheel
from .test_deploy import locked

pytestmark = pytest.mark.slow

PAGE = CHECKOUT / ".github" / "CONTRIBUTING.md"
LOCK = CHECKOUT / "deploy" / "requirements" / "runtime.txt"


def command(tool: str) -> list[str]:
    """Return the words of the page's command that runs a tool."""
    lines = [line for block in blocks(PAGE.read_text()) for line in block.text.splitlines()]
    (line,) = [line for line in lines if line.startswith(f".venv/bin/{tool} ")]
    program = str(Path(sys.executable).with_name(tool))
    return [program, *line.split()[1:]]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.timeout(180)
def test_wheel_built_twice_is_the_same(wheel: Path, context: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere"
    shutil.copytree(context, again, symlinks=True, copy_function=shutil.copyfile)  # times of now
    for file in again.rglob("*"):
        if file.is_file():
            file.chmod(0o600)
    assert build_wheel(again, tmp_path).read_bytes() == wheel.read_bytes()

    settings = again / "service" / "settings.py"
    settings.write_text(settings.read_text() + "\n")
    changed = tmp_path / "changed"
    changed.mkdir()
    assert build_wheel(again, changed).read_bytes() != wheel.read_bytes()


@pytest.mark.timeout(120)
@pytest.mark.full
def test_bill_of_materials_lists_the_lock_and_is_the_same_twice(tmp_path: Path) -> None:
    made = []
    for name in ("one.json", "two.json"):
        words = [
            str(tmp_path / name) if word.endswith(".cdx.json") else word
            for word in command("cyclonedx-py")
        ]
        done = run(words)
        assert done.returncode == 0, done.stderr
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
    bill = json.loads(made[0])
    listed = {part["name"]: part["version"] for part in bill["components"]}
    assert listed == locked(LOCK)
    assert bill["metadata"]["component"]["name"] == "turnout"
    for part in bill["components"]:
        assert any(each.get("hashes") for each in part["externalReferences"]), part["name"]


@pytest.mark.full
@pytest.mark.timeout(300)
def test_what_bandit_finds_is_argued_in_pyproject() -> None:
    """Ruff has bandit's rules, and is asked with each change; this asks bandit itself."""
    done = run([*command("bandit"), "--format=json"])
    found = json.loads(done.stdout)
    assert found["errors"] == []
    assert found["metrics"]["_totals"]["loc"] > 10_000
    tools = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]
    argued: dict[str, list[str]] = tools["ruff"]["lint"]["per-file-ignores"]
    ignored = [
        (pattern, rule)
        for pattern, rules in argued.items()
        for each in alternatives(pattern)
        for pattern, rule in ((each, rule) for rule in rules)
    ]
    new = [
        f"{result['filename']}:{result['line_number']}: {result['test_id']} {result['issue_text']}"
        for result in found["results"]
        if not any(
            fnmatch.fnmatch(result["filename"].removeprefix("./"), pattern)
            and f"S{result['test_id'][1:]}".startswith(rule)
            for pattern, rule in ignored
        )
    ]
    assert new == []


def alternatives(pattern: str) -> Iterator[str]:
    """Yield what a pattern with one pair of braces stands for."""
    before, opened, rest = pattern.partition("{")
    if not opened:
        yield pattern
        return
    inside, _, after = rest.partition("}")
    for each in inside.split(","):
        yield before + each + after


@contextmanager
def vulnerabilities(known: str) -> Iterator[str]:
    """Serve a database in which one package has a vulnerability; yields its address."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found: dict[str, Any] = {}
            if asked["package"]["name"] == known:
                package = {"ecosystem": "PyPI", "name": known}
                events = [{"introduced": "0"}, {"fixed": "999"}]
                ranges = [{"type": "ECOSYSTEM", "events": events}]
                affected = [{"package": package, "ranges": ranges}]
                dates = {"modified": "2026-01-01T00:00:00Z", "published": "2026-01-01T00:00:00Z"}
                one = {"id": "OSV-1", "summary": "bad", "aliases": [], "affected": affected}
                found = {"vulns": [{**one, **dates}]}
            body = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.full
@pytest.mark.timeout(180)
def test_audit_fails_for_a_vulnerability_and_for_what_it_cannot_judge(tmp_path: Path) -> None:
    """Against a database of our own: here is no line to a real one."""

    def audit(address: str, lock: Path = LOCK) -> subprocess.CompletedProcess[str]:
        *words, last = command("pip-audit")
        assert CHECKOUT / last == LOCK
        database = ["--vulnerability-service=osv", f"--osv-url={address}"]
        return run([*words, str(lock), *database])

    with vulnerabilities("none-of-ours") as address:
        clean = audit(address)
        assert clean.returncode == 0, clean.stderr
        unlocked = tmp_path / "requirements.txt"
        unlocked.write_text("certifi==2026.1.1\n")
        assert audit(address, unlocked).returncode == 1
    with vulnerabilities("uvicorn") as address:
        found = audit(address)
    assert found.returncode == 1
    assert "OSV-1" in found.stdout
