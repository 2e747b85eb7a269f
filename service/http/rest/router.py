"""The router of the calls under `/api`: each needs the bearer token."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from .authorization import require_token, scheme


def api_router() -> APIRouter:
    """Return a router for calls under `/api`."""
    return APIRouter(
        prefix="/api",
        dependencies=[Depends(require_token), Depends(scheme)],
        responses={401: {"description": "No token, or not the right one."}},
    )
