"""What a journal promises, whatever database is under it.

Every write returns only after commit and fsync. A write about a run carries the run's claim
token; a stale token changes nothing and raises `ClaimLost`. Writes that arrive together share a
commit and are applied in the order they were called; a bad write fails only its caller. The suite
`tests/support/journal_contract.py` tests these promises, not SQLite.

Each user is typed against the smallest part it needs: `Intake`, `Work`, `Steps`, `Operations`,
`Alerts`, `Reads`, `Retention`, `Traces`, `Lifecycle`. Not here: what is written, which the router
and the executor decide, and when a run starts (the dispatcher).
"""

from typing import Protocol

from .alerts import AlertReads, Alerts
from .intake import Intake, Positions
from .operations import Operations
from .reads import Reads, RunReads
from .retention import Clearing, Retention
from .steps import Attachment, StagedFile, Steps
from .traces import Traces
from .windows import WindowReads, Windows
from .work import Work
from .writing import Lifecycle, Writable

__all__ = [
    "AlertReads",
    "Alerts",
    "Attachment",
    "Clearing",
    "Intake",
    "Journal",
    "Lifecycle",
    "Operations",
    "Positions",
    "Reads",
    "Retention",
    "RunReads",
    "StagedFile",
    "Steps",
    "Traces",
    "WindowReads",
    "Windows",
    "Work",
    "Writable",
]


class Journal(Intake, Work, Windows, Steps, Operations, Alerts, Retention, Traces, Protocol):
    """The one writer of a data folder."""
