"""Decisions: why an event did not simply start a run of a flow. One closed list of reasons.

A decision is about an event and a flow, or about the event itself. It has a reason from this list,
a sentence for people, and facts for programs: what was asked, and the answer. The names of facts
are the same everywhere:

* `run`: the run that the decision ended, if one was made
* `other`: the run it duplicates, that goes on, or that replaced it
* `rule`, `key`: the rule that was asked, as the author wrote it, and the key it was asked about
* `count`, `limit`, `period`, `next_free`: how many there are, how many may be, in how many seconds,
  and the next free instant
* `condition`, `file`, `line`: the condition that was false, and where it stands
* `by`: who decided it, of an operator
* `would`: what a run would have done that `shadow` has not made: `start`, or `fail` at once
* `type`, `bytes`, `record`, `path`: the delivery that came again: its type and size, and the record
  or file it came in
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TypeAlias

Fact: TypeAlias = "str | int | float | bool | datetime | None"
"""A value of a fact; the journal cuts longer texts to `FACT_CHARACTERS`."""

FACT_CHARACTERS = 200
"""The most characters of a text that is kept of a fact."""


class Reason(StrEnum):
    """Why an event started no run of a flow, or its run never began; also a label of metrics."""

    FILTERED = "filtered"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    WINDOWED = "windowed"
    EXPIRED = "expired"
    DROPPED = "dropped"
    UNIQUE = "unique"
    SKIP = "skip"
    LATEST = "latest"
    REPLACED = "replaced"
    RATE_LIMIT = "rate_limit"
    START_TIMEOUT = "start_timeout"
    SHADOW = "shadow"
    CYCLE = "cycle"
    UNMATCHED = "unmatched"
