"""Ways to people: what `notify(…)` and `notify.slack`, `email` and `webhook` make and send by.

Each message goes out under a key that is the same however often it is sent: `Idempotency-Key` over
HTTP, `Message-ID` in mail. Not here: when a message is sent again (`service/alerts`, or the step).
"""

from __future__ import annotations

import hashlib
from asyncio import get_running_loop, to_thread
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import orjson

from turnout.service.client import Unavailable, post
from turnout.service.domain.alerts import Message
from turnout.service.domain.errors import SetupError
from turnout.service.domain.run import Fail
from turnout.service.governance.secrets import Secret

from .mail import Mail, MailConnection, check_server, send_mail

_WORTH_A_RETRY = frozenset({408, 425, 429})
_mail_threads = ThreadPoolExecutor(4, thread_name_prefix="turnout-mail")
"""Threads of its own: a mail server that is slow must not hold those that others wait for."""
_SLACK = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


@dataclass(frozen=True, slots=True)
class Chat:
    """The incoming webhook of a chat service that takes `{"text": …}`."""

    url: str | Secret

    @property
    def name(self) -> str:
        """`chat:` and the secret, or the host."""
        return f"chat:{_place(self.url)}"

    async def send(self, message: Message) -> None:
        """Post the text."""
        await send_chat(self.url, message.text, message.key)


@dataclass(frozen=True, slots=True)
class Slack:
    """An incoming webhook of Slack, or of what understands the same."""

    url: str | Secret

    @property
    def name(self) -> str:
        """`slack:` and the secret, or the host."""
        return f"slack:{_place(self.url)}"

    async def send(self, message: Message) -> None:
        """Post the text."""
        await send_slack(self.url, message.text, message.key)


@dataclass(frozen=True, slots=True)
class Webhook:
    """An address that takes the whole message as JSON."""

    url: str | Secret
    token: Secret | None = None

    @property
    def name(self) -> str:
        """`webhook:` and the secret, or the host."""
        return f"webhook:{_place(self.url)}"

    async def send(self, message: Message) -> None:
        """Post the document."""
        await send_webhook(self.url, self.token, message.document, message.key)


@dataclass(frozen=True, slots=True)
class Email:
    """Mail to people."""

    to: tuple[str, ...]
    server: str | Secret
    sender: str | None = None

    @property
    def name(self) -> str:
        """`email:` and the addresses."""
        return f"email:{','.join(self.to)}"

    async def send(self, message: Message) -> None:
        """Send a mail of the title and the text."""
        mail = Mail(self.to, message.title, message.text, message.key, self.sender)
        await send_email(self.server, mail)


# ---------------------------------------------------------------- one try of each


async def send_chat(url: str | Secret, text: str, key: str) -> None:
    """Post `{"text": …}`; raises `Unavailable` if it may work later, else `Fail`."""
    await _post(url, {"text": text}, key)


async def send_slack(url: str | Secret, text: str, key: str) -> None:
    """Post a text to Slack, as it is written: no character of it is markup."""
    await _post(url, {"text": text.translate(_SLACK)}, key)


async def send_webhook(
    url: str | Secret, token: Secret | None, document: Mapping[str, Any], key: str
) -> None:
    """Post a document, with a bearer token if there is one."""
    more = {} if token is None else {"Authorization": f"Bearer {token.reveal()}"}
    await _post(url, document, key, more)


async def send_email(server: str | Secret, mail: Mail) -> None:
    """Send a mail; raises `Unavailable` if the server does not take it."""
    address = server.reveal() if isinstance(server, Secret) else server
    connection = MailConnection()
    try:
        await get_running_loop().run_in_executor(
            _mail_threads, send_mail, address, mail, connection
        )
    finally:
        connection.end()  # a mail that is given up holds no thread


async def _post(
    url: str | Secret, document: Any, key: str, more: Mapping[str, str] | None = None
) -> None:
    await to_thread(import_module, "httpx")  # at the first call it takes a while
    headers = {"Content-Type": "application/json", "Idempotency-Key": key, **(more or {})}
    address = url.reveal() if isinstance(url, Secret) else url
    answer = await post(address, orjson.dumps(document), headers=headers)
    said = f"the receiver of the notification answered {answer.status}"
    if answer.status >= 500 or answer.status in _WORTH_A_RETRY:
        raise Unavailable(said, retry_after=answer.retry_after)
    if not 200 <= answer.status < 300:
        raise Fail(said)


# ---------------------------------------------------------------- what an author may write


def chat(url: str | Secret) -> Chat:
    """Make the channel `notify(url)`."""
    return Chat(_url("notify", url))


def slack(url: str | Secret) -> Slack:
    """Make the channel `notify.slack(url)`."""
    return Slack(_url("notify.slack", url))


def webhook(url: str | Secret, *, token: Secret | None = None) -> Webhook:
    """Make the channel `notify.webhook(url)`."""
    return Webhook(_url("notify.webhook", url), _token(token))


def email(
    to: str | Sequence[str], *, server: str | Secret | None = None, sender: str | None = None
) -> Email:
    """Make the channel `notify.email(to)`."""
    if sender is not None:
        addresses(sender)
    return Email(addresses(to), server_of(server), sender)


def addresses(to: Any) -> tuple[str, ...]:
    """Return the addresses of a mail; raises `SetupError` for what is none."""
    listed = (to,) if isinstance(to, str) else tuple(to)
    for each in listed:
        name, at, domain = str(each).partition("@")
        if not (name and at and domain) or not str(each).isprintable() or " " in each:
            raise SetupError(f'notify.email({to!r}): write an address, "ops@example.com"')
    if not listed:
        raise SetupError("notify.email(()): write whom it goes to")
    return listed


def server_of(server: Any) -> str | Secret:
    """Return the mail server: that of the secret `SMTP_URL` unless another one is given."""
    if server is None:
        return Secret("SMTP_URL")
    if not isinstance(server, Secret):
        check_server(server)
    chosen: str | Secret = server
    return chosen


def _url(what: str, url: Any) -> str | Secret:
    if isinstance(url, Secret):
        return url
    if isinstance(url, str) and _is_address(url):
        return url
    raise SetupError(
        f'{what}({url!r:.80}): write an address, "https://example.com/path", or the secret that '
        'holds it, secret("CHAT_URL")'
    )


def _is_address(url: str) -> bool:
    if not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets around what is no address, or a port that is no number
        return False


def _token(token: Any) -> Secret | None:
    if token is None or isinstance(token, Secret):
        return token
    raise SetupError('notify.webhook(token=…): write the secret, token=secret("ALERT_TOKEN")')


def _place(url: str | Secret) -> str:
    """Return what tells an address from others, and shows nothing of it but the host."""
    if isinstance(url, Secret):
        return url.name
    return f"{urlsplit(url).hostname}#{hashlib.sha256(url.encode()).hexdigest()[:8]}"
