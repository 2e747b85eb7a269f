"""Alerts: what a flow has people told, by which channel, and what makes two failures the same one.

An alert is an episode: it opens when a cause first shows, and ends when the flow has recovered from
it. Not here: where alerts are kept (`journal`), and when what is told (`service/alerts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from .run import RunError
from .tracebacks import innermost

_MOST_CHARACTERS = 160
_FAIL = "failed"
"""The type of the error of a run that raised `Fail`."""


class AlertRule(StrEnum):
    """Why an alert opens."""

    FAILURE = "failure"
    EXPECT_EVERY = "expect_every"
    DEADLINE = "deadline"
    FINISH_WITHIN = "finish_within"


class News(StrEnum):
    """What a message tells of an alert."""

    OPENED = "opened"
    GROWN = "grown"
    REPEATED = "repeated"
    RECOVERED = "recovered"
    SUMMARY = "summary"


@dataclass(frozen=True, slots=True)
class Message:
    """What people are sent; the same under the same `key`, however often it is sent.

    `document` is the whole of it as JSON.
    """

    key: str
    title: str
    text: str
    document: Mapping[str, Any]


class Channel(Protocol):
    """A way to people; `name` tells it from others, and holds no secret."""

    @property
    def name(self) -> str: ...  # noqa: D102

    async def send(self, message: Message) -> None:
        """Send a message; returns when it was taken, and raises if it was not."""


def cause_of(error: RunError) -> str:
    """Return what a failure has in common with others of its cause: type and place, and no data.

    The place is the task, else the function of the author's code that raised it.
    """
    if error.step is not None:
        place = error.step.rpartition("/")[2].partition("#")[0]
    else:
        frame = innermost(error.traceback)
        place = "" if frame is None else frame.function
    kind = "Fail" if error.type == _FAIL else error.type
    words = f"{kind} in {place}" if place else kind
    return words if len(words) <= _MOST_CHARACTERS else f"{words[: _MOST_CHARACTERS - 1]}…"
