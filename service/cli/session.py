"""A command's session: with the running service if there is one, else with the journal itself.

The lock file of the data folder tells which. Both sessions use the verbs of `Operator`, return the
same documents and raise the same errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from turnout.service.client import Client, Unavailable, connect
from turnout.service.domain.errors import SetupError

if TYPE_CHECKING:
    from turnout.service.journal.sqlite.reader import SqliteReader
    from turnout.service.operate.operator import Operator
    from turnout.service.project import Project
    from turnout.service.settings import Settings

_STARTING_TRIES = 30
_STARTING_PAUSE_SECONDS = 0.1


class Session(Protocol):
    """The verbs that work with and without a running service."""

    async def retry(self, run_id: str, from_step: str | None) -> dict[str, Any]:
        """Queue a finished run again."""

    async def cancel(self, run_id: str, *, reason: str, by: str) -> dict[str, Any]:
        """Cancel an unfinished run; `reason` and `by` are stored with it."""

    async def drop(self, run_id: str) -> dict[str, Any]:
        """Take a dead letter off the list."""

    async def replay_dead(self, run_id: str, *, not_undone: bool) -> list[str]:
        """Replay a dead letter, with `not_undone` even if its undo failed; returns the new runs."""

    async def replay(self, event_id: str, source: str | None, *, not_undone: bool) -> list[str]:
        """Replay an event, with `not_undone` even if an undo failed; returns the new runs."""

    async def pause(self, name: str) -> str:
        """Pause a flow or trigger; returns its full name."""

    async def resume(self, name: str) -> str:
        """Resume a paused flow or trigger."""

    async def clear_cache(self, task: str | None) -> int:
        """Clear cached results of one task or of all; returns how many."""


class ServiceSession:
    """Acts through the running service."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def retry(self, run_id: str, from_step: str | None) -> dict[str, Any]:
        """Queue a finished run again."""
        params = {} if from_step is None else {"from": from_step}
        return await self._post(f"/api/runs/{quote(run_id, safe='')}/retry", params)

    async def cancel(self, run_id: str, *, reason: str, by: str) -> dict[str, Any]:
        """Cancel an unfinished run."""
        path = f"/api/runs/{quote(run_id, safe='')}/cancel"
        return await self._post(path, fields={"reason": reason, "by": by})

    async def drop(self, run_id: str) -> dict[str, Any]:
        """Take a dead letter off the list."""
        return await self._post(f"/api/dead/{quote(run_id, safe='')}/drop")

    async def replay_dead(self, run_id: str, *, not_undone: bool) -> list[str]:
        """Replay a dead letter."""
        path = f"/api/dead/{quote(run_id, safe='')}/replay"
        return list((await self._post(path, fields={"not_undone": not_undone}))["runs"])

    async def replay(self, event_id: str, source: str | None, *, not_undone: bool) -> list[str]:
        """Replay an event."""
        params = {} if source is None else {"source": source}
        path = f"/api/events/{quote(event_id, safe='')}/replay"
        return list((await self._post(path, params, {"not_undone": not_undone}))["runs"])

    async def pause(self, name: str) -> str:
        """Pause a flow or trigger."""
        return str((await self._post("/api/pauses", fields={"name": name}))["name"])

    async def resume(self, name: str) -> str:
        """Resume a paused flow or trigger."""
        path = f"/api/pauses/{quote(name, safe='')}"
        return str((await self._client.call("DELETE", path))["name"])

    async def clear_cache(self, task: str | None) -> int:
        """Clear cached results of one task or of all."""
        params = {} if task is None else {"task": task}
        return int((await self._client.call("DELETE", "/api/cache", params=params))["cleared"])

    async def _post(
        self,
        path: str,
        params: dict[str, str] | None = None,
        fields: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        from turnout.service.operate.documents import encode

        body = None if fields is None else encode(fields)
        answer: dict[str, Any] = await self._client.call("POST", path, params=params, body=body)
        return answer


class JournalSession:
    """Acts on the journal under its lock while no service is running."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator

    async def retry(self, run_id: str, from_step: str | None) -> dict[str, Any]:
        """Queue a finished run again."""
        return (await self._operator.retry(run_id, from_step)).as_dict()

    async def cancel(self, run_id: str, *, reason: str, by: str) -> dict[str, Any]:
        """Cancel an unfinished run."""
        return (await self._operator.cancel(run_id, reason=reason, by=by)).as_dict()

    async def drop(self, run_id: str) -> dict[str, Any]:
        """Take a dead letter off the list."""
        return (await self._operator.drop(run_id)).as_dict()

    async def replay_dead(self, run_id: str, *, not_undone: bool) -> list[str]:
        """Replay a dead letter."""
        return await self._operator.replay_dead(run_id, not_undone=not_undone)

    async def replay(self, event_id: str, source: str | None, *, not_undone: bool) -> list[str]:
        """Replay an event."""
        return await self._operator.replay(event_id, source, not_undone=not_undone)

    async def pause(self, name: str) -> str:
        """Pause a flow or trigger."""
        return await self._operator.pause(_full_name(name))

    async def resume(self, name: str) -> str:
        """Resume a paused flow or trigger."""
        return await self._operator.resume(_full_name(name))

    async def clear_cache(self, task: str | None) -> int:
        """Clear cached results of one task or of all."""
        return await self._operator.clear_cache(task)


def _full_name(name: str) -> str:
    """Tell flows from triggers without a project: a trigger's name starts with its kind."""
    if name.startswith(("flow:", "trigger:")):
        return name
    return f"trigger:{name}" if ":" in name else f"flow:{name}"


@asynccontextmanager
async def open_session(settings: Settings) -> AsyncIterator[Session]:
    """Open a session for a data folder; raises `Unavailable` or `SetupError`."""
    url = await service_url(settings)
    if url is not None:
        async with _client(settings, url) as client:
            yield ServiceSession(client)
        return
    async with open_operator(settings) as operator:
        yield JournalSession(operator)


@asynccontextmanager
async def open_operator(
    settings: Settings, project: Callable[[], Project] | None = None
) -> AsyncIterator[Operator]:
    """Open an operator on the journal, under its lock, while no service is running."""
    from turnout.service.domain.units import utc_now
    from turnout.service.journal.open import open_journal
    from turnout.service.operate.operator import Operator
    from turnout.service.project import Project
    from turnout.service.telemetry.metrics import Metrics

    _require_folder(settings)
    journal = await open_journal(
        settings.data,
        metrics=Metrics(),
        synchronous=settings.synchronous,
        max_unfinished_runs=settings.max_unfinished_runs,
        min_free_bytes=settings.min_free_bytes,
    )
    try:
        yield Operator(
            journal, now=utc_now, project=project or Project, connection=settings.connection
        )
    finally:
        await journal.close()


@asynccontextmanager
async def open_service(settings: Settings) -> AsyncIterator[Client]:
    """Open a client of the running service; raises `Unavailable` saying how to start one."""
    url = await service_url(settings)
    if url is None:
        raise Unavailable(
            f"this needs a running service, and none uses {settings.data}; "
            "start one with: turnout serve FLOWS…  (or name its folder with --data)"
        )
    async with _client(settings, url) as client:
        yield client


@asynccontextmanager
async def open_journal_reader(settings: Settings) -> AsyncIterator[SqliteReader]:
    """Open the journal read-only; works with and without a running service."""
    from turnout.service.journal.sqlite.reader import open_reader

    _require_folder(settings)
    reader = await open_reader(settings.data)
    try:
        yield reader
    finally:
        await reader.close()


async def service_url(settings: Settings) -> str | None:
    """Return the URL of the data folder's service, or None when none is running."""
    from turnout.service.journal.sqlite.lock import read_lock

    for _ in range(_STARTING_TRIES):
        holder = await asyncio.to_thread(read_lock, settings.data)
        if holder is None or holder.url is not None:
            return None if holder is None else holder.url
        await asyncio.sleep(_STARTING_PAUSE_SECONDS)
    raise Unavailable(f"another process holds {settings.data} but does not answer yet; try again")


@asynccontextmanager
async def _client(settings: Settings, url: str) -> AsyncIterator[Client]:
    from turnout.service.governance.tokens import stored_token

    token = settings.api_token or stored_token(settings.data)
    if token is None:
        raise SetupError(
            f"{settings.data} holds no API token; set TURNOUT_API_TOKEN to the one the service "
            "was started with"
        )
    async with connect(url, token, certificate=settings.tls_certificate) as client:
        yield client


def _require_folder(settings: Settings) -> None:
    if not settings.data.is_dir():
        raise SetupError(f"no data folder {settings.data}; name it with --data DIR or TURNOUT_DATA")
