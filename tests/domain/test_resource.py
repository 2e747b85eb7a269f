"""Resources: opened once with the service, closed after it, injected by annotation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated

import pytest

from tests.support.attempts import attempts
from turnout import flow, resource
from turnout.service.domain.errors import SetupError
from turnout.service.domain.resource import Resources

happened: list[str] = []


@pytest.fixture(autouse=True)
def nothing_happened() -> None:
    happened.clear()


@resource
async def pool() -> AsyncIterator[str]:
    happened.append("open pool")
    yield "the pool"
    happened.append("close pool")


@resource
def client() -> Iterator[str]:
    happened.append("open client")
    yield "the client"
    happened.append("close client")


@resource
async def token() -> str:
    return "the token"


@resource
def number() -> int:
    return 7


@resource
def broken() -> int:
    raise OSError("no\nroute")


async def test_every_kind_opens_once_and_closes_last_first() -> None:
    resources = Resources()
    await resources.start([pool, client, token, number, pool])
    opened = (
        resources.get(pool),
        resources.get(client),
        resources.get(token),
        resources.get(number),
    )
    assert opened == ("the pool", "the client", "the token", 7)
    await resources.stop()
    assert happened == ["open pool", "open client", "close client", "close pool"]


async def test_a_failing_start_names_file_and_line_and_leaves_the_rest_closable() -> None:
    resources = Resources()
    with pytest.raises(SetupError) as caught:
        await resources.start([pool, broken])
    assert str(caught.value) == (
        f"{__file__}:{broken.line}: resource 'broken' did not start: OSError: no route"
    )
    assert broken.line > 40
    await resources.stop()
    assert happened == ["open pool", "close pool"]


def test_a_resource_that_was_not_started_or_takes_parameters_is_refused() -> None:
    with pytest.raises(SetupError, match="'pool' is not started"):
        Resources().get(pool)
    with pytest.raises(SetupError, match="takes parameters"):
        resource(open)  # type: ignore[arg-type]  # under test


async def test_a_flow_gets_its_resource_and_a_unit_test_passes_its_own(tmp_path: Path) -> None:
    @flow
    async def asks(db: Annotated[str, pool]) -> str:
        return db

    assert await asks("a fake") == "a fake"
    async with attempts(tmp_path) as run:
        await run.resources.start([pool])
        assert (await run.first(asks)).result == b'"the pool"'
