"""One mail over SMTP, with the standard library; blocks, so it is called in a thread.

`smtps://` is TLS from the start; `smtp://` turns it on where the server offers it, and sends no
password without it. A server may take its time with each byte: whoever has waited long enough ends
the connection from outside.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from email.message import EmailMessage
from smtplib import SMTP, SMTP_SSL, SMTPException
from threading import Lock
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


class MailConnection:
    """The connection of one mail, which another thread may `end`, whatever is waited for."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._socket: socket.socket | None = None
        self._has_ended = False

    def opened(self, connected: socket.socket) -> None:
        """Note the socket; it is ended at once if nobody waits for it any more."""
        with self._lock:
            self._socket = connected.dup()  # TLS makes another one of `connected`
        if self._has_ended:
            self.end()

    def end(self) -> None:
        """Let whoever reads or writes go on, with an error."""
        with self._lock:
            self._has_ended = True
            if self._socket is not None:
                with suppress(OSError):  # it is closed
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Forget the socket."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


def send_mail(address: str, mail: Mail, connection: MailConnection) -> None:
    """Send a mail by the server at `address`; raises `Unavailable` if it does not take it."""
    server = check_server(address)
    host = server.hostname or ""
    try:
        with _connect(server, host, connection) as smtp:
            if server.username:
                smtp.login(unquote(server.username), unquote(server.password or ""))
            smtp.send_message(_written(mail, unquote(server.username or ""), host))
    except (SMTPException, OSError) as error:
        detail = str(error) or type(error).__name__
        raise Unavailable(f"the mail server {host} did not take it: {detail}") from None
    finally:
        connection.close()


def _connect(server: SplitResult, host: str, connection: MailConnection) -> SMTP:
    class Smtp(SMTP):
        def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
            # Before anything is read from it, a greeting included.
            connected: socket.socket = super()._get_socket(host, port, timeout)  # type: ignore[misc]
            connection.opened(connected)
            return connected

    class SmtpOverTls(SMTP_SSL, Smtp):
        """The socket is that of `Smtp`, before TLS begins."""

    port = server.port or _PORTS[server.scheme]
    if server.scheme == "smtps":
        trust = ssl.create_default_context()
        return SmtpOverTls(host, port, timeout=_TIMEOUT_SECONDS, context=trust)
    smtp = Smtp(host, port, timeout=_TIMEOUT_SECONDS)
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
