"""The ASGI application of a service that is not there yet: it is alive, not ready, and says why."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from turnout.service.domain.trigger import Reply

from .exchange import App, Receive, Scope, Send, answer, problem, refuse

_RETRY_AFTER = ("retry-after", "5")


def starting(reason: Callable[[], str]) -> App:
    """Return the application; `reason` says what is being done."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/healthz":
            await answer(Reply(status=200, body=b'{"status":"starting"}'), send)
        elif path == "/readyz":
            document = {"ready": False, "reasons": [reason()], "warnings": []}
            await answer(Reply(status=503, body=orjson.dumps(document)), send)
        else:
            refusal = problem(503, f"the service starts: {reason()}", _RETRY_AFTER)
            await refuse(refusal, scope, receive, send)

    return app
