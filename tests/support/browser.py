"""A real browser for tests: Debian's Chromium, driven over its debugging pipe, and axe-core.

What is missing is installed (`apt-get install chromium`, `npm pack axe-core`); where that cannot be
done the test fails and says what to install.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from select import select
from time import monotonic
from typing import Any

AXE = "axe-core@4.14.1"
ANSWER_SECONDS = 30.0

_RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")


class Browser:
    """One page of a headless browser."""

    def __init__(self, process: subprocess.Popen[bytes], commands: int, answers: int) -> None:
        self._process = process
        self._commands = commands
        self._answers = answers
        self._numbers = itertools.count(1)
        self._read = b""
        self._events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self._send("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self._send("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session = attached["sessionId"]
        self.do("Page.enable")

    def do(self, method: str, **parameters: Any) -> Any:
        """Do something in the page; returns the result."""
        return self._send(method, parameters)

    def open(self, url: str) -> None:
        """Open an address and wait until the page is loaded."""
        self._events.clear()
        problem = self.do("Page.navigate", url=url).get("errorText")
        assert problem is None, problem
        self.loaded()

    def loaded(self) -> None:
        """Wait until the page that is on its way is loaded."""
        while not any(each.get("method") == "Page.loadEventFired" for each in self._events):
            self._events.append(self._message())
        self._events.clear()

    def look_like(self, width: int, *, dark: bool = False, script: bool = True) -> None:
        """Be so many CSS pixels wide: a phone below 500; light or dark, with scripts or without."""
        self.do(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1,
            mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])
        self.do("Emulation.setScriptExecutionDisabled", value=not script)

    def value(self, code: str) -> Any:
        """Return the value of an expression in the page."""
        done = self.do("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def write(self, selector: str, text: str) -> None:
        """Put the cursor into an input and type."""
        self.do("DOM.focus", nodeId=self._node(selector))
        self.do("Input.insertText", text=text)

    def press(self, selector: str, *, follows: bool = True) -> None:
        """Press an element in its middle, where a finger would; a page `follows`, or does not."""
        node = self._node(selector)
        self.do("DOM.scrollIntoViewIfNeeded", nodeId=node)
        corners: Sequence[float] = self.do("DOM.getBoxModel", nodeId=node)["model"]["border"]
        x, y = sum(corners[::2]) / 4, sum(corners[1::2]) / 4
        self._events.clear()
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        if follows:
            self.loaded()

    def text(self) -> str:
        """Return the HTML of the page; without any script of its own."""
        return str(self.do("DOM.getOuterHTML", nodeId=self._node("html"))["outerHTML"])

    def axe(self) -> dict[str, list[str]]:
        """Return what axe finds wrong, and what it could not decide, and how many rules passed."""
        self.value(_axe_source() + "; 0")
        options = json.dumps({"runOnly": _RULES})
        found = self.value(f"axe.run(document, {options})")
        return {
            kind: [f"{each['id']}: {each['help']}: {_places(each)}" for each in found[kind]]
            for kind in ("violations", "incomplete", "passes")
        }

    def _node(self, selector: str) -> int:
        root = self.do("DOM.getDocument")["root"]["nodeId"]
        node: int = self.do("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        assert node, f"the page has no {selector}"
        return node

    def _send(self, method: str, parameters: dict[str, Any]) -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._events.append(answer)

    def _message(self) -> dict[str, Any]:
        end = monotonic() + ANSWER_SECONDS
        while b"\0" not in self._read:
            ready, _, _ = select([self._answers], [], [], max(end - monotonic(), 0))
            assert ready, "the browser does not answer"
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser has ended"
            self._read += part
        message, _, self._read = self._read.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded


def _places(found: dict[str, Any]) -> str:
    return ", ".join(" ".join(map(str, node["target"])) for node in found["nodes"][:3])


@contextmanager
def browsing() -> Iterator[Browser]:
    """Start a browser; it is gone with the block."""
    program = _chromium()
    to_read, commands = os.pipe()
    answers, to_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Chromium reads commands from descriptor 3 and answers on 4.
        launch = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        process = subprocess.Popen(
            ["bash", "-c", launch, program, "--headless=new", "--no-sandbox", "--disable-gpu",
             "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"],
            pass_fds=(to_read, to_write), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        try:
            yield Browser(process, commands, answers)
        finally:
            process.terminate()
            process.wait(20)
            os.close(commands)
            os.close(answers)


def _chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        _run("apt-get", "update")
        _run("apt-get", "install", "--yes", "--no-install-recommends", "chromium")
        found = shutil.which("chromium")
    assert found is not None, "this test needs a browser: apt-get install chromium"
    return found


@functools.cache
def _axe_source() -> str:
    """Return axe-core, from the npm registry."""
    with tempfile.TemporaryDirectory() as folder:
        _run("npm", "pack", AXE, "--silent", "--pack-destination", folder)
        (packed,) = Path(folder).glob("*.tgz")
        _run("tar", "-xzf", str(packed), "-C", folder, "package/axe.min.js")
        return (Path(folder) / "package" / "axe.min.js").read_text("utf-8")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
