"""The API token: who has it may operate the service; from the settings or made on first start.

Only its owner can read the file, where the CLI of the same user finds it. Not here: users, roles
and tenants.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path
from typing import Protocol

from turnout.service.domain.errors import SetupError

from .ownership import refuse_shared, rights_of_others

TOKEN_FILE = "api-token"


class AccessSettings(Protocol):
    """The two settings that the token depends on, as in `settings.Settings`."""

    @property
    def data(self) -> Path:
        """The data folder."""

    @property
    def api_token(self) -> str | None:
        """The token the operator chose, or None."""


def load_or_make_token(settings: AccessSettings) -> str:
    """Return the API token: that of the settings, else that of `DATA/api-token`, made if missing.

    Raises `SetupError` for a weak token, and for a file that others may read.
    """
    if settings.api_token is not None:
        return _strong(settings.api_token, "TURNOUT_API_TOKEN")
    if (settings.data / TOKEN_FILE).exists():
        refuse_shared(settings.data / TOKEN_FILE, "the API token")
    known = stored_token(settings.data)
    if known is None:
        _make(settings.data)
        known = stored_token(settings.data)
        assert known is not None
    return known


def _make(data: Path) -> None:
    """Write a new token atomically; of two first starts one wins, and both read that token."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=".api-token-", dir=data)  # mode 0600
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(handle)
        with contextlib.suppress(FileExistsError):
            os.link(draft, data / TOKEN_FILE)
        Path(draft).unlink()
    except OSError as error:
        raise SetupError(
            f"cannot write the API token: {error.strerror}", file=str(data / TOKEN_FILE)
        ) from None


def stored_token(data: Path) -> str | None:
    """Return the token in `data/api-token`, None when there is none; raises `SetupError`."""
    path = data / TOKEN_FILE
    try:
        rights = rights_of_others(path)
        text = path.read_text("utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"cannot read the API token: {error}", file=str(path)) from None
    if rights:
        raise SetupError(f"others can read the API token; run: chmod 600 {path}", file=str(path))
    return _strong(text, str(path))


def is_token(offered: bytes, token: str) -> bool:
    """Compare in constant time; in bytes, because a header may hold any."""
    return hmac.compare_digest(offered, token.encode())


def _strong(token: str, origin: str) -> str:
    if len(token) < 16 or not token.isascii() or any(c.isspace() for c in token):
        raise SetupError(
            f"{origin}: an API token is 16 or more ASCII characters without spaces; "
            "make one with: openssl rand -hex 32"
        )
    return token
