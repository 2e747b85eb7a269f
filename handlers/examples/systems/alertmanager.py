"""Act on alerts of Alertmanager: people are told only of those that last for ten minutes.

Let it post to `https://YOUR-HOST/hooks/alerts`, in `webhook_configs` with `send_resolved: true` and
the token `ALERTS_TOKEN` under `http_config: {authorization: {credentials: …}}`. `CHAT_URL` is where
people are told. It tells of an alert again and again, also in groups with others: labels and
beginning of an alert make one run of all that.
"""

from pydantic import BaseModel, Field

from turnout import emit, event, flow, notify, secret, wait_for, webhook

alerts = webhook("/alerts", verify="bearer", secret=secret("ALERTS_TOKEN"))
resolved = event("alert.resolved")


class Alert(BaseModel):
    """An alert; of everything Alertmanager sends, only the fields in use are declared."""

    status: str
    fingerprint: str
    began: str = Field(alias="startsAt")
    labels: dict[str, str]


class Message(BaseModel):
    """A group of alerts."""

    alerts: list[Alert]


@flow(on=alerts)
async def heard(message: Message) -> int:
    """Emit that each alert has begun, or is over, once."""
    for alert in message.alerts:
        once = f"{alert.fingerprint}/{alert.began}/{alert.status}"
        what = {"fingerprint": alert.fingerprint, "labels": alert.labels}  # the same each time
        await emit(f"alert.{alert.status}", what, id=once)
    return len(message.alerts)


class Firing(BaseModel):
    """An alert that has begun."""

    fingerprint: str
    labels: dict[str, str]


@flow(on=event("alert.firing"), awaits=[resolved])
async def outlast(alert: Firing) -> str:
    """Wait until an alert is over; tell people if that takes too long."""
    try:
        await wait_for(resolved, match={"fingerprint": alert.fingerprint}, timeout="10m")
    except TimeoutError:
        name = alert.labels.get("alertname", "an alert")
        await notify(secret("CHAT_URL"), f"{name} has lasted for ten minutes: {alert.labels}")
        return "told"
    return "over"
