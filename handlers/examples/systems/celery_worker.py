"""The Celery worker that `celery_orders.py` hands work to: `celery -A celery_worker worker`.

`CELERY_URL` is the address of the Redis.
Celery delivers a task at least once: again after a worker was killed, and twice if who sent it was.
So the effect is stored under the task's id, which is the same each time.
"""

# /// script
# dependencies = ["celery[redis]>=5.6"]
# ///

import os
import sqlite3
from contextlib import closing
from typing import Any

from celery import Celery

url = os.environ["CELERY_URL"]
app = Celery("shop", broker=url, backend=url)
app.conf.update(task_acks_late=True, broker_connection_retry_on_startup=True)


@app.task(bind=True, name="shop.charge")
def charge(self: Any, order: dict[str, Any]) -> str:
    """Charge an order once, however often it is delivered."""
    key = self.request.id
    with closing(sqlite3.connect("shop.db")) as shop, shop:
        shop.execute("CREATE TABLE IF NOT EXISTS charges (key TEXT PRIMARY KEY, amount REAL)")
        shop.execute("INSERT OR IGNORE INTO charges VALUES (?, ?)", (key, order["amount"]))
    return f"receipt-{order['id']}"
