"""The action `budget`: so many changes within a time, over all flows that share a name.

It is taken from before the change, in the transaction that records the step, so that a crash in
between counts as spent, and nothing counts twice. Not here: limits of runs (`concurrency=`) and of
starts (`rate=`), which make runs wait.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from turnout.service.domain import foreign
from turnout.service.domain.errors import MisplacedTask, SetupError
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.run import Fail
from turnout.service.domain.task import Task
from turnout.service.domain.units import format_duration, parse_duration, to_the_second
from turnout.service.governance import secrets
from turnout.service.journal.records import Taking
from turnout.service.steps.author_code import where
from turnout.service.steps.context import current
from turnout.service.steps.durable_wait import refuse_thread
from turnout.service.steps.recording import durable, store
from turnout.service.steps.scope import here
from turnout.service.steps.services import Services
from turnout.service.steps.step import StepCall
from turnout.service.steps.unawaited import to_await

MAX_NAME_CHARACTERS = 200
MOST_COMPARED = 10_000
"""The periods of so many names are compared; a name may be made of data."""


class BudgetSpent(Fail):
    """Raised by `budget(…).take(…)` when not enough is left; the run fails, unless it is caught.

    * `name`: the budget's name
    * `used`: how many are used of it
    * `max_changes`: how many there are
    * `free_at`: when as many as were asked for are free, if nobody takes them before

    Raises nothing by itself. It is a `Fail`.

    ```python
    from turnout import BudgetSpent, budget, flow, notify, secret


    @flow
    async def restart(service: str) -> str:
        try:
            await budget("restarts", max_changes=3, per="1h").take()
        except BudgetSpent as spent:
            return f"not now, again from {spent.free_at:%H:%M}"
        return f"restarted {service}"
    ```
    """

    def __init__(self, name: str, used: int, max_changes: int, free_at: datetime) -> None:
        super().__init__(f"budget {name!r} is spent")
        self.args = (name, used, max_changes, free_at)
        self.name = name
        self.used = used
        self.max_changes = max_changes
        self.free_at = free_at

    def __str__(self) -> str:
        """Return what is spent, and when something is free again."""
        at = to_the_second(self.free_at)
        return f"budget {self.name!r} is spent: {self.used} of {self.max_changes}; free at {at}"


@dataclass(frozen=True, slots=True)
class Budget:
    """So many changes within a time, shared by all that say the name."""

    name: str
    max_changes: int
    per: timedelta
    place: str = field(default="", compare=False, repr=False)

    def take(self, amount: int = 1) -> Coroutine[object, None, None]:
        """Take from the budget before a change, a recorded step.

        `await scaling.take(2)`. What was taken counts for the whole period, also where the run
        fails, is undone, or the process dies before the change; `turnout retry --from` takes anew.
        Raises `BudgetSpent` if less than `amount` is left, `SetupError` for an amount that never
        is and for a budget that is declared with another `per` elsewhere, and `MisplacedTask` in a
        task or a `def` flow. Outside a run it takes nothing.
        """
        if type(amount) is not int or not 1 <= amount <= self.max_changes:
            raise SetupError(
                f"budget({self.name!r}, max_changes={self.max_changes}).take({amount!r}): write a "
                f"number from 1 to {self.max_changes}"
            )
        scope = here("budget")
        if scope is None:
            if current().services is not None:
                raise MisplacedTask(
                    f"budget({self.name!r}, …).take(), called at {where()}, is for the flow "
                    "itself: take before the call of the task"
                )
            return _nothing()
        refuse_thread("budget")
        call = StepCall(_BUDGET, scope, scope.next_key("budget"), (self.name, amount), {})
        taking = Taking(self.name, amount, self.max_changes, self.per)
        return to_await(self._take(call, taking), f"budget {self.name!r}")

    async def _take(self, call: StepCall, taking: Taking) -> None:
        known = None if call.services.dry_run is not None else call.recorded()
        if known is not None:
            call.recall(known)
            return
        self._refuse_another_period(call.services)
        await _take(call, taking)

    def _refuse_another_period(self, services: Services) -> None:
        """Raise `SetupError` where the budget counts over another time than somebody else says."""
        declared = services.budgets
        if self.name not in declared and len(declared) >= MOST_COMPARED:
            del declared[next(iter(declared))]
        period, place = declared.setdefault(self.name, (self.per, self.place))
        if period != self.per:
            raise SetupError(
                f"budget({self.name!r}) has per={format_duration(self.per)!r} at {self.place}, and "
                f"per={format_duration(period)!r} at {place}: what is counted together has one "
                "period; write the same one, or another name"
            )


def budget(name: str, *, max_changes: int, per: str | timedelta) -> Budget:
    """Declare how many changes there may be within a time, over all flows that say the name.

    `await budget("scale", max_changes=10, per="1h").take(1)` before the change. Taking is a
    recorded step: it counts once, over retries and restarts, and counts as spent where the process
    dies before the change. What was taken is free again after `per`. Where less is left the run
    fails with `BudgetSpent`: nobody waits in line. `turnout limits` shows what is used.

    * `name`: what is counted together, in one journal
    * `max_changes`: how many there are in any stretch of `per`
    * `per`: how long what was taken counts, such as `"1h"`

    Raises `SetupError` for a name, a number or a time that is none; two budgets of one name and
    different `per` are refused by `turnout check`, or when the second is taken from.

    ```python
    from turnout import budget, event, flow, task

    scaling = budget("scale", max_changes=10, per="1h")


    @task
    async def scale(service: str, by: int) -> str:
        return f"{service} +{by}"


    @flow(on=event("load.high"))
    async def scale_up(load: dict[str, str]) -> str:
        await scaling.take(2)
        return await scale(load["service"], 2)
    ```
    """
    given: object = name
    if not isinstance(given, str) or not given.isprintable() or not given:
        raise SetupError(f"budget({name!r}): a name is printable text")
    if len(name) > MAX_NAME_CHARACTERS:
        raise SetupError(f"budget({name!r:.40}…): a name has at most {MAX_NAME_CHARACTERS} letters")
    foreign.refuse_unstorable("budget(…)", name)
    secrets.refuse_live(name, "budget(…)")
    if type(max_changes) is not int or max_changes < 1:
        raise SetupError(f"budget({name!r}, max_changes={max_changes!r}): write 1 or more")
    period = parse_duration(per)
    if period <= timedelta(0):
        raise SetupError(f'budget({name!r}, per={per!r}): write how long, such as per="1h"')
    return Budget(name, max_changes, period, where())


async def _take(call: StepCall, taking: Taking) -> None:
    if call.services.dry_run is not None:
        words = f"{taking.amount} of the {taking.most} of budget {taking.name!r}"
        call.services.dry_run.instead(call, "take", words)
        return
    services = call.services
    call.begin()
    record = call.record_of(None)
    claim = call.context.writing(call.key)
    spent = await durable(
        call.context,
        lambda: services.journal.take(claim, record, taking, now=services.now()),
    )
    if spent is not None:
        error = BudgetSpent(taking.name, spent.used, taking.most, spent.free_at)
        call.done = await store(call.context, call.failed(error))
        raise call.delivered()
    call.observe("succeeded")


async def _nothing() -> None:
    """Take nothing: there is no journal outside a run."""


def _none() -> None: ...


_BUDGET: Task[None] = Task(function=_none, name="budget", retry=RetryPolicy())
