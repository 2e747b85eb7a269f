"""The values that go into a journal and come out, each in the file of its subject.

Plain data, the same for every database. Not here: what the journal does with them (`contract`).
"""

from .claims import ChildEnd, Claim, ClaimedRun, Queued, Rescued
from .entries import NOTHING, ORDER_PLACE, Appended, Decision, Entry, Move, NewRun, Retried
from .reads import (
    MOST_COUNTED,
    AttemptRecord,
    DueCount,
    EndedEvent,
    Filter,
    InLine,
    OpenApproval,
    OpenStep,
    StoredEvent,
)
from .steering import EVERYTHING, Discarded, StoredOverride, StoredPause
from .steps import (
    APPROVAL,
    FAILED,
    PAUSED,
    REGISTERED,
    Cached,
    Opening,
    RecordedArguments,
    StepRecord,
    UsedLink,
    Wait,
    approval_topic,
    run_topic,
)

__all__ = [
    "APPROVAL",
    "EVERYTHING",
    "FAILED",
    "MOST_COUNTED",
    "NOTHING",
    "ORDER_PLACE",
    "PAUSED",
    "REGISTERED",
    "Appended",
    "AttemptRecord",
    "Cached",
    "ChildEnd",
    "Claim",
    "ClaimedRun",
    "Decision",
    "Discarded",
    "DueCount",
    "EndedEvent",
    "Entry",
    "Filter",
    "InLine",
    "Move",
    "NewRun",
    "OpenApproval",
    "OpenStep",
    "Opening",
    "Queued",
    "RecordedArguments",
    "Rescued",
    "Retried",
    "StepRecord",
    "StoredEvent",
    "StoredOverride",
    "StoredPause",
    "UsedLink",
    "Wait",
    "approval_topic",
    "run_topic",
]
