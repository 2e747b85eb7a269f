"""A secret is read when asked for, prints nothing, and its value is known in every form."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from urllib.parse import quote, quote_plus, urlencode

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.inside import forget_secrets
from turnout import (
    secret,
)
from turnout.service.domain.errors import SetupError
from turnout.service.governance import secrets

from .revealing import clean, value

__all__ = ["clean", "value"]  # fixtures


def test_a_reference_prints_nothing_and_is_equal_by_name(value: str) -> None:
    reference = secret("ORDERS_HMAC")
    assert reference.reveal() == value
    assert value not in f"{reference} {reference!r} {reference!s}"
    assert reference == secret("ORDERS_HMAC") and len({reference, secret("ORDERS_HMAC")}) == 1
    assert reference != secret("OTHER")


def test_a_value_is_read_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = secret("LATE")
    assert not reference.is_declared()
    with pytest.raises(SetupError, match=r"'LATE' has no value; set the environment variable LATE"):
        reference.reveal()
    monkeypatch.setenv("LATE", "first value")
    assert reference.is_declared()
    assert reference.reveal() == "first value"
    monkeypatch.setenv("LATE", "rotated value")
    assert reference.reveal() == "rotated value"
    assert secrets.find_live(b"the first value") == "LATE"


def test_files_only_their_owner_may_read(tmp_path: Path) -> None:
    secrets.configure(tmp_path)
    file = tmp_path / "FROM_FILE"
    file.write_text("from a file\n")
    file.chmod(0o600)
    assert secret("FROM_FILE").reveal() == "from a file"
    for mode in (0o640, 0o604):
        file.chmod(mode)
        with pytest.raises(SetupError, match=f"chmod 600 {file}"):
            secret("FROM_FILE").reveal()
    with pytest.raises(SetupError, match=f"write it to {tmp_path / 'ABSENT'}"):
        secret("ABSENT").reveal()


def test_short_values_and_odd_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "abcd")
    with pytest.raises(SetupError, match="shorter than 5 characters"):
        secret("SHORT").reveal()
    for name in ("../escape", "", "a/b", "9x"):
        with pytest.raises(SetupError, match="letters, digits"):
            secret(name)
    assert os.environ["SHORT"] == "abcd"


def test_the_check_sees_both_forms_of_a_value(value: str) -> None:
    secret("ORDERS_HMAC").reveal()
    assert secrets.find_live(orjson.dumps({"a": value})) == "ORDERS_HMAC"
    assert secrets.find_live(value.encode()) == "ORDERS_HMAC"
    assert secrets.find_live(b"nothing here") is None


@given(
    value=st.text(min_size=8, max_size=40).filter(lambda text: text.isprintable()),
    before=st.binary(max_size=5),
    after=st.binary(max_size=5),
)
def test_the_encodings_of_a_value_are_seen_wherever_it_stands(
    value: str, before: bytes, after: bytes
) -> None:
    raw = value.encode()
    around = before + raw + after
    texts = [
        base64.b64encode(around).decode(),
        base64.urlsafe_b64encode(around).decode().rstrip("="),
        around.hex(),
        around.hex().upper(),
        quote(around),
        quote(around, safe=""),
        quote_plus(around),
        urlencode({"token": value}),
        str(around),
    ]
    with pytest.MonkeyPatch.context() as patch:
        forget_secrets(patch)
        secrets.remember({value: "TOKEN"})
        for text in texts:
            assert secrets.find_live(text.encode()) == "TOKEN", text
            assert secrets.MASK in secrets.mask(text)


def test_a_short_value_is_not_looked_for_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "short")
    secret("SHORT").reveal()
    assert secrets.find_live(b"a short one") == "SHORT"
    assert secrets.find_live(base64.b64encode(b"short")) is None


def test_a_value_that_begins_with_another_is_masked_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("ONE", "hunter2"), ("TWO", "hunter2-and-more")):
        monkeypatch.setenv(name, text)
        secret(name).reveal()
    assert secrets.mask("with hunter2-and-more.") == f"with {secrets.MASK}."


def test_each_line_of_a_value_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["-----BEGIN PRIVATE KEY-----", "MIGHAgEAMBMGByqGSM49", "AgEGCCqGSM49AwEHBG0wawIBA"]
    monkeypatch.setenv("KEY", "\n".join(lines))
    secret("KEY").reveal()
    masked = [secrets.mask(line) for line in lines]
    assert masked == [lines[0], secrets.MASK, secrets.MASK]
