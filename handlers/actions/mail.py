"""One mail over SMTP, with the standard library; blocks, so it is called in a thread.

`smtps://` is TLS from the start; `smtp://` turns it on where the server offers it, and sends no
password without it.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from dataclasses import dataclass
from email.message import EmailMessage
from smtplib import SMTP, SMTP_SSL, SMTPException
from urllib.parse import SplitResult, unquote, urlsplit

from turnout.service.client import Unavailable
from turnout.service.domain.errors import SetupError

_TIMEOUT_SECONDS = 25.0
_PORTS = {"smtp": 587, "smtps": 465}
_MOST_SUBJECT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail of plain text; without a sender it is the login, or `turnout@` the server's host."""

    to: tuple[str, ...]
    subject: str
    text: str
    key: str
    sender: str | None = None


def check_server(address: object) -> SplitResult:
    """Return the parts of a mail server's address; raises `SetupError`, which does not show it."""
    parts = urlsplit(address) if isinstance(address, str) else None
    with suppress(ValueError):  # a port that is no number
        if parts is not None and parts.scheme in _PORTS and parts.hostname and parts.port != 0:
            return parts
    raise SetupError(
        'the mail server is written "smtp://USER:PASSWORD@HOST:587" or "smtps://…:465", best in '
        "the secret SMTP_URL"
    )


def send_mail(address: str, mail: Mail) -> None:
    """Send a mail by the server at `address`; raises `Unavailable` if it does not take it."""
    server = check_server(address)
    host = server.hostname or ""
    try:
        with _connect(server, host) as smtp:
            if server.username:
                smtp.login(unquote(server.username), unquote(server.password or ""))
            smtp.send_message(_written(mail, unquote(server.username or ""), host))
    except (SMTPException, OSError) as error:
        detail = str(error) or type(error).__name__
        raise Unavailable(f"the mail server {host} did not take it: {detail}") from None


def _connect(server: SplitResult, host: str) -> SMTP:
    port = server.port or _PORTS[server.scheme]
    if server.scheme == "smtps":
        trust = ssl.create_default_context()
        return SMTP_SSL(host, port, timeout=_TIMEOUT_SECONDS, context=trust)
    smtp = SMTP(host, port, timeout=_TIMEOUT_SECONDS)
    try:
        smtp.ehlo_or_helo_if_needed()
        if smtp.has_extn("starttls"):
            smtp.starttls(context=ssl.create_default_context())
        elif server.username:
            raise Unavailable(
                f"the mail server {host} offers no TLS, and a password is not sent without it"
            )
    except BaseException:
        smtp.close()
        raise
    return smtp


def _written(mail: Mail, login: str, host: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = mail.sender or (login if "@" in login else f"turnout@{host}")
    message["To"] = ", ".join(mail.to)
    message["Subject"] = " ".join(mail.subject.split())[:_MOST_SUBJECT_CHARACTERS]
    message["Message-ID"] = f"<{mail.key}@turnout>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(mail.text)
    return message
