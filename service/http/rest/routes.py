"""The routes of verbs: one table, by which the service reads a request and a command writes it.

A row says where each field of a verb travels: in the path (`{field}`), in the query, or in the
body, and with which document the verb is answered. `ServiceSession` (`cli/session.py`) makes the
request, `endpoints` answers it. Without FastAPI, because commands import it. Not here: reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from turnout.service.domain.errors import Refused, RefusedByFlows
from turnout.service.domain.run import Run
from turnout.service.domain.trigger import Receipt
from turnout.service.journal.records import StoredPause, StoredWindow
from turnout.service.operate import documents
from turnout.service.operate.alerts import alert_of
from turnout.service.operate.filters import query_of
from turnout.service.operate.verbs import (
    Answer,
    Cancel,
    CancelAll,
    ClearCache,
    ClearState,
    Drop,
    DropWindow,
    Emit,
    Fire,
    FireWindow,
    MuteAlert,
    Pause,
    Replay,
    ReplayDead,
    ResetLimit,
    Resume,
    Resumed,
    Retry,
    RetryAll,
    SeekTrigger,
    SetLimit,
    Verb,
)
from turnout.service.operate.windows import window_of

from .bodies import ANSWER, DATA, EVENT, LIMIT, MUTE, NOT_UNDONE, PAUSE, REASON, SEEK, Body

V = TypeVar("V", bound=Verb[Any])

FILTERED = "which"
"""The field of a bulk verb that chooses runs."""

_IN_PATH = re.compile(r"\{(\w+)(?::path)?\}")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A field of a verb that travels as the query parameter `name`, when it is not its `default`.

    It is text, or a flag if its default is False.
    """

    field: str
    name: str
    description: str | None = None
    default: str | bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A request as a command sends it."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes | None
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Route(Generic[V]):
    """How one verb travels over HTTP; `name`, `tag` and `text` are for the OpenAPI document.

    `path` is below `/api`. With `filtered` the field `which` travels as the filters of lists, of
    which one is required. `document` takes the verb and what it returned.
    """

    verb: type[V]
    name: str
    method: str
    path: str
    tag: str
    text: str
    query: tuple[Parameter, ...] = ()
    filtered: bool = False
    body: Body | None = None
    status: int = 200
    document: Callable[[V, Any], Any]

    @property
    def in_path(self) -> list[str]:
        """The fields that travel in the path."""
        return _IN_PATH.findall(self.path)

    def request(self, verb: V) -> Sent:
        """Return the request that asks for a verb."""
        query = {
            each.name: "true" if each.default is False else getattr(verb, each.field)
            for each in self.query
            if getattr(verb, each.field) != each.default
        }
        if self.filtered:
            query |= query_of(getattr(verb, FILTERED))
        return Sent(
            method=self.method,
            path="/api"
            + _IN_PATH.sub(lambda found: quote(getattr(verb, found[1]), safe=""), self.path),
            query={name: text for name, text in query.items() if text is not None},
            body=None if self.body is None else self.body.write(verb),
            content_type="" if self.body is None else self.body.content_type,
        )


# ---------------------------------------------------------------- what verbs are answered with


def _run(_verb: Verb[Run], run: Run) -> dict[str, Any]:
    return run.as_dict()


def _count(_verb: Verb[list[Run]], runs: list[Run]) -> dict[str, Any]:
    return {"count": len(runs), "runs": [run.id for run in runs]}


def _new_runs(_verb: Verb[list[str]], runs: list[str]) -> dict[str, Any]:
    return {"runs": runs}


def _paused(_verb: Pause, pause: StoredPause) -> dict[str, Any]:
    return documents.pause_of(pause) | {"paused": True}


def _resumed(_verb: Resume, resumed: Resumed) -> dict[str, Any]:
    return documents.resumed_of(resumed)


def _receipt(_verb: Verb[Receipt], receipt: Receipt) -> dict[str, Any]:
    return documents.receipt_of(receipt)


def _stored(verb: Emit, receipt: Receipt) -> dict[str, Any]:
    event = verb.event
    if receipt.conflict:
        raise Refused(
            f"event {event.id!r} from {event.source!r} was sent before with other content"
        )
    if not receipt.stored:
        raise RefusedByFlows("every flow refuses this data", receipt.refusals)
    return documents.receipt_of(receipt)


def _window(_verb: Verb[StoredWindow], window: StoredWindow) -> dict[str, Any]:
    return window_of(window)


def _cleared(_verb: Verb[int], count: int) -> dict[str, Any]:
    return {"cleared": count}


# ---------------------------------------------------------------- the table

