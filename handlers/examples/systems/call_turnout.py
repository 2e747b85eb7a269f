"""Start a flow from another system's code: one run, however often that system tries again.

It needs nothing but Python: copy it beside a DAG, a flow or a job. `HOOK_URL` is the address of
the webhook of `called.py`, `HOOK_SECRET` the secret that both sides know.
"""

import hashlib
import hmac
import json
import os
import urllib.request
from email.utils import formatdate
from typing import Any


def start_run(data: Any, key: str) -> str:
    """Send data under a key; returns the run. An `OSError` says that it is not accepted yet.

    The key and the data have to be the same each time: the key of other data is refused (409).
    """
    body = json.dumps(data).encode()
    event = hashlib.sha256(key.encode()).hexdigest()  # a signed id has no dots
    now = formatdate(usegmt=True)
    signed = f"{event}.{now}.".encode() + body
    headers = {
        "Content-Type": "application/json",
        "Idempotency-Key": event,
        "X-Timestamp": now,
        "X-Signature": hmac.digest(os.environ["HOOK_SECRET"].encode(), signed, "sha256").hex(),
    }
    request = urllib.request.Request(os.environ["HOOK_URL"], data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)["runs"][0])
