"""Secrets: references that print nothing, read late, and never kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.attempts import attempts
from turnout import current, flow, retry, secret, task
from turnout.service.errors import SetupError
from turnout.service.governance import secrets
from turnout.service.journal.records import Filter

VALUE = 'hush "hush" \\ über'


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    secrets.configure(None)
    secrets._live.clear()
    secrets._needles.clear()


@pytest.fixture
def value(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ORDERS_HMAC", VALUE)
    return VALUE


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


@flow
async def leaks() -> dict[str, str]:
    return {"token": secret("ORDERS_HMAC").reveal()}


@task
async def leaky_step() -> list[bytes]:
    return [secret("ORDERS_HMAC").reveal().encode()]


@flow
async def leaks_in_a_step() -> None:
    await leaky_step()


@task(retry=retry(1, delay="1ms"))
async def says_it() -> None:
    raise ValueError(f"refused {secret('ORDERS_HMAC').reveal()}")


@flow
async def says_it_aloud() -> None:
    current().log.info("token.used", token=secret("ORDERS_HMAC").reveal())
    current().log.info(f"plain {secret('ORDERS_HMAC').reveal()}", nested=[VALUE])
    await says_it()


async def test_a_result_with_a_live_value_fails_by_name(tmp_path: Path, value: str) -> None:
    async with attempts(tmp_path) as run:
        outcome = await run.first(leaks)
        assert outcome.error is not None and outcome.error.type == "not_kept"
        assert "holds the value of secret 'ORDERS_HMAC'" in outcome.error.message
        outcome = await run.first(leaks_in_a_step, id="e2")
        assert outcome.error is not None and "step 'leaky_step#1'" in outcome.error.message


async def test_no_value_reaches_the_journal_or_the_log(
    tmp_path: Path, value: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with attempts(tmp_path) as run:
        outcome = await run.first(says_it_aloud)
        assert outcome.error is not None
        assert outcome.error.message == f"refused {secrets.MASK}"
        stored = repr((outcome, await run.steps(), await run.journal.runs(Filter())))
        traceback = outcome.error.traceback or ""
    for text in (stored, traceback, (outcome.log or b"").decode(), capfd.readouterr().err):
        assert value not in text
        assert orjson.dumps(value).decode()[1:-1] not in text


def test_the_check_sees_both_forms_of_a_value(value: str) -> None:
    secret("ORDERS_HMAC").reveal()
    assert secrets.find_live(orjson.dumps({"a": value})) == "ORDERS_HMAC"
    assert secrets.find_live(value.encode()) == "ORDERS_HMAC"
    assert secrets.find_live(b"nothing here") is None
