"""Lists that only the running service knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turnout.service.settings import Settings


async def list_from_service(settings: Settings, path: str) -> list[dict[str, Any]]:
    """Return the items of a list that the running service answers."""
    from .session import open_service

    async with open_service(settings) as client:
        return list((await client.call("GET", path))["items"])
