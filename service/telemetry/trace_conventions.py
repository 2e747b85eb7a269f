"""The names in traces: of spans, and of their attributes. Dashboards are built on them.

A snapshot holds them (`tests/snapshots/traces.txt`). Names of others are taken where OpenTelemetry
has them: `cloudevents.*`, `error.type`, `exception.*`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

SCOPE = "turnout"
"""The name of the instrumentation scope."""

RUN = "run {flow}"
ATTEMPT = "attempt {flow}"
STEP = "step {task}"
EMIT = "emit {type}"

FLOW = "turnout.flow"
RUN_ID = "turnout.run.id"
STATE = "turnout.run.state"
ATTEMPTS = "turnout.run.attempts"
CRASHES = "turnout.run.crashes"
REPLAY = "turnout.run.replay"
RETRIED = "turnout.run.retried"
"""How often an operator had the run tried again after it had ended."""
EVENTS = "turnout.run.events"
REASON = "turnout.run.reason"
TRIGGER = "turnout.trigger"
TENANT = "turnout.tenant"
ATTEMPT_NUMBER = "turnout.attempt"
ATTEMPT_STATE = "turnout.attempt.state"
STEP_KEY = "turnout.step.key"
STEP_TRY = "turnout.step.try"
STEP_STATE = "turnout.step.state"
TASK = "turnout.task"

EVENT_ID = "cloudevents.event_id"
EVENT_SOURCE = "cloudevents.event_source"
EVENT_TYPE = "cloudevents.event_type"

ERROR_TYPE = "error.type"
EXCEPTION = "exception"
EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"
EXCEPTION_STACKTRACE = "exception.stacktrace"

Attributes: TypeAlias = Mapping[str, str | int | bool]

ON_SPANS: Mapping[str, tuple[str, ...]] = {
    RUN: (
        FLOW, RUN_ID, STATE, ATTEMPTS, CRASHES, REPLAY, RETRIED, EVENTS, REASON, TRIGGER, TENANT,
        EVENT_ID, EVENT_SOURCE, EVENT_TYPE, ERROR_TYPE,
    ),
    ATTEMPT: (FLOW, RUN_ID, ATTEMPT_NUMBER, ATTEMPT_STATE, ERROR_TYPE),
    STEP: (FLOW, RUN_ID, ATTEMPT_NUMBER, TASK, STEP_KEY, STEP_TRY, STEP_STATE, ERROR_TYPE),
    EMIT: (FLOW, RUN_ID, ATTEMPT_NUMBER, STEP_KEY, EVENT_ID, EVENT_TYPE),
}  # fmt: skip
"""Which attributes a span may have; one that has no value is left out."""
