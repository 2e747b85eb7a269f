"""What the parts of the journal that write have in common: the writing thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import apsw

from .counters import RunCounters
from .work_reads import WorkReads
from .writer import CallJob, Writer


class Calls(WorkReads):
    """Has rarer writes done by the writing thread."""

    _writer: Writer

    async def _call(self, write: Callable[[apsw.Connection, RunCounters], Any]) -> Any:
        return await self._writer.submit(CallJob(write))
