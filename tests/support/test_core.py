"""`--core` leaves out what `tests/README.md` says, and goes along with other options."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import CHECKOUT

pytestmark = [pytest.mark.full, pytest.mark.slow, pytest.mark.timeout(60)]

ASKED = ["tests/faults/test_stop.py", "tests/triggers/kafka/test_seek.py", "tests/domain"]
"""Faults, tests with and without a broker, and quick ones."""


def collected(*options: str) -> set[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *options, *ASKED, __file__]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}


def test_core_leaves_out_faults_brokers_and_what_is_marked_slow() -> None:
    every, core = collected(), collected("--core")
    assert "tests/domain/test_retry.py" in core
    assert core == collected("-m", "core")
    assert every - core == {*ASKED[:2], "tests/support/test_core.py"}


def test_core_goes_along_with_a_choice_of_tests() -> None:
    assert collected("--core", "-k", "test_retry") == {"tests/domain/test_retry.py"}
