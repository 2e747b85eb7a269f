"""Approvals: a run waits for a person's yes or no, and for the fields the person fills in.

The answer is given once, by an operator or the holder of the signed link, and is checked against
`fields` before it is stored. Not here: who may answer (`operator`, `governance.links`).
"""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Generator, Hashable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import orjson

from turnout.service.domain.errors import FOREIGN, InvalidData, SetupError
from turnout.service.domain.guess import OF_APPROVAL, no_attribute
from turnout.service.domain.payload import read_json
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.run import Rejected
from turnout.service.domain.shape import adapter, explain
from turnout.service.domain.task import Task
from turnout.service.domain.units import parse_duration
from turnout.service.governance import secrets
from turnout.service.journal.records import Opening, StepRecord, approval_topic

from .durable_wait import Came, Wait, begun, host_of, scope_for, to_its_end
from .step import StepCall
from .unawaited import to_await

F = TypeVar("F")

MOST_DATA_BYTES = 16 * 1024
LINK_LIFE = timedelta(days=7)
"""How long the link of an approval without `timeout=` is valid."""


@dataclass(frozen=True)
class Approval(Generic[F]):
    """A person's yes: who said it, if known, and the fields that were filled in."""

    name: str
    by: str
    fields: F

    if not TYPE_CHECKING:  # a type checker that saw it would take any misspelt name

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(
                no_attribute("said", "approval", name, OF_APPROVAL, ("name", "by", "fields"))
            )


