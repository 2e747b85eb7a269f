"""Let code of another system start a flow: signed, and once, however often it tries again.

Their side is `call_turnout.py`: in a DAG, a flow, a job or a Celery task. Both sides know
`HOOK_SECRET`.
"""

from turnout import flow, hmac, secret, webhook

signed = hmac(
    "X-Signature",
    template="{id}.{timestamp}.{body}",
    timestamp_header="X-Timestamp",
    id_header="Idempotency-Key",
)


@flow(on=webhook("/billed", verify=signed, secret=secret("HOOK_SECRET")))
async def billed(bill: dict[str, str]) -> str:
    """Take note of a bill that was paid elsewhere."""
    return f"{bill['receipt']} is paid"
