"""Celery: COUNT calls of one task sent to Redis, until the last result is back.

`BENCH_REDIS` names the Redis. Worker and client are processes of their own; a worker runs
`celery -A celery_queue worker`, prefork with a process per core, as its documentation has it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])
app.conf.broker_connection_retry_on_startup = True


@app.task
def bill(order: dict[str, Any]) -> dict[str, Any]:
    return {"id": order["id"], "total": sum(i["count"] * i["price"] for i in order["items"])}


def main() -> None:
    count, order = int(sys.argv[1]), json.loads(sys.argv[2])
    bill.delay(order).get(timeout=30)
    started = time.perf_counter()
    results = [bill.delay(order) for _ in range(count)]
    for result in results:
        result.get(timeout=60)
    sys.stdout.write(json.dumps({"rate": count / (time.perf_counter() - started)}) + "\n")


if __name__ == "__main__":
    sys.modules["celery_queue"] = sys.modules["__main__"]
    bill.name = "celery_queue.bill"
    main()
