"""`turnout new`: what it makes is checked, tested and served as it is."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.boundaries import library_of
from tests.support.program import environment
from turnout.service.cli import cli, new
from turnout.service.cli.examples import Example, examples
from turnout.service.domain.errors import SetupError
from turnout.service.project.check import Findings, check
from turnout.triggers.files import FilesTrigger

TEMPLATES = Path(new.__file__).parents[2] / "handlers" / "templates"
EXAMPLES = examples()
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


def missing(example: Example) -> bool:
    """Whether a package that an example needs is not installed here."""
    try:
        for need in example.needs:
            version(re.split(r"[\[<>=]", need)[0])
    except PackageNotFoundError:
        return True
    return False


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_project_with_an_example_has_what_belongs_to_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = EXAMPLES[name]
    done = typed(tmp_path, monkeypatch, "orders", "--example", name)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "orders"
    needs = {"requirements.txt"} if example.needs else set()
    beside = {each.name for each in example.beside if not each.name.startswith("_")}
    files = {each.name for each in example.beside} - beside | {f"{name}.py", f"test_{name}.py"}
    assert set(contents(folder)) == PROJECT | needs | files
    assert {each.name for each in (folder / "elsewhere").glob("*")} == beside
    if needs:
        assert (folder / "requirements.txt").read_text().split("\n")[:-1] == sorted(example.needs)
        assert "\n  python -m pip install --requirement requirements.txt\n" in done.output
    if missing(example):
        return
    monkeypatch.chdir(folder)
    is_good(check([folder]))


def is_good(found: Findings) -> None:
    """No problem was found in a project, in its own folder; those that it watches are there."""
    assert found.problems == ()
    assert len(found.flows) > 2
    triggers = [trigger for flow in found.flows for trigger in flow.triggers]
    watched = [each.pattern.root for each in triggers if isinstance(each, FilesTrigger)]
    assert [each for each in watched if not Path(each).is_dir()] == []


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_project_with_everything_passes_its_tests_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = [name for name, example in EXAMPLES.items() if not missing(example)]
    assert len(ready) >= 10
    words = [word for name in ready for word in ("--example", name)]
    done = typed(tmp_path, monkeypatch, "orders", "--kafka", *words)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "orders"
    settings = tomllib.loads((folder / "turnout.toml").read_text())
    assert settings["kafka_bootstrap_servers"] == "127.0.0.1:9092"
    assert len(list(folder.glob("test_*.py"))) == 2 + len(ready)
    assert check([folder]).problems == ()
    passes_its_tests(folder)


def passes_its_tests(folder: Path, env: Mapping[str, str] | None = None, behind: str = "") -> None:
    """Run the tests of a project as its page says, with the packages of a folder behind ours."""
    code = "import sys, unittest\nsys.path += ['.', *sys.argv.pop().split()]\nunittest.main(None)"
    tests = subprocess.run(
        [sys.executable, "-c", code, "discover", behind],
        cwd=folder, env=environment(env or {}), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert tests.returncode == 0, tests.stderr
    assert "\nOK" in tests.stderr


ELSEWHERE = {
    "aws_machines": "clients",
    "aws_secrets": "clients",
    "backup": "clients",
    "automl": "h2o",
    "leaderboard": "autogluon",
    "celery_orders": "celery",
    "kubernetes_scale": "clients",
    "notice": "browser",
    "on_call": "langchain",
    "prices": "browser",
    "readings": "data",
    "sftp_drop": "clients",
    "slack_mentions": "clients",
    "sqs_orders": "clients",
    "stripe_payments": "clients",
}
"""By example that needs what the tests do not have: the environment that has it."""


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_example_passes_its_tests_where_its_packages_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = library_of(ELSEWHERE[name])
    assert typed(tmp_path, monkeypatch, "orders", "--example", name).exit_code == 0
    monkeypatch.syspath_prepend(library)
    sys.path.append(sys.path.pop(0))
    monkeypatch.chdir(tmp_path / "orders")
    is_good(check([tmp_path / "orders"]))
    passes_its_tests(tmp_path / "orders", behind=str(library))


def test_every_example_is_tested_somewhere_and_says_what_it_needs() -> None:
    for name, example in EXAMPLES.items():
        assert example.test.is_file(), f"handlers/examples/tests/test_{name}.py is missing"
        assert name in ELSEWHERE or not missing(example), f"{name}: add its environment above"
        modules = imported(example.file.read_text("utf-8"))
        for helper in example.beside:
            stem = helper.name.removesuffix(".py")
            if stem in modules:
                modules = modules - {stem} | imported(helper.read_text("utf-8"))
        needed = {re.split(r"[\[<>=]", need)[0] for need in example.needs}
        assert {PACKAGES.get(each, each) for each in modules} - CORE == needed, name


def test_every_example_names_the_settings_that_it_takes() -> None:
    for example in EXAMPLES.values():
        for file in (example.file, *example.beside):
            source = file.read_text("utf-8")
            taken = re.findall(r"""(?:secret\(|environ\[)["'](\w+)["']""", source)
            told = ast.get_docstring(ast.parse(source)) or ""
            assert [each for each in taken if f"`{each}`" not in told] == [], file.name


def test_an_example_has_sixty_lines_at_most() -> None:
    """Of code: without blank lines, comments and docstrings."""
    for example in EXAMPLES.values():
        for file in (example.file, *example.beside):
            source = file.read_text("utf-8")
            told = {
                number
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                for number in range(node.lineno, (node.end_lineno or 0) + 1)
            }
            code = [
                line
                for number, line in enumerate(source.splitlines(), 1)
                if number not in told and line.strip() and not line.lstrip().startswith("#")
            ]
            assert len(code) <= 60, file.name


PACKAGES = {
    "autogluon": "autogluon.tabular",
    "langchain_openai": "langchain-openai",
    "langchain_core": "langchain",
    "slack_sdk": "slack-sdk",
}
"""By module: the package that has it, where that is called otherwise."""

CORE = {"anyio", "httpx", "pydantic", "turnout", *sys.stdlib_module_names}


def imported(source: str) -> set[str]:
    """Return the top modules that a source imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {each.name.split(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    return found


def test_every_file_of_the_examples_belongs_to_one() -> None:
    belong = {
        each.name for example in EXAMPLES.values() for each in (example.file, *example.beside)
    }
    belong |= {example.test.name for example in EXAMPLES.values()}
    folder = TEMPLATES.parent / "examples"
    there = {path.name for path in folder.rglob("*.py") if "__pycache__" not in path.parts}
    assert there == belong


def test_the_examples_are_listed_where_none_or_a_wrong_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["--example"], ["orders", "--example"], ["--example", "--kafka", "orders"]):
        listed = typed(tmp_path, monkeypatch, *words)
        assert listed.exit_code == 0
        for name, example in EXAMPLES.items():
            assert re.search(rf"^  {name} +{re.escape(example.does)}$", listed.output, re.MULTILINE)
    wrong = typed(tmp_path, monkeypatch, "orders", "--example", "trip", "--example", "tripp")
    assert wrong.exit_code == 2
    assert "'tripp' is none of the examples above" in wrong.stderr and "  trip " in wrong.stderr
    assert list(tmp_path.iterdir()) == []


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
