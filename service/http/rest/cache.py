"""Calls about the cached results of tasks."""

from __future__ import annotations

from fastapi import Response

from .answers import json_answer
from .authorization import ServiceOf
from .router import api_router

router = api_router()


@router.delete("/cache", tags=["flows and triggers"])
async def clear_cache(service: ServiceOf, task: str | None = None) -> Response:
    """Clear the cached results of one task, or of all tasks with `cache=`."""
    return json_answer({"cleared": await service.operator.clear_cache(task)})
