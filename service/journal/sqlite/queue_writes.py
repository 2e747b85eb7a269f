"""Writes about runs that do not run: their keys and classes, those that are skipped or orphaned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import apsw
import orjson

from turnout.service.domain.run import Keys, Run, RunError
from turnout.service.journal.records import Decision, Queued, Rescued

from . import classes, rescue, run_keys
from .append import Intake
from .calls import Calls
from .counters import RunCounters
from .runs import SUSPENDED, queued_from
from .skip import skip
from .statements import load
from .values import dump_list, micros

_READS = load("reads")


class QueueWriting(Calls):
    """Changes queued runs, and reads what must be read in its turn among the writes."""

    _intake: Intake

    async def skip(self, made: Mapping[int, Decision], *, now: datetime) -> list[Run]:
        """End queued runs that were never claimed as `skipped`, each by a decision; by seq."""

        def write(connection: apsw.Connection, counters: RunCounters) -> list[Run]:
            at = micros(now)
            ended = (skip(connection, counters, seq, each, at) for seq, each in made.items())
            return [run for run in ended if run is not None]

        runs: list[Run] = await self._call(write)
        return runs

    async def held_keys(self) -> list[tuple[str, str, str, bool]]:
        """Return (flow, order_key, run_id, dead) of runs that may hold their ordering key."""
        found = await self._call(
            lambda connection, _counters: connection.execute(_READS["held_keys"]).get
        )
        return [(flow, key, run_id, bool(dead)) for flow, key, run_id, dead in orjson.loads(found)]

    async def set_keys(self, keys: Mapping[int, Keys]) -> None:
        """Give runs that do not run, by seq, the keys of rules that are newer than they are."""
        await self._call(lambda connection, _counters: run_keys.set_keys(connection, keys))

    async def fail_queued(self, run_seq: int, error: RunError, *, now: datetime) -> list[Run]:
        """Make a dead letter of a run that does not run; returns it, then what it has cancelled."""
        failures = self._intake.failures
        ended: list[Run] = await self._call(
            lambda connection, counters: rescue.fail_queued(
                connection, counters, failures, run_seq, error, now
            )
        )
        return ended

    async def suspended(self, flows: Sequence[str]) -> list[Queued]:
        """Return the retrying and waiting runs of these flows, as of this turn among the writes."""
        found = await self._call(
            lambda connection, _counters: connection.execute(SUSPENDED, (dump_list(flows),)).get
        )
        return [queued_from(row) for row in orjson.loads(found)]

    async def use_classes(self, flows: Sequence[str]) -> bool:
        """Note that only these flows declare classes; whether any queued run got one by that."""
        changed: bool = await self._call(
            lambda connection, _counters: classes.use_classes(connection, flows)
        )
        return changed

    async def rescue(self, *, now: datetime) -> Rescued:
        """At start: requeue runs found running; this spends no attempt."""
        rescued: Rescued = await self._call(
            lambda connection, counters: rescue.rescue(connection, counters, now)
        )
        return rescued

    async def fail_orphaned_runs(self, flow: str, *, now: datetime) -> list[str]:
        """Make dead letters of a flow's queued runs that have failed; returns their ids."""
        failed: list[str] = await self._call(
            lambda connection, counters: rescue.fail_orphaned_runs(connection, counters, flow, now)
        )
        return failed
