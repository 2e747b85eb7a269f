"""Keeps read triggers reading: each runs on its own, and again after an error, with backoff.

A trigger that fails never touches the others; its problem shows in `turnout_trigger_up`, in
`/readyz` and, by its emitter, in the log. Errors of the journal are not the trigger's and end the
service.
"""

from __future__ import annotations

import asyncio
import random

from turnout.service.domain.errors import FOREIGN, JournalBroken, JournalFull, Overloaded, words_of
from turnout.service.domain.trigger import ReadTrigger

from .emitter import TriggerEmitter

FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 30.0
STEADY_SECONDS = 60.0


class Supervisor:
    """Runs triggers until they are stopped by name or all together."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._running: dict[str, asyncio.Task[None]] = {}

    def start(self, emitter: TriggerEmitter) -> None:
        """Start a trigger, or mark a called one as up."""
        if isinstance(emitter.trigger, ReadTrigger):
            name = emitter.trigger.name
            self._running[name] = self._tasks.create_task(self._watch(emitter.trigger, emitter))
        else:
            emitter.up()

    async def stop(self, *names: str) -> None:
        """Stop these triggers, or all of them, and wait until they have."""
        chosen = names or tuple(self._running)
        stopped = [task for name in chosen if (task := self._running.pop(name, None)) is not None]
        for task in stopped:
            task.cancel()
        await asyncio.gather(*stopped, return_exceptions=True)

    async def _watch(self, trigger: ReadTrigger, emitter: TriggerEmitter) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        delay = FIRST_DELAY_SECONDS
        while True:
            began = loop.time()
            try:
                await trigger.run(emitter)
                reason = "it stopped by itself"
            except JournalBroken:
                raise
            except (JournalFull, Overloaded) as error:
                reason = str(error)
            except FOREIGN as error:  # foreign place (decision 30)
                reason = words_of(error)
            if task.cancelling():  # and what the trigger raised instead was about its stop
                raise asyncio.CancelledError
            if loop.time() - began > STEADY_SECONDS:
                delay = FIRST_DELAY_SECONDS
            emitter.down(reason)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, LONGEST_DELAY_SECONDS)
