"""Serve the example project and show one run of each kind: a webhook, a file, two timers.

Everything is real: the `turnout` program, a delivery GitHub once sent (signed here), a CSV file
moved into the inbox, a timer's own tick, and a notification posted to a receiver in this process.
Ends with exit code 0 once each run has `succeeded` (`--once`), or keeps serving until Ctrl-C.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

CHECKOUT = Path(__file__).resolve().parent.parent
EXAMPLES = CHECKOUT / "handlers" / "examples"
DELIVERY = EXAMPLES / "deliveries" / "push.0.json"
PROGRAM = Path(sys.executable).with_name("turnout")
PATIENCE_SECONDS = 60.0

EXPECTED = ("activity", "pushed", "sales", "disk_free", "daily_report")
SALES = "day,product,amount\n2026-01-05,apples,12.50\n2026-01-05,pears,7.25\n"

Answer = TypeVar("Answer")


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def wait_for(what: str, ask: Callable[[], Answer | None], alive: subprocess.Popen[bytes]) -> Answer:
    """Ask until there is an answer; ends the program when the service ended or time is up."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if alive.poll() is not None:
            raise SystemExit(f"the service ended with code {alive.returncode} before {what}")
        if (answer := ask()) is not None:
            return answer
        time.sleep(0.2)
    raise SystemExit(f"{what} did not happen within {PATIENCE_SECONDS:.0f} seconds")


@contextmanager
def notifications() -> Iterator[str]:
    """Receive what the daily report sends; yields the address."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            say(f"  notification received: {json.loads(body)['text']}")
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/report"
    finally:
        server.shutdown()
        server.server_close()


class Tour:
    """One service in one folder, and the things that happen to it."""

    def __init__(self, folder: Path, report_url: str) -> None:
        self.folder = folder
        self.log = folder / "turnout.log"
        self.secret = secrets.token_hex(16)
        self.environment = os.environ | {
            "GITHUB_WEBHOOK_SECRET": self.secret,
            "REPORT_URL": report_url,
            "TURNOUT_LOG_FORMAT": "json",
        }

    def turnout(self, *arguments: str) -> str:
        """Run a `turnout` command beside the service and return what it prints."""
        return subprocess.run(
            [PROGRAM, *arguments],
            cwd=self.folder,
            env=self.environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout

    @contextmanager
    def service(self) -> Iterator[subprocess.Popen[bytes]]:
        """Serve the examples; stops them as systemd would, and waits."""
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [PROGRAM, "serve", EXAMPLES, "--port", "0"],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                process.wait(PATIENCE_SECONDS)

    def address(self) -> str | None:
        """Return the service's address once its log tells it."""
        for line in self.log.read_text().splitlines():
            if "service.started" in line:
                return str(json.loads(line)["url"])
        return None

    def deliver(self, url: str) -> dict[str, Any]:
        """Post a GitHub delivery as GitHub does."""
        body = DELIVERY.read_bytes()
        signature = hmac.new(self.secret.encode(), body, hashlib.sha256).hexdigest()
        request = urllib.request.Request(
            f"{url}/hooks/github",
            data=body,
            headers={
                "Content-Type": "application/json",
                "X-GitHub-Event": "push",
                "X-GitHub-Delivery": str(uuid.uuid4()),
                "X-Hub-Signature-256": f"sha256={signature}",
            },
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return {"status": response.status, **json.loads(response.read())}

    def drop(self) -> Path:
        """Put a CSV file into the inbox, whole at once."""
        inbox = self.folder / "inbox"
        inbox.mkdir(exist_ok=True)
        draft = self.folder / "draft"
        draft.write_text(SALES)
        return draft.rename(inbox / f"sales-{secrets.token_hex(4)}.csv")

    def runs(self) -> dict[str, dict[str, Any]] | None:
        """Return a run of every expected flow, or None until each has one that succeeded."""
        listed = [json.loads(line) for line in self.turnout("runs", "--json").splitlines()]
        if failed := [run for run in listed if run["state"] == "failed"]:
            raise SystemExit(f"failed: {failed}")
        runs = {run["flow"]: run for run in listed if run["state"] == "succeeded"}
        return runs if set(EXPECTED) <= set(runs) else None


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Write the runs as the table that ends the tour."""
    rows = [("TRIGGER", "FLOW", "STATE", "RESULT")]
    for flow in EXPECTED:
        run = runs[flow]
        rows.append((run["trigger"], flow, run["state"], json.dumps(run["result"])))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join(["", *map(str.ljust, row[:3], widths), row[3]]) for row in rows)


def walk(tour: Tour, process: subprocess.Popen[bytes]) -> str:
    """Make everything happen once, show it, and return the service's address."""
    url = wait_for("starting", tour.address, process)
    say(f"turnout serves {EXAMPLES.relative_to(CHECKOUT)} at {url}")
    answer = tour.deliver(url)
    say(f"  GitHub delivery posted: answered {answer['status']}, {len(answer['runs'])} runs")
    dropped = tour.drop()
    say(f"  CSV file dropped: inbox/{dropped.name}")
    done = dropped.parent / "done" / dropped.name
    wait_for("moving the file", lambda: done.exists() or None, process)
    tour.turnout("fire", "cron:0 7 * * *")
    say("  daily report fired; the next tick of disk_free is due within ten seconds")
    say("\n" + table(wait_for("every run", tour.runs, process)) + "\n")
    return url


def main() -> None:
    """Run the tour."""
    parser = argparse.ArgumentParser(description="Serve the examples and show a run of each kind.")
    parser.add_argument("--once", action="store_true", help="stop after the table, for scripts")
    once = parser.parse_args().once
    with TemporaryDirectory(prefix="turnout-try-") as name, notifications() as report_url:
        tour = Tour(Path(name), report_url)
        try:
            with tour.service() as process:
                url = walk(tour, process)
                if not once:
                    say(f"Look around from another terminal:\n  cd {name}\n  {PROGRAM} runs\n")
                    say(f"API: {url}/docs   Metrics: {url}/metrics   Stop with Ctrl-C.")
                    serve_on(process)
        except (SystemExit, subprocess.SubprocessError, OSError):
            say(tour.log.read_text() if tour.log.exists() else "")
            raise
    if process.returncode != 0:
        raise SystemExit(f"the service ended with code {process.returncode}")
    say("Stopped cleanly.")


def serve_on(process: subprocess.Popen[bytes]) -> None:
    """Wait for Ctrl-C; the terminal sends it to the service as well."""
    try:
        process.wait()
    except KeyboardInterrupt:
        process.wait(PATIENCE_SECONDS)


if __name__ == "__main__":
    main()