FORCE = Parameter(
    "force", "force", "start beside what is under way, whatever `mode=` says", default=False
)

DRY_RUN = "dry_run"
"""The query parameter of every route: only answer what would be done, and do nothing."""

RUNS, DEAD_LETTERS, EVENTS, FLOWS = "runs", "dead letters", "events", "flows and triggers"
WINDOWS, ALERTS = "windows", "alerts"

ROUTES: tuple[Route[Any], ...] = (
    Route(
        verb=Retry,
        name="retry_run",
        method="POST",
        path="/runs/{run_id}/retry",
        tag=RUNS,
        text="Queue a finished run again; it resumes after its last recorded step, or at `from`."
        "\n\nIf its undo failed, only the remaining steps of the undo run.",
        query=(Parameter("from_step", "from", "run again from this step key on"), FORCE),
        document=_run,
    ),
    Route(
        verb=Cancel,
        name="cancel_run",
        method="POST",
        path="/runs/{run_id}/cancel",
        tag=RUNS,
        text="Cancel an unfinished run and undo what it did; `undo` is running until that is over."
        '\n\nThe body may be {"reason": WHY, "by": WHO}. 409 if it has ended or is already being '
        "undone.",
        body=REASON,
        document=_run,
    ),
    Route(
        verb=RetryAll,
        name="retry_runs",
        method="POST",
        path="/runs/retry",
        tag=RUNS,
        text="Queue every matching failed or cancelled run again; one filter is required.",
        filtered=True,
        document=_count,
    ),
    Route(
        verb=CancelAll,
        name="cancel_runs",
        method="POST",
        path="/runs/cancel",
        tag=RUNS,
        text="Cancel every matching unfinished run; one filter is required.\n\n"
        'The body may be {"reason": WHY, "by": WHO}.',
        filtered=True,
        body=REASON,
        document=_count,
    ),
    Route(
        verb=Answer,
        name="approve_run",
        method="POST",
        path="/runs/{run_id}/approve",
        tag=RUNS,
        text='Answer the approval a run waits for: the body is {"approve": true or false}.\n\n'
        "It may also have `fields` (what the flow asks for), `reason`, `by`, and `step` if the run "
        "waits\nfor several approvals. 409 if no approval is open, 422 if the fields are invalid.",
        body=ANSWER,
        document=_run,
    ),
    Route(
        verb=ReplayDead,
        name="replay_dead",
        method="POST",
        path="/dead/{run_id}/replay",
        tag=DEAD_LETTERS,
        text="Run a dead letter's flow again, as a new run of the same event, and drop the dead "
        'letter.\n\nIf its undo failed: 409 unless the body is {"not_undone": true}, and it stays '
        "a dead letter.",
        body=NOT_UNDONE,
        document=_new_runs,
    ),
    Route(
        verb=Drop,
        name="drop_dead",
        method="POST",
        path="/dead/{run_id}/drop",
        tag=DEAD_LETTERS,
        text="Take a dead letter off the list; it stays in the journal as a failed run.",
        document=_run,
    ),
    Route(
        verb=Replay,
        name="replay_event",
        method="POST",
        path="/events/{event_id:path}/replay",
        tag=EVENTS,
        text="Run every flow of an event again, as new runs.\n\nThe id of a run stands "
        "for its flow alone, with the same events.\n\n"
        '409 while a run of the event is not undone, unless the body is {"not_undone": true}.',
        query=(Parameter("source", "source", "which source, if several sent this id"), FORCE),
        body=NOT_UNDONE,
        document=_new_runs,
    ),
    Route(
        verb=Emit,
        name="emit_event",
        method="POST",
        path="/events",
        tag=EVENTS,
        text="Accept a CloudEvent, structured or binary; it starts the flows with "
        "`on=event(TYPE)`.\n\n202 once it is on disk. 409 if its id was used with other attributes "
        "or data, 422 if it is not\na CloudEvent or every flow refuses its data.",
        body=EVENT,
        status=202,
        document=_stored,
    ),
    Route(
        verb=FireWindow,
        name="fire_pending",
        method="POST",
        path="/pending/{window_id}/fire",
        tag=WINDOWS,
        text="Close an open window at once: its run starts with the events that it has.\n\n"
        "409 if it is closed, or if its flow is not served.",
        query=(Parameter("by", "by", "who fires it", default="api"),),
        document=_window,
    ),
    Route(
        verb=DropWindow,
        name="drop_pending",
        method="POST",
        path="/pending/{window_id}/drop",
        tag=WINDOWS,
        text="Close an open window without a run; its events get the decision `dropped`.\n\n"
        "409 if it is closed.",
        query=(Parameter("by", "by", "who drops it", default="api"),),
        document=_window,
    ),
    Route(
        verb=Fire,
        name="fire_trigger",
        method="POST",
        path="/triggers/{name:path}/fire",
        tag=FLOWS,
        text="Start the flows of a trigger now, with the body (JSON) as the event's data, or none."
        "\n\n422, with nothing stored, if no flow accepts it.",
        query=(FORCE,),
        body=DATA,
        status=202,
        document=_receipt,
    ),
    Route(
        verb=SeekTrigger,
        name="seek_trigger",
        method="POST",
        path="/triggers/{name:path}/seek",
        tag=FLOWS,
        text='Move a trigger\'s position: the body is {"to": "now", "start", "end", OFFSET or '
        'INSTANT}.\n\nAlso "partition", "rerun" (allows moving back, which runs accepted records '
        'again) and\n"dry_run", which only answers what would happen.',
        body=SEEK,
        document=lambda verb, plan: documents.seek_of(verb.name, plan, dry_run=verb.dry_run),
    ),
    Route(
        verb=Pause,
        name="pause",
        method="POST",
        path="/pauses",
        tag=FLOWS,
        text='Pause a flow or a trigger: the body is {"name": NAME}. "*" pauses everything.\n\n'
        "A paused flow's events are accepted and its runs wait; a paused trigger accepts no "
        "events.\nUnder the pause of everything all events are accepted and no run starts. "
        'With "for" (a duration\nsuch as "1h") the pause ends by itself; "note" says why, "by" '
        "who pauses.",
        body=PAUSE,
        document=_paused,
    ),
    Route(
        verb=Resume,
        name="resume",
        method="DELETE",
        path="/pauses/{name:path}",
        tag=FLOWS,
        text="Resume a paused flow or trigger; `*` ends the pause of everything.\n\n"
        "The answer says how many runs waited. They run; with `discard` those that have not begun "
        "end as\nskipped, for the reason `dropped`.",
        query=(
            Parameter("discard", "discard", "end what waited instead of running it", default=False),
            Parameter("by", "by", "who resumes", default="api"),
        ),
        document=_resumed,
    ),
    Route(
        verb=SetLimit,
        name="set_limit",
        method="PUT",
        path="/limits/{name:path}",
        tag=FLOWS,
        text="Override a limit for a while: the body is "
        '{"count": 10, "for": "2h"}.\n\n'
        "The name is that of a named limit or of a flow (`bill`; its second limit is "
        '`bill/limit.2`).\nA higher count starts runs at once, a lower one stops none. "note" says '
        'why, "by" who sets it.',
        body=LIMIT,
        document=lambda _verb, made: documents.override_of(made),
    ),
    Route(
        verb=ResetLimit,
        name="reset_limit",
        method="DELETE",
        path="/limits/{name:path}",
        tag=FLOWS,
        text="Remove the override of a limit: the flow file holds again.",
        query=(Parameter("by", "by", "who resets it", default="api"),),
        document=lambda _verb, name: {"name": name},
    ),
    Route(
        verb=MuteAlert,
        name="mute_alert",
        method="POST",
        path="/alerts/{alert}/mute",
        tag=ALERTS,
        text="Tell nobody more of an open alert; that it is over is told.\n\n"
        'The body may be {"for": "2h", "note": WHY, "by": WHO}; without "for" it is muted until it '
        "is over.\n409 if it is over.",
        body=MUTE,
        document=lambda _verb, alert: alert_of(alert, is_muted=True),
    ),
    Route(
        verb=ClearCache,
        name="clear_cache",
        method="DELETE",
        path="/cache",
        tag=FLOWS,
        text="Clear the cached results of one task, or of all tasks with `cache=`.",
        query=(Parameter("task", "task"),),
        document=_cleared,
    ),
    Route(
        verb=ClearState,
        name="clear_state",
        method="DELETE",
        path="/state/{flow:path}",
        tag=FLOWS,
        text="Clear what a flow keeps between runs, under one ordering key (`key=`) or all.\n\n"
        "A run that has read the value and wants to keep another starts over, from none.",
        query=(
            Parameter("key", "key", "only what is kept under this key; empty for a flow's own"),
            Parameter("by", "by", "who clears it", default="api"),
        ),
        document=_cleared,
    ),
)

_BY_VERB: Mapping[type[Verb[Any]], Route[Any]] = {route.verb: route for route in ROUTES}


def route_of(verb: Verb[Any]) -> Route[Any]:
    """Return the route of a verb."""
    return _BY_VERB[type(verb)]
