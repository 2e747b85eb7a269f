"""What a command writes: its end is kept, and its lines go to the log of the run, both bounded.

Not here: reading the pipes (`shell_command`), and how a record looks (`telemetry.log_lines`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from turnout.service.governance import secrets
from turnout.service.telemetry.logs import get_logger

FIRST_LINES = 100
"""How many lines a command may write at once that are all logged."""
LINES_A_SECOND = 10.0
"""How many more are logged each second; of a flood the rest is counted."""
LAST_LINES = 10
"""How many of the last lines are logged in any case."""
MAX_LINE_BYTES = 2000

_log = get_logger("shell")


class Tail:
    """The last bytes of a stream; `left_out` is how many came before them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self._total = 0

    def take(self, data: bytes) -> None:
        """Take more of the stream."""
        self._total += len(data)
        self._kept += data[-self._limit :] if self._limit else b""
        if len(self._kept) > 2 * self._limit:
            del self._kept[: -self._limit]

    @property
    def left_out(self) -> int:
        """How many bytes of the stream are not kept."""
        return max(0, self._total - self._limit)

    def __bytes__(self) -> bytes:
        return bytes(self._kept[-self._limit :]) if self._limit else b""


class Allowance:
    """How many lines a command may still log; both its streams share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = float(FIRST_LINES)
        self._is_spent = False
        self._at = clock()

    @property
    def lines(self) -> int:
        """How many lines may be logged now."""
        now = self._clock()
        self._left = min(FIRST_LINES, self._left + (now - self._at) * LINES_A_SECOND)
        self._at = now
        # Once spent it comes back second by second, not line by line with a gap after each.
        self._is_spent = self._left < (LINES_A_SECOND if self._is_spent else 1)
        return 0 if self._is_spent else int(self._left)

    def spend(self, lines: int) -> None:
        """Count lines that were logged."""
        self._left -= lines


class Lines:
    """Logs a stream line by line, as far as its allowance goes; what is left out is counted."""

    def __init__(self, stream: str, allowance: Allowance) -> None:
        self._stream = stream
        self._allowance = allowance
        self._rest = b""
        self._last: list[bytes] = []
        self._left_out = 0

    def take(self, data: bytes) -> None:
        """Take more of the stream."""
        data = self._rest + data
        while data:
            allowed = self._allowance.lines
            if not allowed:
                data = self._leave_out(data)
                break
            line, end, rest = data.partition(b"\n")
            if not end and len(line) <= MAX_LINE_BYTES:
                break
            if len(line) > MAX_LINE_BYTES:
                line, rest = data[:MAX_LINE_BYTES], data[MAX_LINE_BYTES:]
            self._tell_left_out()
            self._write(line)
            data = rest
        self._rest = data

    def _leave_out(self, data: bytes) -> bytes:
        """Count the whole lines of this, and return the rest, as much as a line may have."""
        *last, rest = data.rsplit(b"\n", LAST_LINES + 1)
        count = data.count(b"\n")
        if count:
            self._left_out += count
            self._last = [*self._last, *(last if count <= LAST_LINES else last[1:])][-LAST_LINES:]
            self._last = [line[-MAX_LINE_BYTES:] for line in self._last]
        return rest[-MAX_LINE_BYTES:]

    def done(self) -> None:
        """Log what the stream ended with."""
        last, self._last = self._last, []
        self._left_out -= len(last)
        self._tell_left_out()
        for line in (*last, self._rest):
            self._write(line)
        self._rest = b""

    def _tell_left_out(self) -> None:
        if self._left_out:
            _log.info("shell.output_left_out", stream=self._stream, lines=self._left_out)
            self._left_out = 0
        self._last = []

    def _write(self, line: bytes) -> None:
        self._allowance.spend(1)
        text = line.decode("utf-8", "replace").rstrip("\r")
        if text.strip():
            _log.info(text, stream=self._stream)


class Masked:
    """Masks revealed secrets in a stream, also where a value comes in two parts."""

    def __init__(self, *takers: Tail | Lines) -> None:
        self._takers = takers
        self._rest = b""

    def take(self, data: bytes) -> None:
        """Take more of the stream."""
        if secrets.live_forms or self._rest:
            data, self._rest = secrets.mask_bytes(self._rest + data)
        if data:
            for each in self._takers:
                each.take(data)

    def done(self) -> None:
        """Pass on what might have been the beginning of a secret's value, and was not."""
        rest, self._rest = self._rest, b""
        for each in self._takers:
            if rest:
                each.take(rest)
            if isinstance(each, Lines):
                each.done()
