"""The reference: an entry for every public name, whose example runs."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support import CHECKOUT
from turnout import _reference
from turnout._reference import Entry, Part
from turnout.service.cli import cli
from turnout.service.project.check import check
from turnout.service.project.loader import flows_of, load_file
from turnout.testing import Result, serve

ENTRIES = {(each.module, each.name): each for each in _reference.entries()}
IDS = [name for _, name in ENTRIES]
SECRETS = (
    "CHAT_URL",
    "SMTP_URL",
    "SHOP_TOKEN",
    "PAGER_TOKEN",
    "CRM_KEY",
    "CRM_HOOK",
    "SHOP_HOOK",
    "ORDERS_HOOK",
    "OPENAI_KEY",
    "PGPASSWORD",
)

pytestmark = pytest.mark.timeout(60)  # the first agent imports its framework, which takes seconds

RUNS: Mapping[str, tuple[str, Any, Any]] = {
    "budget": ("scale_up", {"service": "web"}, "web +2"),
    "BudgetSpent": ("restart", "web", "restarted web"),
    "artefact": ("report", "monday", 1),
    "by_input": ("convert", "USD", 90.0),
    "current": ("place", {"id": "7"}, "testing"),
    "dependency": ("sync", {"id": "7"}, "stored 7"),
    "emit": ("place", {"id": "7"}, None),
    "event": ("changed", None, "testing"),
    "every": ("poll", None, "polled"),
    "flow": ("disk", None, 12_000),
    "gather": ("total", ["a", "bcd"], 4),
    "limit": ("pack", {"customer": "acme"}, "acme"),
    "Overloaded": ("import_orders", ["1", "2"], 2),
    "patched": ("place", {"id": "7"}, "invoice-7"),
    "Pending": ("export", "7", "7.csv"),
    "poll": ("export", {"job": "7"}, "7.csv"),
    "PollTimeout": ("collect", "7", "not paid"),
    "rate_limit": ("greet", {"user": "ada"}, "Hello, ada!"),
    "Refused": ("synced", "acme", "synced acme"),
    "resource": ("count", None, 42),
    "retry": ("double", 4, 8),
    "Retry": ("place", {"id": "7"}, "paid"),
    "secret": ("changed", {"customer": "acme"}, 5),
    "Skip": ("reprice", {"amount": 2}, 4),
    "sleep": ("cart", {"customer": "ada"}, "reminded ada"),
    "task": ("bill", "a7", ["receipt-a7", "A7"]),
    "throttle": ("sync", {"id": "7"}, "7"),
    "unique": ("invoice", {"id": "7"}, "invoice-7"),
    "webhook": ("order", {"id": "7"}, "order 7"),
}
"""By name: a flow of its example, what it is run for, and what it returns."""


def mistakes(one: Entry) -> Iterator[str]:
    """Yield what an entry lacks."""
    if not one.promise.endswith((".", ":")) or not one.signature:
        yield "a promise and a signature"
    if one.example is None:
        yield "an example"
    if "Raise" not in one.text:
        yield "what it raises"
    for name in one.parameters:
        if name not in one.options:
            yield f"a list item for {name}"
    for member in one.members:
        if not member.text:
            yield f"what {member.name} is"


@pytest.mark.parametrize("one", ENTRIES.values(), ids=IDS)
def test_every_public_name_has_an_entry_with_all_its_options_and_an_example(one: Entry) -> None:
    assert list(mistakes(one)) == []


def test_an_entry_without_an_option_an_example_or_an_error_is_noticed() -> None:
    webhook = ENTRIES["turnout", "webhook"]
    bare = replace(webhook, text="Start a flow.", members=[_reference.Member("x", "x()", "")])
    found = list(mistakes(bare))
    assert found[:3] == ["an example", "what it raises", "a list item for path"]
    assert found[-1] == "what x is"


MEMBERS = {"kafka.publish", "notify.slack", "notify.email", "notify.webhook"}
"""What has an entry of its own, and is reached through an exported name."""


def test_every_exported_name_is_in_the_reference() -> None:
    for module in _reference.MODULES:
        exported = set(sys.modules[module].__all__)
        assert {name for where, name in ENTRIES if where == module} - MEMBERS == exported


# ---- the examples


@pytest.fixture
def loaded(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """Return the example of a name as a module, loaded as `turnout serve` loads it."""
    for name in SECRETS:
        monkeypatch.setenv(name, "of the example")
    one: Entry = request.param
    path = tmp_path / "example.py"
    path.write_text(one.example or "")
    found = check([path])
    assert [str(each) for each in (*found.problems, *found.warnings)] == []
    assert found.flows
    return load_file(path)


@pytest.mark.parametrize(
    ("loaded", "name"),
    [(each, each.name) for each in ENTRIES.values()],
    ids=IDS,
    indirect=["loaded"],
)
def test_every_example_is_checked_and_does_what_it_says(
    loaded: ModuleType, name: str, tmp_path: Path
) -> None:
    for test in [each for word, each in vars(loaded).items() if word.startswith("test_")]:
        wanted = {"tmp_path": tmp_path}
        arguments = {each: wanted[each] for each in inspect.signature(test).parameters}
        done = test(**arguments)
        if inspect.iscoroutine(done):
            asyncio.run(done)
    if name in RUNS and hasattr(loaded, RUNS[name][0]):  # two modules may have one name
        flow, given, expected = RUNS[name]
        result = asyncio.run(served(loaded, flow, given))
        assert (result.state, result.result) == ("succeeded", expected), result.error


async def served(loaded: ModuleType, flow: str, given: Any) -> Result:
    async with serve(*flows_of([loaded])) as service:
        return await service.run(getattr(loaded, flow), given)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_strict_type_checker_accepts_every_example(tmp_path: Path) -> None:
    files = []
    for number, one in enumerate(ENTRIES.values()):
        files.append(tmp_path / f"{one.name.replace('.', '_')}_{number}.py")
        files[-1].write_text(one.example or "")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *map(str, files)],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


# ---- turnout help


def printed(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["help", *arguments], prog_name="turnout")
    return done.output


@pytest.mark.parametrize("name", IDS)
def test_help_prints_the_entry_of_a_name(name: str) -> None:
    found = _reference.find(name)
    assert isinstance(found, Entry)
    text = printed(name)
    assert text.startswith(found.signature)
    for option in found.options:
        assert f"* `{option}`" in text
    for line in (found.example or "").splitlines():
        assert line in text


def test_help_lists_all_names_and_finds_parts_of_them() -> None:
    listed = printed()
    assert all(f"\n  {name} " in listed for name in IDS)
    assert max(map(len, listed.splitlines())) <= 100
    assert printed("current.key").startswith('current().key(name: str = "") -> str\n')
    assert printed("current().key") == printed("current.key")
    assert "for a secret without a value" in printed("reveal")
    assert printed("webhook.respond").startswith("webhook(respond = False)\n\n`True` lets a caller")
    assert "turnout help webhook" in printed("webhook.respond")
    assert isinstance(_reference.find("said.by") or _reference.find("by"), Part)


@pytest.mark.parametrize("name", ["state.get", "current.state.get", "current().state.get()"])
def test_what_is_reached_through_two_names_has_help(name: str) -> None:
    found = _reference.find(name)
    assert isinstance(found, Part)
    assert "get(default: Any = None)" in found.plain(80)


def test_help_of_a_command_is_its_help_and_an_unknown_name_gets_a_guess() -> None:
    assert printed("retry").startswith("retry(")
    assert "There is a command of this name, too: turnout retry --help" in printed("retry")
    assert printed("dead").startswith("Usage: turnout dead ")
    assert "there is no 'wehook' to import; did you mean 'webhook'?" in printed("wehook")
    assert "there is no 'notifiy' to import; did you mean 'notify'?" in printed("notifiy")
    assert "`turnout help` lists all names." in printed("xyzzy")
