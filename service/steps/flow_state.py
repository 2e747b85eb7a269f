"""State between runs: `current().state`, a small value that a flow keeps for its next run.

It is read once a run and recorded, so that each attempt of the run goes on from the same value.
What the run sets is written in the transaction of its success, if nobody else has written since:
a run that loses is started over. So a cursor moves if and only if the run that moved it succeeded.
Not here: the write (`journal`), and starting over (`dispatch.attempts`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from turnout.service import pools
from turnout.service.domain.errors import MisplacedTask, NotKept
from turnout.service.domain.payload import read_json, write_json
from turnout.service.domain.run import StateWrite
from turnout.service.governance import secrets
from turnout.service.journal.records import STATE, STATE_KEY, StepRecord, StoredState

from .author_code import where
from .durable_marks import mark_record
from .exact import plain_json
from .scope import here

if TYPE_CHECKING:
    from .context import RunContext

MAX_STATE_BYTES = 64 * 1024
"""The most bytes of JSON that a flow keeps under one key."""

_NOTHING = b"null"


class State:
    """What a flow keeps between runs; with `ordered_by=`, for each of its keys."""

    __slots__ = ("_context", "_read", "_set", "_version")

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._read: bytes | None = None  # None: not read in this attempt
        self._version = 0
        self._set: bytes | None = None

    def get(self, default: Any = None) -> Any:
        """Return the value that the last successful run has kept, a copy; `default` if none has.

        The same in every attempt of a run. After `set` it is what was set. Raises `MisplacedTask`
        in a task and in a flow with `pool="process"`: read it in the flow, and pass it on.
        """
        if not self._is_kept("get"):
            return default
        data = self._stored() if self._set is None else self._set
        return default if data == _NOTHING else read_json(data)

    def set(self, value: Any) -> None:
        """Keep a value for the next run, written when this run succeeds, and not if it fails.

        JSON that comes back the very same: text, numbers, true, false, None (which is no value),
        lists and dicts with text keys, up to 64 KiB. Raises `NotKept` for anything else, and
        `MisplacedTask` where `get` does.
        """
        data = _written(value)
        if self._is_kept("set"):
            self._stored()  # it is written against what was read
            self._set = data

    @property
    def write(self) -> StateWrite | None:
        """What is to be written with the success of the run, if anything."""
        if self._set is None:
            return None
        return StateWrite(self._key, self._version, self._set)

    @property
    def _key(self) -> str:
        return self._context.claimed.order_key or ""

    def _is_kept(self, verb: str) -> bool:
        """Whether there is a run whose success could keep something; raises in the wrong place."""
        scope = here("state")
        if scope is None and self._context.services is not None:
            raise MisplacedTask(
                f"current().state.{verb}(), called at {where()}, is for the flow itself: a "
                "recorded task is not run again; read it in the flow and pass it to the task"
            )
        return scope is not None

    def _stored(self) -> bytes:
        if self._read is None:
            context = self._context
            known = context.claimed.recorded.get(STATE_KEY)
            if known is None:
                found = pools.on_loop(self._find()) if pools.in_thread() else self._find_now()
                self._note(found)
            else:
                read = read_json(known.result or _NOTHING)
                self._version, self._read = read["version"], write_json(read["value"])
        assert self._read is not None
        return self._read

    async def _find(self) -> StoredState | None:
        return self._find_now()

    def _find_now(self) -> StoredState | None:
        """Read one row on the loop: microseconds, as everything it needs is in memory."""
        services = self._context.services
        assert services is not None
        return services.journal.flow_state(self._context.claimed.flow, self._key)

    def _note(self, found: StoredState | None) -> None:
        """Record what was read, before the next step starts."""
        context = self._context
        assert context.services is not None
        self._version = 0 if found is None else found.version
        self._read = _NOTHING if found is None else found.value
        read = {"key": self._key, "version": self._version, "value": read_json(self._read)}
        mark = mark_record(STATE_KEY, STATE, write_json(read), context.services.now())
        context.leave_mark(mark)


def as_first_read(known: StepRecord) -> StepRecord:
    """Return the record of what a run has read, for a journal in which its flow has no state."""
    read = read_json(known.result or _NOTHING)
    return replace(known, result=write_json({**read, "version": 0}))


def _written(value: Any) -> bytes:
    data = plain_json(value, shared=True)
    if data is None:
        raise NotKept(
            f"current().state.set(…), called at {where()}: JSON would not give this value back as "
            f"it is ({type(value).__name__}); keep text, numbers, lists, and dicts with text keys"
        )
    if len(data) > MAX_STATE_BYTES:
        raise NotKept(
            f"current().state.set(…), called at {where()}: the value has {len(data):,} bytes and "
            f"the limit is {MAX_STATE_BYTES:,}; keep a position, and the data in a database"
        )
    secrets.refuse_live(data.decode(), "current().state.set(…)")
    return data
