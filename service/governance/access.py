"""Who may operate the service: one bearer token, from the settings or made on first start.

The file is readable by its owner alone and is where the CLI of the same user finds it. Not here:
users, roles and tenants.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from turnout.service.errors import SetupError

TOKEN_FILE = "api-token"


def load_or_make_token(data: Path, api_token: str | None) -> str:
    """Return the API's token: `api_token`, else the one in `data/api-token`, made if missing.

    Raises `SetupError` for a token nobody should rely on: one that is too short, or a file others
    may read.
    """
    if api_token is not None:
        return _strong(api_token, "TURNOUT_API_TOKEN")
    if (known := stored_token(data)) is not None:
        return known
    path = data / TOKEN_FILE
    token = secrets.token_urlsafe(32)
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Exclusive: of two first starts one token wins, and the other start finds it.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return load_or_make_token(data, None)
    except OSError as error:
        raise SetupError(f"cannot write the API token: {error.strerror}", file=str(path)) from None
    with os.fdopen(handle, "w") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(handle)
    return token


def stored_token(data: Path) -> str | None:
    """Return the token in `data/api-token`, None when there is none; raises `SetupError`."""
    path = data / TOKEN_FILE
    try:
        mode = path.stat().st_mode
        text = path.read_text("utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"cannot read the API token: {error}", file=str(path)) from None
    if mode & 0o077:
        raise SetupError(f"others can read the API token; run: chmod 600 {path}", file=str(path))
    return _strong(text, str(path))


def is_token(offered: bytes, token: str) -> bool:
    """Compare in constant time, on bytes: a header may hold any."""
    return hmac.compare_digest(offered, token.encode())


def _strong(token: str, place: str) -> str:
    if len(token) < 16 or not token.isascii() or any(c.isspace() for c in token):
        raise SetupError(
            f"{place}: an API token is 16 or more ASCII characters without spaces; "
            "make one with: openssl rand -hex 32"
        )
    return token
