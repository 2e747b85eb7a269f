"""Sending an event to the running service, and printing the receipt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .output import complain, print_json, say

if TYPE_CHECKING:
    from turnout.service.settings import Settings


async def send(
    settings: Settings, method: str, path: str, body: bytes | None = None,
    content_type: str = "application/json",
) -> Any:  # fmt: skip
    """Call the running service and return its decoded answer."""
    from .session import open_service

    async with open_service(settings) as client:
        return await client.call(method, path, body=body, content_type=content_type)


def show_receipt(receipt: dict[str, Any], *, as_json: bool) -> None:
    """Print what became of an event."""
    if as_json:
        print_json(receipt)
        return
    runs = ", ".join(receipt["runs"]) or "none"
    say(f"event {receipt['event']}{' (a duplicate)' * receipt['duplicate']}; runs: {runs}")
    for flow, reason in receipt.get("refusals", {}).items():
        complain(f"flow {flow} refused it: {reason}")
