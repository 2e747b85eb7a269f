"""Slots in use are those of the runs that use them, whatever is done to a service.

Random steps: submit, crash, cancel, retry, timeout, pause, rename, reload, override. After each
one, what the gates count is a recount of the runs; no limit is ever exceeded; and where nothing is
left to do, nothing is in use. `--full` takes 100,000 steps with a new seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from tests.conftest import Say
from tests.support.dispatch_machine import KINDS, MOST_LIMITS, DispatchMachine
from tests.support.dispatch_simulator import SimulatedFlow
from turnout.service.dispatch.dispatcher import Dispatcher
from turnout.service.flowcontrol.limit import FlowLimit
from turnout.service.flowcontrol.named_limit import NamedLimit

pytestmark = pytest.mark.slow

STEPS = 1000
ALL_STEPS = 100_000
STEPS_OF_A_HISTORY = 250
ENDS = ("succeed", "succeed", "fail", "retry", "sleep", "skip")


class Fuzz(DispatchMachine):
    """The machine of the model, driven by a random number generator in longer histories."""

    max_starts = 20

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.random = random
        self.ways: dict[Callable[[], None], int] = {
            self.sends: 6, self.ends: 6, self.lets_go: 2, self.passes: 3, self.cancels: 1,
            self.cancels_many: 1, self.retries: 2, self.drops: 1, self.replays: 1, self.pauses: 1,
            self.reloads: 1, self.overrides: 1, self.dies: 1,
        }  # fmt: skip

    def play(self, steps: int) -> None:
        """Take so many steps, then let every run end."""
        pick = self.random
        kinds = sorted(KINDS)
        self.begin(
            pick.randint(1, 4),
            [
                (
                    pick.random() < 0.5,
                    [
                        (pick.choice(kinds), pick.randint(1, 2))
                        for _ in range(pick.randint(0, MOST_LIMITS))
                    ],
                    pick.random() < 0.5,
                )
                for _ in range(pick.randint(1, 3))
            ],
            pick.randint(0, 5),
        )
        self.simulator.counts_turns = False
        ways, weights = list(self.ways), list(self.ways.values())
        for _ in range(steps):
            pick.choices(ways, weights)[0]()
            self.go()  # to rest, where what the gates count is compared with a recount

    def options(self, each: SimulatedFlow) -> dict[str, Any]:
        return {"timeout": "20s"} if each.number % 2 else {}

    @property
    def when(self) -> dict[str, int]:
        """How far the service goes on before the next check, and in which order."""
        return {"steps": self.random.randint(0, 6), "order": self.random.randint(0, 10**6)}

    @property
    def number(self) -> int:
        return self.random.randint(0, 99)

    def sends(self) -> None:
        pick = self.random
        keys = [
            (pick.randint(0, 2), pick.randint(0, 2), pick.random() < 0.3)
            for _ in range(pick.randint(1, 4))
        ]
        self.send(number=self.number, keys=keys, again=pick.random() < 0.1, **self.when)

    def ends(self) -> None:
        if self.waiting_attempts():
            how, seconds = self.random.choice(ENDS), self.random.choice([1, 5, 30])
            self.end(number=self.number, how=how, seconds=seconds, **self.when)

    def lets_go(self) -> None:
        if self.lingering():
            self.let_go(number=self.number, **self.when)

    def passes(self) -> None:
        self.advance(seconds=self.random.choice([1, 5, 30]), **self.when)

    def cancels(self) -> None:
        self.cancel(number=self.number, **self.when)

    def cancels_many(self) -> None:
        for _ in range(5):
            self.cancel(number=self.number, steps=1, order=self.when["order"])

    def retries(self) -> None:
        self.retry(number=self.number, **self.when)

    def drops(self) -> None:
        self.drop(number=self.number, **self.when)

    def replays(self) -> None:
        self.replay(number=self.number, **self.when)

    def pauses(self) -> None:
        self.pause(number=self.number, pauses=self.random.random() < 0.4, **self.when)

    def reloads(self) -> None:
        change = self.random.choice(["count", "rename", "serve"])
        self.reload(number=self.number, change=change, **self.when)

    def overrides(self) -> None:
        pick = self.random
        seconds = pick.choice([1, 5, 30])
        self.override(number=self.number, count=pick.randint(0, 3), seconds=seconds, **self.when)

    def dies(self) -> None:
        if self.may_die():
            self.crash() if self.random.random() < 0.5 else self.stop(order=self.number)


def play(steps: int, seed: int) -> None:
    """Take so many steps in histories of their own."""
    for number in range(-(-steps // STEPS_OF_A_HISTORY)):
        fuzz = Fuzz(Random(f"{seed}.{number}"))
        try:
            fuzz.play(min(steps, STEPS_OF_A_HISTORY))
            fuzz.finish()
        except BaseException as error:
            error.add_note(f"in history {number} of seed {seed}")
            raise
        finally:
            fuzz.clear()


@pytest.mark.timeout(7200)
def test_slots_in_use_are_a_recount_of_the_runs(full: bool, seed: int, say: Say) -> None:
    play(ALL_STEPS if full else STEPS, seed if full else 0)


# ---------------------------------------------------------------- negative controls

Break = Callable[[pytest.MonkeyPatch], None]


def keep_slots_of_lost_claims(patch: pytest.MonkeyPatch) -> None:
    ended = Dispatcher.attempt_ended

    def forget(self: Dispatcher, entered: Any, run: Any, flow: Any, outcome: Any) -> None:
        if outcome is not None:
            ended(self, entered, run, flow, outcome)

    patch.setattr(Dispatcher, "attempt_ended", forget)


def free_slots_twice(patch: pytest.MonkeyPatch) -> None:
    leave = FlowLimit.leave

    def leave_twice(self: FlowLimit, run: Any) -> None:
        leave(self, run)
        leave(self, run)

    patch.setattr(FlowLimit, "leave", leave_twice)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (keep_slots_of_lost_claims, "could start and does not|slots, not"),
        (free_slots_twice, "in spite of .*flow|slots, not"),
    ],
)
def test_the_fuzz_finds_slots_that_leak_or_double(
    monkeypatch: pytest.MonkeyPatch, broken: Break, found: str
) -> None:
    broken(monkeypatch)
    with pytest.raises(AssertionError, match=found):
        play(STEPS, 0)


async def test_tries_that_are_cancelled_together_leave_the_limit_free() -> None:
    """The slot of one is offered to the next, which has been cancelled in the same moment."""
    limit = NamedLimit("crm", 1)

    async def holds() -> None:
        await limit.take("run", {})
        try:
            await asyncio.Event().wait()
        finally:
            limit.release()

    tries = [asyncio.get_running_loop().create_task(holds()) for _ in range(3)]
    await asyncio.sleep(0)
    for each in tries:
        each.cancel()
    ended = await asyncio.gather(*tries, return_exceptions=True)
    assert [type(each) for each in ended] == [asyncio.CancelledError] * 3
    assert (limit.free_slots(), limit.waiting) == (1, 0)
