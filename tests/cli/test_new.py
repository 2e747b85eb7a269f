"""`turnout new`: what it makes is checked, tested and served as it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from turnout.service.cli import cli, new
from turnout.service.domain.errors import SetupError
from turnout.service.project.check import check

TEMPLATES = Path(new.__file__).parents[2] / "handlers" / "templates"
PROJECT = {".gitignore", "orders.service", "flows.py", "test_flows.py", "turnout.toml"}


def typed(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Result:
    monkeypatch.chdir(folder)
    return CliRunner().invoke(cli, ["new", *words], prog_name="turnout", catch_exceptions=True)


def contents(folder: Path) -> Mapping[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_a_project_has_two_flows_a_test_settings_a_unit_and_a_gitignore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = typed(tmp_path, monkeypatch, "orders")
    assert done.exit_code == 0, done.output
    made = contents(tmp_path / "orders")
    assert set(made) == PROJECT
    assert made["flows.py"] == (TEMPLATES / "project" / "flows.py").read_text()
    assert "turnout-data/" in made[".gitignore"]
    assert f"WorkingDirectory={tmp_path}/orders\n" in made["orders.service"]
    assert "@" not in made["orders.service"]
    assert tomllib.loads(made["turnout.toml"])["port"] == 8080
    found = check([tmp_path / "orders"])
    assert (found.problems, found.warnings) == ((), ())
    assert [flow.name for flow in found.flows] == ["order", "nightly"]
    for line in ("cd orders", "turnout check .", "python -m unittest", "turnout serve .", "curl "):
        assert f"\n  {line}" in done.output


@pytest.mark.slow
def test_systemd_accepts_the_unit_of_a_project_also_in_a_folder_with_a_blank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    (tmp_path / "my 100% work").mkdir()
    assert typed(tmp_path / "my 100% work", monkeypatch, "orders").exit_code == 0
    unit = tmp_path / "my 100% work" / "orders" / "orders.service"
    verdict = subprocess.run(
        [analyze, "verify", unit], capture_output=True, text=True, check=False, timeout=20
    )
    about_us = [line for line in verdict.stderr.splitlines() if "orders" in line]
    assert (verdict.returncode, about_us) == (0, [])


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_project_with_everything_is_checked_tested_and_served_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [word for name in new.EXAMPLES for word in ("--example", name)]
    done = typed(tmp_path, monkeypatch, "orders", "--kafka", *examples)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "orders"
    settings = tomllib.loads((folder / "turnout.toml").read_text())
    assert settings["kafka_bootstrap_servers"] == "127.0.0.1:9092"
    found = check([folder])
    assert (found.problems, found.warnings) == ((), ())
    assert len(list(folder.glob("test_*.py"))) == 2 + len(new.EXAMPLES)
    tests = subprocess.run(
        [sys.executable, "-m", "unittest"],
        cwd=folder, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert tests.returncode == 0, tests.stderr
    assert "\nOK" in tests.stderr


def test_nothing_is_overwritten_and_a_name_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "orders").mkdir()
    (tmp_path / "orders" / "flows.py").write_text("mine")
    refused = typed(tmp_path, monkeypatch, "orders")
    assert isinstance(refused.exception, SetupError)
    assert str(refused.exception) == (
        f"{tmp_path}/orders exists already, and nothing is overwritten; take another name"
    )
    assert contents(tmp_path / "orders") == {"flows.py": "mine"}
    wrong = typed(tmp_path, monkeypatch, "9 lives")
    assert "'9 lives' cannot name a project: use letters, digits, - and _" in wrong.output
    unknown = typed(tmp_path, monkeypatch, "orders", "--example", "everything")
    assert unknown.exit_code == 2 and "approval" in unknown.output
    (tmp_path / "afile").write_text("")
    nowhere = typed(tmp_path, monkeypatch, "afile/orders")
    assert str(nowhere.exception).startswith(f"cannot make {tmp_path}/afile/orders: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["afile", "orders"]


def test_an_empty_folder_and_one_that_is_missing_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "orders").mkdir()
    assert typed(tmp_path, monkeypatch, "orders").exit_code == 0
    assert typed(tmp_path, monkeypatch, "deep/down/orders").exit_code == 0
    assert set(contents(tmp_path / "deep" / "down" / "orders")) == PROJECT
