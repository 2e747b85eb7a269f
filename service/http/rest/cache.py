"""Calls about the cached results of tasks."""

from __future__ import annotations

from fastapi import Response

from .answers import json_answer
from .authorization import ServiceOf
from .router import api_router

router = api_router()


@router.delete("/cache", tags=["flows and triggers"])
async def clear_cache(service: ServiceOf, task: str | None = None) -> Response:
    """Forget the kept results of a task with `cache=`, or of all of them."""
    return json_answer({"cleared": await service.operator.clear_cache(task)})
