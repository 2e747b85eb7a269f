"""The W3C trace context: the text that travels, the ids of a run's spans, and who is sampled.

Every id is derived: of a run from its id, of what is inside from where it is in the run. So a
restart continues the trace it finds, with nothing stored but the event's own `traceparent`. Spans
themselves are made in `telemetry.traces`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

from .event import TRACE

_TRACEPARENT, _TRACESTATE = TRACE
_SHAPE = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 0x01
_IDS = 2**64


class SpanContext(NamedTuple):
    """Which span of which trace, as hex digits (32 and 16), and whether it is sampled."""

    trace_id: str
    span_id: str
    sampled: bool

    def __str__(self) -> str:
        """Return the value of a `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def read(carried: Mapping[str, str]) -> SpanContext | None:
    """Return the span that a `traceparent` names; None without one, and for one that is invalid.

    Rules: https://www.w3.org/TR/trace-context/#traceparent-header. A later version may have more
    fields, which are ignored.
    """
    found = _SHAPE.fullmatch(carried.get(_TRACEPARENT, "").strip())
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    if not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return SpanContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def written(context: SpanContext, state: str | None) -> dict[str, str]:
    """Return the attributes, or headers, that hand a trace on; `state` goes along as it came."""
    carried = {_TRACEPARENT: str(context)}
    if state is not None:
        carried[_TRACESTATE] = state
    return carried


def state_of(carried: Mapping[str, str]) -> str | None:
    """Return the `tracestate` that came with a `traceparent`."""
    return carried.get(_TRACESTATE)


def ids_of_run(run_id: str) -> tuple[str, str]:
    """Return (trace id, span id) of a run; its trace id counts where its event brings none."""
    digest = _digest_of_run(run_id).hex()
    return digest[:32], digest[32:48]


def _digest_of_run(run_id: str) -> bytes:
    return sha256(f"run\n{run_id}".encode()).digest()


def id_within(run_id: str, *place: object) -> str:
    """Return the id of a span within a run."""
    text = "\n".join(["span", run_id, *map(str, place)])
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


class Sampler(NamedTuple):
    """Which traces are recorded, decided by the trace id alone: the same after a restart.

    A share (0 to 1) of all traces; with `follows_parent` a trace that came from outside is recorded
    as its caller decided.
    """

    share: float = 1.0
    follows_parent: bool = True

    def samples(self, trace_id: str, parent: SpanContext | None) -> bool:
        """Whether a trace is recorded."""
        if parent is not None and self.follows_parent:
            return parent.sampled
        return int(trace_id[16:], 16) < self.share * _IDS

    def samples_run(self, run_id: str) -> bool:
        """Whether the trace of a run is recorded that has its own: as `samples`, with no text."""
        return int.from_bytes(_digest_of_run(run_id)[8:16], "big") < self.share * _IDS
