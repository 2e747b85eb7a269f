"""A batch whose run asks for some of its items again, twice, and buries one in the end.

`passed` tells a test's saboteur, when there is one in the process, how far the run has come.
"""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

from turnout import Fail, Retry, batch, current, flow, retry, task, webhook

ROUNDS = [{0, 3, 4}, {0, 3}, {0}]
"""The items that are not stored, round by round."""


def leave(folder: str, *words: object) -> None:
    with (Path(folder) / "effects").open("a") as file:
        file.write(json.dumps(words) + "\n")
    passed = getattr(builtins, "turnout_test_passed", None)
    if passed is not None:
        passed(f"inside {words[0]} {words[1]}")


@task
async def store(item: dict[str, Any], round_: int) -> bool:
    is_stored = item["number"] not in ROUNDS[round_]
    leave(item["folder"], "store", item["number"], current().key(), is_stored)
    return is_stored


@flow(on=batch(webhook("/items"), 6, "1m"), retry=retry(3, delay="1ms"))
async def load(items: list[dict[str, Any]]) -> int:
    round_ = {6: 0, 3: 1, 2: 2}[len(items)]
    leave(items[0]["folder"], "called", [item["number"] for item in items])
    stored = [await store(item, round_) for item in items]
    failed = [index for index, is_stored in enumerate(stored) if not is_stored]
    if round_ == 2:
        raise Fail("it cannot be stored", items=failed)
    raise Retry("not stored", items=failed, after="1ms")
