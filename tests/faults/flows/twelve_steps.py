"""Steps of every kind, each leaving a line where it is seen to have run.

`passed` tells a test's saboteur, when there is one in the process, how far the run has come.
"""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

from turnout import (
    Pending,
    budget,
    current,
    first,
    flow,
    gather,
    poll,
    sleep,
    task,
    wait_for,
    webhook,
)

go = webhook("/go/{id}")


def leave(folder: str, label: str) -> None:
    with (Path(folder) / "effects").open("a") as file:
        file.write(f"{label}|{current().key()}\n")
    passed = getattr(builtins, "turnout_test_passed", None)
    if passed is not None:
        passed(f"inside {label}")


@task
async def fetch(folder: str) -> list[int]:
    leave(folder, "fetch")
    return [1, 2, 3]


@task
def check(folder: str, numbers: list[int]) -> int:
    leave(folder, "check")
    return sum(numbers)


@task
async def left(folder: str, total: int) -> int:
    leave(folder, "left")
    return total * 10


@task
async def right(folder: str, total: int) -> int:
    leave(folder, "right")
    return total * 100


@task
async def polish(item: dict[str, Any]) -> int:
    leave(item["folder"], f"polish {item['number']}")
    return int(item["number"]) ** 2


@task
async def wrap(folder: str) -> str:
    leave(folder, "wrap")
    return "wrapped"


@flow
async def pack(data: dict[str, Any]) -> str:
    return f"{await wrap(data['folder'])} {data['count']}"


@flow
async def patience() -> None:
    await sleep("1h")


@task
async def publish(folder: str, word: str) -> str:
    leave(folder, "publish")
    return word.upper()


@task
async def done(folder: str) -> bool | Pending:
    effects = (Path(folder) / "effects").read_text().splitlines()
    keys = dict.fromkeys(line.partition("|")[2] for line in effects if line.startswith("look "))
    number = [*{**keys, current().key(): None}].index(current().key()) + 1
    leave(folder, f"look {number}")
    return True if number == 2 else Pending()


@flow(on=webhook("/twelve"), awaits=go)
async def twelve(data: dict[str, Any]) -> dict[str, Any]:
    folder = data["folder"]
    numbers = await fetch(folder)
    total = await check.run(folder, numbers)
    pair = await gather(left(folder, total), right(folder, total))
    squares = await polish.map([{"folder": folder, "number": each} for each in numbers], limit=2)
    parcel = await pack({"folder": folder, "count": len(squares)})
    await sleep("30ms")
    assert await poll(done, folder, every="30ms")
    await budget("twelve", max_changes=1000, per="1d").take()
    told = await first(wait_for(go, match={"id": data["id"]}), patience(), sleep("1h"))
    assert told.which == 0
    word = await publish(folder, told.value.data["word"])
    return {"pair": list(pair), "squares": squares, "parcel": parcel, "word": word}
