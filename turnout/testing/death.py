"""A process that dies at a chosen moment: what it would have written after that never arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from turnout.service.domain.errors import ClaimLost
from turnout.service.domain.run import Run
from turnout.service.journal.open import OpenJournal
from turnout.service.journal.records import Claim, StepRecord
from turnout.service.steps.code_change import MARK_TASKS


class Death:
    """When a process under test dies: `after` so many records of steps from now."""

    def __init__(self) -> None:
        self.after = 0
        self.struck = False
        self.over = False

    async def meet(self, step: StepRecord | None = None) -> None:
        """Let a living process write; a dying one waits here for its end, a dead one is refused."""
        if self.is_near(step):
            await asyncio.Event().wait()

    def is_near(self, step: StepRecord | None = None) -> bool:
        """Whether the process is dying; raises `ClaimLost` in a dead one."""
        if self.over:
            raise ClaimLost("the process has died")
        if step is None or step.task in MARK_TASKS:
            return self.struck
        if step.state in ("succeeded", "failed") and self.after:
            self.after -= 1
            self.struck = self.after == 0
        return self.struck


class Mortal:
    """A journal that can be written until death."""

    def __init__(self, journal: OpenJournal, death: Death) -> None:
        self._journal = journal
        self._death = death

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    def append(self, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Append, unless the process is dying: then it never returns."""
        if self._death.is_near():
            return asyncio.get_running_loop().create_future()
        return self._journal.append(*args, **kwargs)

    def record_step(self, claim: Claim, step: StepRecord) -> asyncio.Future[None]:
        """Record a step, unless it is the one at which the process dies."""
        if self._death.is_near(step):
            return asyncio.get_running_loop().create_future()
        return self._journal.record_step(claim, step)

    def record_with(self, claim: Claim, step: StepRecord, **kwargs: Any) -> asyncio.Future[Any]:
        """Record a step with what belongs to it, unless the process dies at it."""
        if self._death.is_near(step):
            return asyncio.get_running_loop().create_future()
        return self._journal.record_with(claim, step, **kwargs)

    async def record_artefacts(self, claim: Claim, step: StepRecord, *args: Any) -> None:
        """Record a step with what it attached, unless the process dies at it."""
        await self._death.meet(step)
        await self._journal.record_artefacts(claim, step, *args)

    def take(self, claim: Claim, step: StepRecord, *args: Any, **kwargs: Any) -> Any:
        """Take from a budget, unless the process dies at the step."""
        if self._death.is_near(step):
            return asyncio.get_running_loop().create_future()
        return self._journal.take(claim, step, *args, **kwargs)

    async def record(self, *args: Any, **kwargs: Any) -> Sequence[Run]:
        """Record an outcome, unless the process is dying."""
        await self._death.meet()
        return await self._journal.record(*args, **kwargs)
