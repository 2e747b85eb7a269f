"""The answers of a webhook: a receipt, a result, or a problem document with the reason."""

from __future__ import annotations

import random
from dataclasses import replace

import orjson

from turnout.service.domain import problems
from turnout.service.domain.errors import InvalidData, JournalError, Overloaded, QueueFull
from turnout.service.domain.run import Outcome, RunState
from turnout.service.domain.trigger import Receipt, Reply

LONGEST_RETRY_SECONDS = 300
"""A sender is asked to come back after five minutes at the latest."""


def problem(status: int, detail: str, **members: object) -> Reply:
    """Return a problem document (RFC 9457)."""
    return Reply(
        status=status,
        body=problems.document(status, detail, **members),
        content_type=problems.CONTENT_TYPE,
    )


UNVERIFIED = problem(401, "the request could not be verified")


def undecodable(error: InvalidData) -> Reply:
    """Refuse a request whose body or attributes cannot be read."""
    members = {} if error.field is None else {"field": error.field}
    return problem(400, str(error), **members)


def accepted(receipt: Receipt) -> Reply:
    """Say that the event is on disk; of windows it waits in only if there are any."""
    answer: dict[str, object] = {
        "event": receipt.event,
        "runs": list(receipt.runs),
        "duplicate": receipt.duplicate,
    }
    if receipt.windows:
        answer["windows"] = dict(receipt.windows)
    return Reply(status=202, body=orjson.dumps(answer))


def refused(receipt: Receipt) -> Reply:
    """Say why nothing was stored."""
    if receipt.conflict:
        return problem(
            409,
            "an event with this id was accepted before, with other content",
            event=receipt.event,
        )
    return problem(
        422, "no flow accepts this data; nothing was stored", refusals=dict(receipt.refusals)
    )


def busy(error: Overloaded | JournalError) -> Reply:
    """Ask the sender to retry later, with jitter so that many senders do not return at once."""
    seconds = error.retry_after_seconds if isinstance(error, Overloaded) else 5
    longest = min(max(60, seconds), LONGEST_RETRY_SECONDS)
    jittered = min(longest, max(1, round(seconds * random.uniform(0.75, 1.5))))
    status = 429 if isinstance(error, QueueFull) else 503
    reply = problem(status, "nothing was stored; send the same request again later")
    return replace(reply, headers=(("retry-after", str(jittered)),))


def result(outcome: Outcome, receipt: Receipt, *, plain: bool) -> Reply:
    """Answer with the result of the run; `plain` writes a text as it is, not as JSON."""
    if outcome.state in (RunState.SUCCEEDED, RunState.SKIPPED):
        body = outcome.result or b"null"
        if plain and body[:1] == b'"':
            return _text(orjson.loads(body))
        return Reply(status=200, body=body)
    kind = outcome.error.type if outcome.error is not None else str(outcome.state)
    # The message is left out: the text of an exception may hold anything.
    return problem(500, f"the run ended as {outcome.state}", run=receipt.runs[0], error=kind)


def _text(text: str) -> Reply:
    return Reply(
        status=200,
        body=text.encode(),
        content_type="text/plain; charset=utf-8",
        headers=(("x-content-type-options", "nosniff"),),  # the text may come from the sender
    )
