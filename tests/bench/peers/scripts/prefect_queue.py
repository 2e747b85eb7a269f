"""Prefect: COUNT background tasks sent with `delay`, until the last result is back.

Worker and client are processes of their own; a worker runs `prefect task serve` with its defaults.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from prefect import task


@task(persist_result=True)
def bill(order: dict[str, Any]) -> dict[str, Any]:
    return {"id": order["id"], "total": sum(i["count"] * i["price"] for i in order["items"])}


def main() -> None:
    count, order = int(sys.argv[1]), json.loads(sys.argv[2])
    bill.delay(order).wait(timeout=60)
    started = time.perf_counter()
    futures = [bill.delay(order) for _ in range(count)]
    for future in futures:
        future.wait(timeout=120)
        assert future.state.is_completed(), future.state
    sys.stdout.write(json.dumps({"rate": count / (time.perf_counter() - started)}) + "\n")


if __name__ == "__main__":
    main()
