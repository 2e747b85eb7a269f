"""Test flows as they really run: recorded, retried, killed and resumed, in no time.

`run(flow, json=…)` in a plain test, `async with serve(flow) as service` where several runs, events
or time matter, and the fixture `flows` (`pytest_plugins = ["turnout.testing.fixture"]`) for the
same without async. The events of every kind of trigger are made by the functions in `events`.

A flow is also a plain function: where only its result matters, call it.
"""

from .agents import replayed
from .clock import START, Clock
from .events import (
    file_event,
    hand_event,
    kafka_event,
    timer_event,
    typed_event,
    webhook_event,
)
from .service import Result, Service, run, serve
from .told import Told
from .windows import Pending

__all__ = [
    "START",
    "Clock",
    "Pending",
    "Result",
    "Service",
    "Told",
    "file_event",
    "hand_event",
    "kafka_event",
    "replayed",
    "run",
    "serve",
    "timer_event",
    "typed_event",
    "webhook_event",
]
