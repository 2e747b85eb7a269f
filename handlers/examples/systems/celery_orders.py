"""Hand work to Celery and take the result back; while no worker runs, the run waits.

`CELERY_URL` is the address of the Redis. `celery_worker.py` is what the workers run; the service
does not need that code.
"""

# /// script
# dependencies = ["celery[redis]>=5.6"]
# ///

from functools import cache
from typing import Any

from celery import Celery

from turnout import Fail, Pending, current, flow, poll, retry, secret, task, webhook


@cache
def shop() -> Celery:
    """Return Celery's own client."""
    url = secret("CELERY_URL").reveal()
    return Celery("shop", broker=url, backend=url)


@task(retry=retry(10, delay="1s", max="1m"), timeout="30s")
def hand_off(order: dict[str, Any]) -> str:
    """Send the work under the step's key, the same for every try and after a crash."""
    key = current().key()
    shop().send_task("shop.charge", args=[order], task_id=key)
    return key


@task(retry=retry(10, delay="1s", max="1m"), timeout="30s")
def charged(task_id: str) -> str | Pending:
    """Look for the result; a worker that is down, or busy, has none yet."""
    found = shop().AsyncResult(task_id)
    if not found.ready():
        return Pending(found.state)
    if found.failed():
        raise Fail(f"Celery's task failed: {found.result!r}")
    return str(found.result)


@flow(on=webhook("/paid-orders", verify="none"))
async def bill(order: dict[str, Any]) -> str:
    """Have a worker charge the order, and return the receipt."""
    return await poll(charged, await hand_off.run(order), every="1s", timeout="12h")
