"""A command's session: with the running service if there is one, else with the journal itself.

The lock file of the data folder tells which. Both do the same verbs, return the same documents and
raise the same errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from turnout.service.client import Client, Unavailable, connect
from turnout.service.domain.errors import NotFound, SetupError

from .output import working

if TYPE_CHECKING:
    from turnout.service.journal.sqlite.reader import SqliteReader
    from turnout.service.operate.operator import Operator
    from turnout.service.operate.verbs import Verb
    from turnout.service.project import Project
    from turnout.service.settings import Settings

_STARTING_TRIES = 30
_STARTING_PAUSE_SECONDS = 0.1
_WAKING_TRIES = 300
_WAITS_AT_ONCE = 100


class Session(Protocol):
    """Where a verb is done; the document is the one that the HTTP API answers."""

    async def do(self, verb: Verb[Any]) -> dict[str, Any]:
        """Do a verb and return the document it is answered with."""

    async def plan(self, verb: Verb[Any]) -> dict[str, Any]:
        """Return a document of what a verb would do, in `done`; raises as `do` would."""


class ServiceSession:
    """Acts through the running service."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings

    async def do(self, verb: Verb[Any]) -> dict[str, Any]:
        """Send the request of the verb's route."""
        return await self._send(verb, {})

    async def plan(self, verb: Verb[Any]) -> dict[str, Any]:
        """Send the same request, with the word that nothing is to be done."""
        from turnout.service.http.rest.routes import DRY_RUN

        return await self._send(verb, {DRY_RUN: "true"})

    async def _send(self, verb: Verb[Any], more: dict[str, str]) -> dict[str, Any]:
        from turnout.service.http.rest.routes import route_of

        sent = route_of(verb).request(verb)
        with _naming_folder(self._settings):
            document: dict[str, Any] = await self._client.call(
                sent.method, sent.path, params={**sent.query, **more}, body=sent.body,
                content_type=sent.content_type,
            )  # fmt: skip
        return document


@contextmanager
def _naming_folder(settings: Settings) -> Iterator[None]:
    """Have the error for a name that is not found say which journal was asked."""
    try:
        yield
    except NotFound as error:
        error.add_note(f"this is the journal in {settings.data}")
        raise


class JournalSession:
    """Acts on the journal under its lock while no service is running."""

    def __init__(self, operator: Operator, settings: Settings) -> None:
        self._operator = operator
        self._settings = settings

    async def do(self, verb: Verb[Any]) -> dict[str, Any]:
        """Do the verb as the service would."""
        from turnout.service.http.rest.routes import route_of

        with _naming_folder(self._settings):
            done = await self._operator.do(verb)
        document: dict[str, Any] = route_of(verb).document(verb, done)
        return document

    async def plan(self, verb: Verb[Any]) -> dict[str, Any]:
        """Return what the verb would do."""
        from turnout.service.operate.documents import plan_of

        with _naming_folder(self._settings):
            return plan_of(await self._operator.plan(verb))


def do(
    settings: Settings, verb: Verb[Any], *, project: Callable[[], Project] | None = None
) -> dict[str, Any]:
    """Do one verb in a session of its own; returns its document. See `open_session`."""

    async def act() -> dict[str, Any]:
        async with open_session(
            settings, needs_service=verb.needs_service, project=project
        ) as session:
            return await session.do(verb)

    with working("waiting for the service"):
        return asyncio.run(act())


def list_from_service(settings: Settings, path: str, **asked: str | None) -> list[dict[str, Any]]:
    """Return the items of a list that only the running service knows, as they are `asked` for."""
    params = {name: text for name, text in asked.items() if text is not None}

    async def read() -> list[dict[str, Any]]:
        async with open_service(settings) as client:
            return list((await client.call("GET", path, params=params))["items"])

    with working("waiting for the service"):
        return asyncio.run(read())


async def waits_from_service(
    settings: Settings, run_ids: Sequence[str]
) -> dict[str, dict[str, Any]] | None:
    """Return what runs wait for, by id; None where no service runs: only it knows all of it."""
    from turnout.service.domain.errors import TurnoutError

    found: dict[str, dict[str, Any]] = {}
    try:
        async with open_service(settings) as client:
            for first in range(0, len(run_ids), _WAITS_AT_ONCE):
                asked = run_ids[first : first + _WAITS_AT_ONCE]
                answer = await client.call("GET", "/api/waits", params={"run": asked})
                found |= {item.pop("run"): item for item in answer["items"]}
    except TurnoutError:
        return None
    return found


@asynccontextmanager
async def open_session(
    settings: Settings,
    *,
    needs_service: bool = False,
    project: Callable[[], Project] | None = None,
) -> AsyncIterator[Session]:
    """Open a session for a data folder; raises `Unavailable` or `SetupError`.

    `project` loads the flow files where no service has them loaded. A service that has gone idle is
    started again.
    """
    if await service_url(settings) is None and not await _wake(settings) and not needs_service:
        loaded = None if project is None else project()
        async with _open_operator(settings, loaded) as operator:
            yield JournalSession(operator, settings)
        return
    async with open_service(settings) as client:
        yield ServiceSession(client, settings)


@asynccontextmanager
async def _open_operator(settings: Settings, project: Project | None) -> AsyncIterator[Operator]:
    """Open an operator on the journal, under its lock, while no service is running."""
    from turnout.service.domain.clock import wall_clock
    from turnout.service.journal.open import open_journal
    from turnout.service.operate.operator import Operator
    from turnout.service.project import Project
    from turnout.service.telemetry.metrics import Metrics

    _require_folder(settings)
    loaded = Project() if project is None else project
    journal = await open_journal(
        settings.data,
        metrics=Metrics(),
        synchronous=settings.synchronous,
        max_unfinished_runs=settings.max_unfinished_runs,
        min_free_bytes=settings.min_free_bytes,
    )
    try:
        now = wall_clock()  # what follows is over before a clock could be set
        yield Operator(
            journal=journal,
            now=now,
            wall=now,
            project=lambda: loaded,
            connection=settings.connection,
        )
    finally:
        await journal.close()


async def _wake(settings: Settings) -> bool:
    """Have a service that has gone idle started again, by connecting; False if that is not so."""
    from turnout.service.journal.wake import read_next_wake

    idle = await asyncio.to_thread(read_next_wake, settings.data)
    if idle is None:
        return False
    address = urlsplit(idle.url)
    try:
        _, writer = await asyncio.open_connection(address.hostname, address.port)
    except OSError:  # nobody listens for it any more
        return False
    try:
        for _ in range(_WAKING_TRIES):
            with suppress(Unavailable):  # it starts
                if await service_url(settings) is not None:
                    return True
            await asyncio.sleep(_STARTING_PAUSE_SECONDS)
    finally:
        writer.close()
    raise Unavailable(
        f"the service of {settings.data} has gone idle and was not started by a connection to "
        f"{idle.url}; see `systemctl status turnout.socket`"
    )


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
        with _naming_folder(settings):
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
