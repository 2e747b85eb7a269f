"""The API token: made once, kept private, refused when it protects nothing."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from turnout.service.domain.errors import SetupError
from turnout.service.governance.tokens import is_token, load_or_make_token, stored_token


@dataclass(frozen=True)
class Chosen:
    data: Path
    api_token: str | None = None


def test_a_token_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    chosen = Chosen(tmp_path / "data")
    token = load_or_make_token(chosen)
    assert len(token) >= 32
    assert load_or_make_token(chosen) == token == stored_token(chosen.data)
    [file] = chosen.data.iterdir()
    assert (file.name, stat.S_IMODE(file.stat().st_mode)) == ("api-token", 0o600)


def test_the_operators_own_token_comes_first_and_leaves_no_file(tmp_path: Path) -> None:
    assert load_or_make_token(Chosen(tmp_path, "chosen-by-the-operator")) == (
        "chosen-by-the-operator"
    )
    assert not list(tmp_path.iterdir())


def test_first_starts_at_once_agree_on_one_token(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(load_or_make_token, [Chosen(tmp_path)] * 32))
    assert len(tokens) == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "token", ["", "short", "a token with spaces", "t\u00f6ken-of-enough-length"]
)
def test_a_weak_token_is_refused_without_being_repeated(tmp_path: Path, token: str) -> None:
    with pytest.raises(SetupError, match="16 or more") as caught:
        load_or_make_token(Chosen(tmp_path, token))
    assert not token or token not in str(caught.value)


def test_a_token_others_can_read_is_refused_with_the_fix(tmp_path: Path) -> None:
    load_or_make_token(Chosen(tmp_path))
    (tmp_path / "api-token").chmod(0o644)
    with pytest.raises(SetupError, match="chmod 600"):
        load_or_make_token(Chosen(tmp_path))


@pytest.mark.parametrize("offered", [b"", b"a-tokem", b"a-token-", b"\xff\xfe"])
def test_only_the_token_itself_is_the_token(offered: bytes) -> None:
    assert is_token(b"a-token", "a-token")
    assert not is_token(offered, "a-token")
