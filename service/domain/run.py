"""A run: one execution of a flow for one event; its states, its outcome, its public record.

`TRANSITIONS` is the one table of what may follow what; the journal's SQL, the documentation and
the tests are checked against it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, NamedTuple, TypeAlias

from . import errors
from .units import is_duration, parse_duration


class RunState(StrEnum):
    """Where a run is in its life."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


_S = RunState

TRANSITIONS: Mapping[RunState | None, frozenset[RunState]] = {
    # None is the insert: running if a slot is free, queued if not, failed if the flow refuses the
    # event's data (a dead letter), skipped if a rule of the flow refuses the run.
    None: frozenset({_S.SCHEDULED, _S.QUEUED, _S.RUNNING, _S.FAILED, _S.SKIPPED}),
    _S.SCHEDULED: frozenset({_S.QUEUED, _S.RUNNING, _S.CANCELLED, _S.FAILED}),
    # failed: it has failed already, and nobody serves its flow any more; or a rule newer than the
    # run has raised when it was asked for the run's key. skipped: before it began, a rule of the
    # flow refused it, or it was dropped.
    _S.QUEUED: frozenset({_S.RUNNING, _S.CANCELLED, _S.FAILED, _S.SKIPPED}),
    # back to queued: the process ended under it (rescue) or handed it back (drain).
    _S.RUNNING: frozenset(
        {_S.SUCCEEDED, _S.FAILED, _S.CANCELLED, _S.SKIPPED, _S.RETRYING, _S.WAITING, _S.QUEUED}
    ),
    _S.RETRYING: frozenset({_S.RUNNING, _S.QUEUED, _S.CANCELLED, _S.FAILED}),
    _S.WAITING: frozenset({_S.RUNNING, _S.QUEUED, _S.CANCELLED, _S.FAILED}),
    # an operator's retry is the only way out of a final state.
    _S.SUCCEEDED: frozenset({_S.QUEUED}),
    _S.FAILED: frozenset({_S.QUEUED}),
    _S.CANCELLED: frozenset({_S.QUEUED}),
    _S.SKIPPED: frozenset({_S.QUEUED}),
}

UNFINISHED = frozenset({_S.SCHEDULED, _S.QUEUED, _S.RUNNING, _S.RETRYING, _S.WAITING})
FINISHED = frozenset(RunState) - UNFINISHED
_DUE = frozenset({_S.SCHEDULED, _S.RETRYING, _S.WAITING})


def check_transition(run_id: str, current: RunState | None, target: RunState) -> None:
    """Raise `errors.Refused`, naming run, state and what is allowed, unless `target` may follow."""
    if target not in TRANSITIONS[current]:
        allowed = ", ".join(sorted(TRANSITIONS[current])) or "nothing"
        raise errors.Refused(
            f"run {run_id} is {current or 'new'} and cannot become {target}; allowed: {allowed}"
        )


PROCESS_DIED = "process_died"
"""The error type of a run or a compensation step during which the process kept dying."""

CANCELLED = "cancelled"
"""The error type of the step that says a run was cancelled and is to be undone."""

FILTER_ERROR = "filter_error"
"""The error type of a run whose flow could not be asked about its event."""

UNDO_FAILED = "undo_failed"
"""The error type of a run that was cancelled and could not be undone."""

Keys: TypeAlias = Mapping[str, str | None]
"""The keys of a run by the ids of rules; None: by that rule it shares nothing and never waits."""


class Start(NamedTuple):
    """A start that a throttle counts, from the instant at which it was decided to `until`.

    `flow` is empty for a throttle that flows share by its name; `key` for one without keys.
    """

    flow: str
    rule_id: str
    key: str
    at: datetime
    until: datetime


Undo = Literal["running", "done", "failed"]
"""How far a run is undone: `failed` means that a step of the undo used up its tries."""


@dataclass(frozen=True, slots=True)
class RunError:
    """Why a run failed, as `on_failure=` gets it: the error's type and message, and its step.

    * `type`: the error's class, such as `"ValueError"`, or turnout's word: `process_died`,
      `code_changed`
    * `message`: its text
    * `step`: the key of the step it escaped from, None if it came from the body
    * `traceback`: where it was raised, None if that is not known
    * `undo_failed`: the keys of the steps whose undo failed for good

    Raises nothing: it is a value.

    ```python
    from turnout import Event, Fail, RunError, event, flow, task


    @task
    async def tell(text: str) -> None: ...  # mail it to whoever is on call


    async def failed(error: RunError, event: Event) -> None:
        await tell(f"{event.type}: {error.type}: {error.message}")


    @flow(on=event("order.placed"), on_failure=failed)
    async def place(order: dict[str, str]) -> None:
        raise Fail(f"order {order['id']} is not for sale")
    ```
    """

    type: str
    message: str
    step: str | None = None
    traceback: str | None = field(default=None, repr=False)
    undo_failed: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, str | None]:
        """Return type, message and step as the commands and the API show them."""
        return {"type": self.type, "message": self.message, "step": self.step}


