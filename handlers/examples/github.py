"""Take webhooks of GitHub: verify and validate each delivery, and say what happened.

Set `GITHUB_WEBHOOK_SECRET` to the secret of the webhook you made on GitHub, and give GitHub the
address `https://YOUR-HOST/hooks/github` with content type `application/json`. A delivery sent
twice starts no second run: GitHub's delivery id is the event's id.
"""

from pydantic import BaseModel

from turnout import Event, current, flow, secret, webhook

github = webhook("/github", verify="github", secret=secret("GITHUB_WEBHOOK_SECRET"))


class Account(BaseModel):
    """Who did it; of everything GitHub sends, only the fields in use are declared."""

    login: str


class Repository(BaseModel):
    """Where it happened."""

    full_name: str


class Delivery(BaseModel):
    """What deliveries of all kinds have in common."""

    action: str = ""
    sender: Account
    repository: Repository


class Push(Delivery):
    """A branch or tag was created, moved or deleted."""

    ref: str
    deleted: bool
    commits: list[dict[str, object]]


@flow(on=github)
def activity(delivery: Delivery, event: Event) -> str:
    """Return one line about a delivery of any kind."""
    kind = event.type.removeprefix("github.")
    what = f"{kind} {delivery.action}".strip()
    return f"{delivery.repository.full_name}: {what} by {delivery.sender.login}"


@flow(on=github, when=lambda event: event.type == "github.push")
def pushed(push: Push) -> dict[str, str | int]:
    """Return what a push changed; runs beside `activity`, for pushes only."""
    change = "deleted" if push.deleted else "pushed"
    current().log.info("ref.changed", ref=push.ref, change=change)
    return {"ref": push.ref, "change": change, "commits": len(push.commits)}