class Asked(Wait[Approval[F]], Generic[F]):
    """A requested approval: await it, and send `link` to whoever decides."""

    def __init__(
        self,
        call: StepCall,
        name: str,
        fields: type[F] | None,
        timeout: timedelta | None,
        shown: Mapping[str, Any],
    ):
        super().__init__(call)
        self._shown = shown
        self._name = secrets.mask(name)  # it is stored, and shown to people
        self._fields = fields
        self._timeout = timeout
        self._question: StepRecord | None = None
        self._first: Coroutine[Any, Any, Approval[F]] | None
        self._first = to_await(to_its_end(self), f"approval {self._name!r}")

    @property
    def link(self) -> str:
        """The address of a page where the answer can be given once, without an account.

        It is the same in every attempt, and another one if the step asks anew after a retry.
        """
        call = self.call
        if self._question is None:
            self._question = call.recorded()
        if self._question is None:
            self._question = self.begun()
            call.context.leave_mark(self._question)  # before the step that sends it
        asked_at = self._question.started_at
        ends = asked_at + (LINK_LIFE if self._timeout is None else self._timeout)
        return host_of(call).link(call.context.claimed.claim.run_id, call.key, ends, asked_at)

    if not TYPE_CHECKING:  # a type checker that saw it would take any misspelt name

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or name not in ("by", "fields", "name"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise AttributeError(
                f"approval(…) has no {name!r} before it is answered; write `said = await "
                f"approval(…)`, then said.{name}"
            )

    def __await__(self) -> Generator[Any, Any, Approval[F]]:
        """Wait for the answer, the same each time; raises `Rejected` or `TimeoutError`."""
        first, self._first = self._first, None
        return (to_its_end(self) if first is None else first).__await__()

    def close(self) -> None:
        """Close the coroutine if it was never awaited."""
        first, self._first = self._first, None
        if first is not None:
            first.close()

    def recorded(self) -> StepRecord | None:
        """Return what is recorded of it, or the question of which the link was sent."""
        return super().recorded() or self._question

    def begun(self) -> StepRecord:
        """Return the record of the question."""
        what = {"approval": self._name, "fields": _reference(self._fields), **self._shown}
        return begun(self.call, what, self._timeout)

    def opening(self) -> Opening:
        """Return the topic of the answer."""
        run_id = self.call.context.claimed.claim.run_id
        return Opening(topic=approval_topic(run_id, self.call.key))

    async def look(self, known: StepRecord) -> Came[Approval[F]] | None:
        """Return the answer, if it was given."""
        row = self.row
        if row is None or row.answer is None or row.woken is None:
            return None
        said, position = read_json(row.answer), (row.woken, 1)
        if not said["approved"]:
            reason = said.get("reason") or "no reason given"
            return Came(position, error=Rejected(f"{self._name} said no: {reason}"))
        try:
            fields = read_fields(self._fields, said.get("fields"))
        except InvalidData as error:
            return Came(position, error=error)
        return Came(position, Approval(self._name, said.get("by") or "", fields))


@overload
def approval(
    name: str,
    *,
    text: str = ...,
    data: Mapping[str, object] | None = ...,
    timeout: str | timedelta | None = ...,
) -> Asked[Any]: ...
@overload
def approval(
    name: str,
    *,
    fields: type[F],
    text: str = ...,
    data: Mapping[str, object] | None = ...,
    timeout: str | timedelta | None = ...,
) -> Asked[F]: ...
def approval(
    name: str,
    *,
    fields: type[F] | None = None,
    text: str = "",
    data: Mapping[str, object] | None = None,
    timeout: str | timedelta | None = None,
) -> Asked[F]:
    """Ask a person, and wait for the yes.

    `said = await approval("ops")`. The run waits without a slot, over restarts. `turnout approve
    RUN` answers, or the one-time page at `.link`, for which no account is needed. An answer is
    given once, and is checked before it is kept.

    * `name`: who is asked, or what for; people see it
    * `fields`: the class of what the person fills in, at the top of a file: a model, a dataclass or
      a `TypedDict`
    * `text`: the question, as the page asks it
    * `data`: what the answer depends on, by name; the page shows it, so leave out what is nobody's
      business. At most 16 KiB
    * `timeout`: how long to wait, such as `"2d"`; for ever by default. The link is valid as long,
      and seven days where there is none

    Raises `Rejected` with the reason for a no, `TimeoutError` after `timeout`, and `SetupError` for
    a class that a restart could not find again and for too much `data`.

    ```python
    from pydantic import BaseModel

    from turnout import approval, event, flow, task


    class Budget(BaseModel):
        euros: int


    @task
    async def send(text: str) -> None: ...  # mail it; a task, so that it is sent once


    @flow(on=event("budget.wanted"))
    async def budget(wanted: dict[str, int]) -> str:
        asked = approval(
            "the boss", fields=Budget, text="How much may it cost?", data=wanted, timeout="2d"
        )
        await send(f"{wanted['euros']} euros? Answer at {asked.link}")
        said = await asked
        return f"{said.fields.euros} euros, says {said.by or 'somebody'}"
    ```
    """
    scope = scope_for("approval")
    length = None if timeout is None else parse_duration(timeout)
    if fields is not None:
        _reference(fields)
    task = _task(fields)  # type: ignore[arg-type]  # mypy doubts that a class is hashable
    call = StepCall(task, scope, scope.next_key("approval"), (name,), {})
    return Asked(call, name, fields, length, _shown(text, data))


def _shown(text: str, data: Mapping[str, object] | None) -> dict[str, Any]:
    """Return what the page shows beside the name, without secrets; raises `SetupError`."""
    shown: dict[str, Any] = {"text": secrets.mask(text)} if text else {}
    if data:
        encoded = orjson.dumps(dict(data), default=str, option=orjson.OPT_NON_STR_KEYS)
        if len(encoded) > MOST_DATA_BYTES:
            raise SetupError(
                f"approval(data=…) comes to {len(encoded)} bytes; at most {MOST_DATA_BYTES} are "
                "shown: leave out what the answer does not depend on"
            )
        shown["data"] = read_json(secrets.mask(encoded.decode()).encode())
    return shown


def _reference(fields: Any) -> str | None:
    """Return the name by which a later process finds the class."""
    if fields is None:
        return None
    reference = f"{getattr(fields, '__module__', '')}:{getattr(fields, '__qualname__', '')}"
    if find_fields(reference) is not fields:
        raise SetupError(f"approval(fields={fields!r}): define the class at the top of a file")
    return reference


def find_fields(reference: str | None) -> Any:
    """Return the class that checks an approval's fields, None if there is none."""
    if reference is None:
        return None
    module, _, name = reference.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def read_fields(declared: Any, given: Any) -> Any:
    """Return what an approver filled in, checked; raises `InvalidData` naming the field."""
    if declared is None:
        return given
    from pydantic import ValidationError

    try:
        return adapter(declared).validate_python({} if given is None else given)
    except ValidationError as error:
        message, where = explain(error)
        raise InvalidData(message, field=where) from None
    except FOREIGN as error:
        # An author's validator; the question stays open for another answer.
        raise InvalidData(f"they cannot be checked: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=128)
def _task(fields: Hashable) -> Task[Any]:
    """Return the task of approvals with these fields, whose answers people can read as JSON."""

    def answer() -> None: ...

    # The class is known at run time only.
    answer.__annotations__["return"] = GenericAlias(Approval, Any if fields is None else fields)
    return Task(function=answer, name="approval", retry=RetryPolicy())
