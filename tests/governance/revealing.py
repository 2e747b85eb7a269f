"""Secrets that tests reveal, and values they must not leave a run in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.inside import forget_secrets
from turnout.service.governance import secrets

VALUE = 'hush "hush" \\ über'


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    forget_secrets(monkeypatch)
    yield
    secrets.configure(None)


@pytest.fixture
def value(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ORDERS_HMAC", VALUE)
    return VALUE
