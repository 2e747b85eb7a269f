"""The action `notify`: a line of text to people, through the incoming webhook of a chat service.

A notification is a step: sent until it is recorded, never after. One that was cut off in between
may arrive twice, which `Idempotency-Key` lets a receiver see. Not here: mail, attachments, the
message formats of single services.
"""

from __future__ import annotations

import orjson

from turnout.service.client import Unavailable, post
from turnout.service.domain.retry import retry
from turnout.service.domain.run import Fail
from turnout.service.governance.secrets import Secret
from turnout.service.steps.context import current

from .task import task

_WORTH_A_RETRY = frozenset({408, 425, 429})


@task(retry=retry(3, delay="1s", max="30s"), timeout="1m")
async def notify(url: str | Secret, text: str) -> None:
    """Post `{"text": …}` to `url`, a recorded step; returns when the receiver has answered 2xx.

    For the incoming webhook of a chat service. It is sent until it is recorded, never after, with
    an `Idempotency-Key` header that is the same each time.

    * `url`: the address, or the secret that holds it
    * `text`: what people read

    No answer, a 5xx and 408, 425, 429 are tried again (three times, a minute each). Raises `Fail`
    for any other answer, since sending the same would be answered the same.

    ```python
    from turnout import cron, flow, notify, secret


    @flow(on=cron("0 9 * * 1-5", tz="Europe/Berlin"))
    async def standup() -> None:
        await notify(secret("CHAT_URL"), "Stand-up in ten minutes.")
    ```
    """
    headers = {"Content-Type": "application/json", "Idempotency-Key": current().key("notify")}
    address = url.reveal() if isinstance(url, Secret) else url
    status = await post(address, orjson.dumps({"text": text}), headers=headers)
    if status >= 500 or status in _WORTH_A_RETRY:
        raise Unavailable(f"the receiver of the notification answered {status}")
    if not 200 <= status < 300:
        raise Fail(f"the receiver of the notification answered {status}")