class DependencyPause(NamedTuple):
    """A run asks that nothing that needs a dependency starts until an instant."""

    dependency: str
    until: datetime


class StateWrite(NamedTuple):
    """What a run keeps between runs under a key, as JSON; it has read this version, 0 for none."""

    key: str
    version: int
    value: bytes


@dataclass(slots=True)  # not frozen: one is made for each run, at half the cost
class Outcome:
    """What one attempt came to: the executor returns it, the journal records it.

    `state` is any state that may follow `running`; `due_at` goes with retrying and waiting.
    `result` is encoded JSON, `returned` a pickle for the flow that called this one where JSON would
    not give the same. `log` is the attempt's captured lines, JSON Lines. `counts` is false when the
    attempt did not really happen (handed back on stop), so that it spends no retry.
    When `error.step` names a step, the step's recorded error is superseded in the same write, and
    so are those of the steps `again`.
    `waits` are the steps a waiting run waits at, with the last event each has looked at (0 if
    none): what was woken behind that makes it due at once. `undo` says how the undo of a run that
    ended went, if there was one. `failed_dependencies` names those that failed the attempt, `pause`
    one that its run asks to leave alone. `state_write` is what a success keeps between runs; with
    `queued`, what it could not keep: the steps recorded since the run has read it are dropped.
    `repeats` tells of a suspended attempt that it only came back to where the run was: deaths of
    the process before it still count as consecutive.
    `left` are the members of a window, by their index, that the next attempt is called with, and
    `failed_items` those that failed for good, by the seq of their event: each is a dead letter.
    """

    state: RunState
    result: bytes | None = None
    returned: bytes | None = None
    _: KW_ONLY
    error: RunError | None = None
    reason: str | None = None
    due_at: datetime | None = None
    log: bytes | None = None
    counts: bool = True
    waits: Mapping[str, int] | None = None
    again: Sequence[str] = ()
    undo: Undo | None = None
    failed_dependencies: Sequence[str] = ()
    pause: DependencyPause | None = None
    state_write: StateWrite | None = None
    left: Sequence[int] | None = None
    failed_items: Sequence[tuple[int, RunError]] = ()
    repeats: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as the journal knows it and the world sees it.

    `arrival` is its place in the order of the queue: its seq, or a higher number if an operator has
    queued it again behind the others of its ordering key.
    `forced` says that an operator has started it past the mode of its flow.
    `undo_failed` are the steps of its undo that failed for good and were not done since. In a
    list a large `result` is left out; `result_bytes` tells its size. `events` is how many events
    it is the run of; of several, those of the window `window_seq`, the fields of an event are the
    first one's.
    """

    seq: int
    arrival: int
    id: str
    flow: str
    state: RunState
    attempts: int
    crashes: int
    event_id: str
    event_source: str
    trigger: str
    tenant: str
    queued_at: datetime
    due_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    result: bytes | None
    error: RunError | None
    reason: str | None
    dead: bool
    replay: int
    order_key: str | None
    keys: Keys | None
    code_version: str
    cancelled_by: str | None = None
    forced: bool = False
    undo: Undo | None = None
    undo_failed: tuple[str, ...] = ()
    result_bytes: int | None = None
    events: int = 1
    window_seq: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the object the CLI prints and the HTTP API answers."""
        from .payload import read_json  # a run is known where nothing is decoded

        def instant(value: datetime | None) -> str | None:
            return None if value is None else value.isoformat().replace("+00:00", "Z")

        return {
            "id": self.id,
            "flow": self.flow,
            "state": str(self.state),
            "attempts": self.attempts,
            "event_id": self.event_id,
            "event_source": self.event_source,
            "events": self.events,
            "trigger": self.trigger,
            "tenant": self.tenant,
            "queued_at": instant(self.queued_at),
            "started_at": instant(self.started_at),
            "finished_at": instant(self.finished_at),
            "due_at": instant(self.due_at) if self.state in _DUE else None,
            "result": None if self.result is None else read_json(self.result),
            "result_bytes": self.result_bytes,
            "error": None if self.error is None else self.error.as_dict(),
            "reason": self.reason,
            "cancelled_by": self.cancelled_by,
            "undo": self.undo,
            "undo_failed": list(self.undo_failed),
        }


