"""Keeps triggers running: each runs in its own task and is restarted after an error, with backoff.

A failing trigger does not affect the others; its problem shows in `turnout_trigger_up`, in
`/readyz` and in the log. A broken journal is not the trigger's fault and ends the service.
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
        """Start a trigger; one that is called is up at once."""
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
                await trigger.run(emitter.session())
                reason = "it stopped by itself"
            except JournalBroken:
                raise
            except (JournalFull, Overloaded) as error:
                reason = str(error)
            except FOREIGN as error:  # a custom trigger is foreign code
                reason = words_of(error)
            if task.cancelling():  # the error comes from its stop
                raise asyncio.CancelledError
            if loop.time() - began > STEADY_SECONDS:
                delay = FIRST_DELAY_SECONDS
            emitter.down(reason)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, LONGEST_DELAY_SECONDS)
