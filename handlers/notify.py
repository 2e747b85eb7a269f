"""`notify`: text to people, as a step of a run, or as the channel of alerts about a flow.

With a text it is a step: sent until it is recorded, never after. One that was cut off in between
may arrive twice, which its key lets a receiver see. Without a text it is a channel, for
`@flow(on_failure=…)`. Not here: one try (`actions/channels`), attachments, and the message formats
of single services.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import fields
from typing import Any, Generic, ParamSpec, overload

from turnout.service.domain.alerts import Channel
from turnout.service.domain.retry import retry
from turnout.service.governance.secrets import Secret
from turnout.service.steps.context import current

from .actions import channels
from .actions.mail import Mail
from .task import AsyncTask, copy_metadata, task

P = ParamSpec("P")
C = ParamSpec("C")


class Sender(AsyncTask[P, None], Generic[P, C]):
    """A task that sends a text; called without one it makes a channel for `on_failure=`."""

    channel: Callable[..., Channel]

    @overload
    def __call__(self, /, *args: C.args, **kwargs: C.kwargs) -> Channel: ...
    @overload
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, None]: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Make a step of the run around it, or a channel."""
        if len(args) < 2 and "text" not in kwargs:
            return self.channel(*args, **kwargs)
        return super().__call__(*args, **kwargs)


def _sends(made: AsyncTask[P, None], channel: Callable[C, Channel]) -> Sender[P, C]:
    sender: Sender[P, C] = _as(Sender, made, channel)
    return sender


def _as(kind: type[Any], made: AsyncTask[P, None], channel: Callable[..., Channel]) -> Any:
    """Return a task as one that makes channels too."""
    sender = kind(**{each.name: getattr(made, each.name) for each in fields(made)})
    copy_metadata(sender, made.function)
    vars(sender)["channel"] = channel
    return sender


_RETRY = retry(3, delay="1s", max="30s")


@task(name="notify", retry=_RETRY, timeout="1m")
async def _chat(url: str | Secret, text: str) -> None:
    """Post `{"text": …}` to `url`, a recorded step; returns when the receiver has answered 2xx.

    For the incoming webhook of a chat service. It is sent until it is recorded, never after, with
    an `Idempotency-Key` header that is the same each time. Without a text, `notify(url)` is a
    channel: `@flow(on_failure=notify(url))` has people told of failures.

    * `url`: the address, or the secret that holds it
    * `text`: what people read

    No answer, a 5xx and 408, 425, 429 are tried again (three times, a minute each), not before the
    answer's `Retry-After`. Raises `Fail` for any other answer, since sending the same would be
    answered the same, and `SetupError` for what is no address.

    ```python
    from turnout import cron, flow, notify, secret

    chat = secret("CHAT_URL")


    @flow(on=cron("0 9 * * 1-5", tz="Europe/Berlin"), on_failure=notify(chat))
    async def standup() -> None:
        await notify(chat, "Stand-up in ten minutes.")
    ```
    """
    await channels.send_chat(url, text, current().key("notify"))


@task(name="notify.slack", retry=_RETRY, timeout="1m")
async def _slack(url: str | Secret, text: str) -> None:
    """Post a text to an incoming webhook of Slack; `notify.slack(url)` alone is a channel.

    A recorded step as `notify` is. The text arrives as it is: no character of it is markup.

    * `url`: the address of the incoming webhook, or the secret that holds it
    * `text`: what people read

    Raises what `notify` raises.

    ```python
    from turnout import cron, flow, notify, secret


    @flow(on=cron("0 2 * * *"), retry=2, on_failure=notify.slack(secret("CHAT_URL")))
    async def nightly() -> None: ...
    ```
    """
    await channels.send_slack(url, text, current().key("notify"))


@task(name="notify.webhook", retry=_RETRY, timeout="1m")
async def _webhook(url: str | Secret, text: str, *, token: Secret | None = None) -> None:
    """Post JSON to any address; `notify.webhook(url)` alone is a channel.

    A recorded step as `notify` is, of `{"text": …}`. As a channel it gets the whole message: what
    is told (`news`), `flow`, `rule`, `cause`, `count`, `run`, `owner`, `tags`, and its `text`.

    * `url`: the address, or the secret that holds it
    * `text`: what it says
    * `token`: the secret that is sent as a bearer token

    Raises what `notify` raises.

    ```python
    from turnout import every, flow, notify, secret

    pager = notify.webhook("https://pager.example/alerts", token=secret("PAGER_TOKEN"))


    @flow(on=every("15m"), expect_every="1h", on_failure=pager)
    async def sync() -> None: ...
    ```
    """
    await channels.send_webhook(url, token, {"text": text}, current().key("notify"))


@task(name="notify.email", retry=_RETRY, timeout="1m")
async def _email(
    to: str | Sequence[str],
    text: str,
    *,
    subject: str | None = None,
    server: str | Secret | None = None,
    sender: str | None = None,
) -> None:
    """Send a mail of plain text; `notify.email(to)` alone is a channel.

    A recorded step as `notify` is; its `Message-ID` is the same each time. The server is that of
    the secret `SMTP_URL`: `smtp://USER:PASSWORD@HOST:587` turns TLS on where the server offers it
    and sends no password without it, `smtps://` is TLS from the start.

    * `to`: an address, or a list of them
    * `text`: what it says
    * `subject`: its subject; by default the first line of the text
    * `server`: the mail server, or another secret that holds it
    * `sender`: whom it comes from; by default the login, or `turnout@` the host of the server

    Raises `SetupError` for what is no address, and `Unavailable` when the server does not take it
    after three more tries.

    ```python
    from turnout import cron, flow, notify


    @flow(on=cron("0 7 * * 1"), on_failure=notify.email("ops@example.com"))
    async def weekly() -> None:
        await notify.email(["team@example.com"], "All is well.", subject="The week")
    ```
    """
    title = (text.strip().splitlines() or [""])[0] if subject is None else subject
    mail = Mail(channels.addresses(to), title, text, current().key("notify"), sender)
    await channels.send_email(channels.server_of(server), mail)


class Notify(Sender[P, C]):
    """`notify(url, text)`, and the same by other ways."""

    slack = _sends(_slack, channels.slack)
    email = _sends(_email, channels.email)
    webhook = _sends(_webhook, channels.webhook)


def _notify(made: AsyncTask[P, None], channel: Callable[C, Channel]) -> Notify[P, C]:
    made_notify: Notify[P, C] = _as(Notify, made, channel)
    return made_notify


notify = _notify(_chat, channels.chat)