class Retry(Exception):
    """Raised by an author to try again later: `raise Retry("not paid yet", after="10m")`.

    It ends this attempt. The policy of the flow's `retry=` still says how often. In a task it ends
    the try, and the task's policy says how often.

    * `reason`: why, shown in `turnout show`
    * `after`: how long to wait; as long as the policy says where it is left out
    * `pause`: a dependency that the flow needs: all runs that need it wait until then (an hour at
      most; without `after` as long as its `probe`). That spends no attempt and asks no policy, 20
      times in a run; from then on it is a retry like any other
    * `items`: in a flow that a window calls with a list, the indexes in the list (from 0) of the
      items to try again: the next attempt is called with these alone, and records its steps anew;
      the others are complete

    Raises `TypeError` for a duration instead of the reason, and for indexes that are none.

    ```python
    from turnout import Retry, event, flow, task


    @task
    async def is_paid(order: str) -> bool:
        return True


    @flow(on=event("order.placed"), retry=20)
    async def place(order: dict[str, str]) -> str:
        if not await is_paid(order["id"]):
            raise Retry("not paid yet", after="10m")
        return "paid"
    ```
    """

    def __init__(
        self,
        reason: str = "",
        *,
        after: str | timedelta | None = None,
        pause: str | None = None,
        items: Sequence[int] | None = None,
    ) -> None:
        given: object = reason  # also where no type checker looks
        if not isinstance(given, str) or is_duration(given):
            raise TypeError(f"Retry({reason!r}): the reason comes first; write Retry(after=…)")
        super().__init__(reason or "the flow asked for a retry")
        self.after = None if after is None else parse_duration(after)
        asked: object = pause
        if asked is not None and not isinstance(asked, str):
            raise TypeError(f'Retry(pause={pause!r}): write the dependency\'s name, pause="crm"')
        self.pause = pause
        self.items = None if items is None else _indexes("Retry", items)


def _indexes(name: str, items: object) -> tuple[int, ...]:
    """Return the indexes of items, in order; raises `TypeError` for what is none."""
    listed = tuple(items) if isinstance(items, Collection) and not isinstance(items, str) else ()
    if not listed or not all(type(each) is int and each >= 0 for each in listed):
        raise TypeError(f"{name}(items={items!r}): write indexes in the list, such as items=[0, 3]")
    return tuple(sorted(set(listed)))


class Fail(Exception):
    """Raised by an author to fail the run for good: no retry will help.

    Steps are undone, `on_failure=` is called, and the run is a dead letter until somebody acts.

    * `reason`: why, shown in `turnout show` and `turnout dead`
    * `items`: in a flow that a window calls with a list, the indexes in the list (from 0) of the
      items that have failed: each becomes a dead letter of its own, the others are complete, and
      the run succeeds

    Raises `TypeError` for indexes that are none. A task that raises it has no further tries and no
    fallback.

    ```python
    from turnout import Fail, event, flow


    @flow(on=event("order.placed"), retry=5)
    async def place(order: dict[str, int]) -> int:
        if order["amount"] < 0:
            raise Fail("an amount is not negative")
        return order["amount"]
    ```
    """

    items: tuple[int, ...] | None = None

    def __init__(
        self, reason: str = "the flow failed for good", *, items: Sequence[int] | None = None
    ) -> None:
        super().__init__(reason)
        if items is not None:
            self.items = _indexes("Fail", items)


class Rejected(Fail):
    """Raised at the `await` of an `approval` when a person said no.

    Not caught, it fails the run with the reason, and is not retried. It is a `Fail`.

    * `reason`: what the person said
    * `items`: as those of `Fail`

    Raises nothing by itself.

    ```python
    from turnout import Rejected, approval, event, flow


    @flow(on=event("release.ready"))
    async def release(built: dict[str, str]) -> str:
        try:
            await approval("release", timeout="7d")
        except Rejected as no:
            return f"not released: {no}"
        return f"released {built['version']}"
    ```
    """


class Refused(Fail):
    """Raised at the `await` of a child run that a rule of its flow has refused; never retried.

    The child itself is `skipped`; one that its flow's code skips (`raise Skip`) raises nothing.

    * `reason`: that of the decision: `unique`, `skip`, `latest`, `rate_limit`, `start_timeout`,
      `shadow`, or `dropped` by an operator
    * `run`: the id of the run that goes on instead, None if there is none

    Raises nothing by itself. It is a `Fail`.

    ```python
    from turnout import Refused, flow, sleep


    @flow(key=lambda event: event.data, mode="skip", timeout="1h")
    async def sync(account: str) -> str:
        await sleep("5m")
        return f"synced {account}"


    @flow
    async def synced(account: str) -> str:
        try:
            return await sync(account)
        except Refused as refused:  # another run synchronises this account already
            return f"{refused.reason}: see run {refused.run}"
    ```
    """

    def __init__(self, reason: str, run: str | None = None) -> None:
        super().__init__(reason)
        self.args = (reason, run)
        self.reason = reason
        self.run = run

    def __str__(self) -> str:
        """Return why the child run did not start."""
        instead = "" if self.run is None else f"; run {self.run} goes on instead"
        return f"the child run was refused ({self.reason}){instead}"


class Skip(Exception):
    """Raised by an author to end the run as `skipped`: there was nothing to do.

    It is neither a success nor a failure: nothing is retried, undone or reported.

    * `reason`: why, shown in `turnout show`

    Raises nothing by itself.

    ```python
    from turnout import Skip, event, flow


    @flow(on=event("order.changed"))
    async def reprice(order: dict[str, int]) -> int:
        if not order["amount"]:
            raise Skip("nothing was ordered")
        return order["amount"] * 2
    ```
    """

    def __init__(self, reason: str = "there was nothing to do") -> None:
        super().__init__(reason)
