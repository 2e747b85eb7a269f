"""Requests of every kind to the server that `STUB` names; each path ends with the run's number."""

from __future__ import annotations

import os
from typing import Any

from turnout import artefact, flow, http, retry, task, webhook

URL = os.environ["STUB"]


@task
async def note(number: int) -> int:
    return (await http.put(f"{URL}/note/{number}", json="noted")).status_code


@task
def measured(name: str) -> int:
    return len(artefact(name).read())


@flow(on=webhook("/requests"))
async def requests(data: dict[str, Any]) -> dict[str, Any]:
    number = data["number"]
    ordered = await http.post(f"{URL}/order/{number}", json={"item": number})
    price = await http.get(f"{URL}/price/{number}", retry=retry(3, delay="10ms"))
    await http.get(f"{URL}/dump/{number}", to=artefact("dump.bin"))
    return {
        "order": ordered.json(),
        "price": price.json(),
        "noted": await note(number),
        "bytes": await measured.run("dump.bin"),
    }
