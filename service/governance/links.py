"""Signed links: whoever holds one can answer one approval until the link expires.

Its token holds the run, the step, when the step asked and the expiry, signed (HMAC-SHA256) with a
key that only this data folder has. That a link works once is the journal's promise. Not here: the
page behind the link (`http.approvals`).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson

from turnout.service.domain.errors import Expired, NotFound, SetupError
from turnout.service.domain.units import EPOCH, MICROSECOND

from .ownership import refuse_shared, rights_of_others

KEY_FILE = "approval-key"
KEY_BYTES = 32
PATH = "/approvals"

_SIGNATURE_BYTES = 32


@dataclass(frozen=True, slots=True)
class Question:
    """The approval a link is for; `digest` identifies the link once it was used.

    A step may ask again, after a retry: the link is for the question of `asked_at` (None in links
    of earlier versions).
    """

    run_id: str
    key: str
    until: datetime
    digest: bytes
    asked_at: datetime | None


class Links:
    """Makes and verifies the links of one data folder."""

    def __init__(self, secret: bytes, base_url: str) -> None:
        self._secret = secret
        self._base_url = base_url.rstrip("/")

    @property
    def base_url(self) -> str:
        """The address under which people and senders reach the service."""
        return self._base_url

    def address(self, run_id: str, key: str, until: datetime, asked_at: datetime) -> str:
        """Return the link for one approval."""
        asked = (asked_at - EPOCH) // MICROSECOND
        text = orjson.dumps([run_id, key, int(until.timestamp()), asked])
        return f"{self._base_url}{PATH}/{_encode(text + self._sign(text))}"

    def read(self, token: str, *, now: datetime) -> Question:
        """Return the approval of a link; raises `NotFound` for a forged one, `Expired`."""
        raw = _decode(token)
        text, signature = raw[:-_SIGNATURE_BYTES], raw[-_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._sign(text)):
            raise NotFound("this link is not one of ours; ask for a new one")
        run_id, key, until, *asked = orjson.loads(text)
        ends = datetime.fromtimestamp(until, UTC)
        if now >= ends:
            raise Expired("this link has expired; ask for a new one")
        digest = hashlib.blake2b(raw, digest_size=16).digest()
        asked_at = EPOCH + asked[0] * MICROSECOND if asked else None
        return Question(run_id, key, ends, digest, asked_at)

    def _sign(self, text: bytes) -> bytes:
        return hmac.digest(self._secret, b"approval\n" + text, hashlib.sha256)


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def _decode(token: str) -> bytes:
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
    except (ValueError, UnicodeEncodeError):
        return b""
    return raw if _encode(raw) == token else b""  # only the canonical spelling


def load_or_make_key(data: Path) -> bytes:
    """Return the signing key of a data folder, made on first use (0600).

    Raises `SetupError` for a key that others can read or write, or of another length.
    """
    path = data / KEY_FILE
    try:
        if not path.exists():
            _make(data, path)
        refuse_shared(path, "the key of approval links")
        if rights_of_others(path):
            raise SetupError(f"others can read this key; run: chmod 600 {path}", file=str(path))
        key = bytes.fromhex(path.read_text("ascii").strip())
    except (OSError, ValueError) as error:
        raise SetupError(f"cannot use the key of approval links: {error}", file=str(path)) from None
    if len(key) != KEY_BYTES:
        raise SetupError(
            f"the key of approval links has {len(key)} bytes and {KEY_BYTES} are needed, in hex; "
            f"remove the file and a new one is made (links already sent stop working), or write "
            f"one: openssl rand -hex {KEY_BYTES} > {path}",
            file=str(path),
        )
    return key


def _make(data: Path, path: Path) -> None:
    """Write a new key atomically; of two first starts one wins, and both read that key."""
    handle, draft = tempfile.mkstemp(prefix=f".{KEY_FILE}-", dir=data)  # mode 0600
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(KEY_BYTES) + "\n")
        file.flush()
        os.fsync(handle)
    with contextlib.suppress(FileExistsError):
        os.link(draft, path)
    Path(draft).unlink()
