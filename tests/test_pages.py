"""A stranger with only the pages: every block of code in them runs, every table is the code's own.

`python` blocks are files, in the order they stand; `bash` blocks are typed in their folder, with
`turnout serve` left running as in a first terminal. `console` blocks need Docker, a broker or a
fresh clone: what they name must exist, and what they run is run by the tests named beside them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support import CHECKOUT
from tests.support.pages import PAGES, Block, blocks, parts, rewritten
from tests.support.ports import free_port
from tests.support.program import environment, turnout, until
from turnout.service.domain.run import FINISHED, TRANSITIONS
from turnout.service.project.check import check

from .support import layers

TEXTS = {str(page.relative_to(CHECKOUT)): page.read_text("utf-8") for page in PAGES}
README = TEXTS["README.md"]
EVERYTHING = "\n".join(TEXTS.values())
RUN = [
    name
    for name, text in TEXTS.items()
    if name != "handlers/REFERENCE.md"  # its examples are run by tests/handlers/test_reference.py
    and any(block.language in ("python", "bash") and not block.system for block in blocks(text))
]

SYSTEMS = {
    "airflow": ("test_coming_from.py", "test_orchestrators.py"),
    "called": ("test_call_turnout.py", "test_orchestrators.py"),
    "celery": ("test_celery.py",),
    "celery-beat": ("test_coming_from.py",),
    "clouds": ("test_infrastructure.py",),
    "dagster": ("test_orchestrators.py",),
    "data": ("test_data_hand_offs.py",),
    "prefect": ("test_coming_from.py", "test_orchestrators.py"),
    "schedule": ("test_coming_from.py",),
}
"""By what a block needs to run: the tests of `tests/handlers` that run it."""

PRINTED = {
    "README.md": {
        "turnout run hello.py": "Hello, world!",
        "curl": '"duplicate":false',
        "turnout runs\n": "succeeded",
    },
    "handlers/README.md": {
        "turnout run orders.py": "receipt-7",
        "turnout explain": "runs again, after each wait, retry and restart",
    },
    "handlers/FLOW_CONTROL.md": {
        "turnout why order-7": "it waits: for flow 'ship' to be resumed",
        "turnout limits\n": "printer",
        "turnout resume": "1 run waited",
    },
    "deploy/README.md": {"turnout backup --to backups": "verified: whole"},
    "triggers/README.md": {"turnout runs --flow deliver": '"succeeded"'},
}
"""By page: what a block with these words in it prints, soon if not at once."""

SERVED = {"deploy/README.md": ("handlers/README.md", "orders.py")}
"""By page: the page and file of the flows that are served already where it is read."""


SECRETS = dict.fromkeys(
    (
        "GITHUB_SECRET", "PARTNER_SECRET", "CRM_TOKEN", "OPENAI_KEY", "SALES_URL", "REPORT_URL",
        "ALERT_URL", "SHOP_URL", "AIRFLOW_URL", "AIRFLOW_USER", "AIRFLOW_PASSWORD", "PREFECT_URL",
        "DAGSTER_URL", "HOOK_SECRET", "CHAT_URL", "SMTP_URL",
    ),
    "of the page",
)  # fmt: skip


class Terminal:
    """A folder, and a shell whose `turnout` is this one, listening where nobody else does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env = environment({"PATH": path, "TURNOUT_PORT": str(self.port), **SECRETS})
        self._tests: list[str] = []

    def write(self, block: Block, page: str) -> None:
        """Save a python block under the name its first line gives, and check what is not a test."""
        assert block.file, f"{page}:{block.line}: the first line names no file"
        path = self.folder / block.file
        if path.exists():
            self.run_tests()  # of the file that goes
        path.write_text(block.text)
        if block.file.startswith("test_"):
            self._tests.append(block.file)
        else:
            found = check([path])
            assert not (*found.problems, *found.warnings), f"{page}:{block.line}"

    def run_tests(self) -> None:
        """Run the tests written since the last time, in one pytest: each start takes seconds."""
        if self._tests:
            options = "-q -p no:randomly -p no:cacheprovider"
            assert "passed" in self.type(f"python -m pytest {options} {' '.join(self._tests)}")
            self._tests.clear()

    def type(self, commands: str) -> str:
        """Run commands; returns what they print. The first that fails is an error."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands.replace(":8080", f":{self.port}")],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
        for folder in re.findall(r"^cd (\S+)$", commands, re.MULTILINE):
            self.folder /= folder
        return done.stdout

    @contextmanager
    def serving(self, command: str) -> Iterator[None]:
        """Leave `turnout serve …` running; it must stop cleanly at the end."""
        with subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.env
        ) as it:
            try:
                until(self._is_ready, 20, f"an answer to {command}")
                yield
            finally:
                it.terminate()
        assert it.returncode == 0

    def _is_ready(self) -> bool:
        ask = ["curl", "-fsS", f"http://127.0.0.1:{self.port}/readyz"]
        return subprocess.run(ask, capture_output=True, check=False).returncode == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", RUN)
@pytest.mark.slow
def test_every_block_of_code_runs_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal(tmp_path)
    seen: set[str] = set()
    with ExitStack() as first_terminal:
        if page in SERVED:
            other, file = SERVED[page]
            (flows,) = (block for block in blocks(TEXTS[other]) if block.file == file)
            terminal.write(flows, other)
            first_terminal.enter_context(terminal.serving(f"turnout serve {file}"))
        for block in blocks(TEXTS[page]):
            if block.system:
                continue  # run by the test that `SYSTEMS` names
            if block.language == "python":
                terminal.write(block, page)
            elif block.language == "bash" and block.text.startswith("turnout serve"):
                first_terminal.enter_context(terminal.serving(block.text))
            elif block.language == "bash":
                seen |= look(block, terminal, PRINTED.get(page, {}))
        terminal.run_tests()
    assert seen == PRINTED.get(page, {}).keys()


def look(block: Block, terminal: Terminal, expected: Mapping[str, str]) -> set[str]:
    """Type a block until it prints what is expected of it; returns the commands it holds."""
    commands = {command for command in expected if command in block.text}
    words = [expected[command] for command in commands]

    def says() -> bool:
        answer = terminal.type(block.text).replace('": ', '":')
        return all(each in answer for each in words)

    until(says, 20, f"{words} from {block.text}")
    return commands


def test_every_language_is_one_that_is_run_or_judged() -> None:
    # mermaid: the pictures below; text: what programs print; yaml: values of the chart.
    known = {"bash", "python", "console", "mermaid", "text", "yaml"}
    assert {block.language for block in blocks(EVERYTHING)} == known
    assert {block.system for block in blocks(EVERYTHING)} == {"", *SYSTEMS}
    folder = CHECKOUT / "tests" / "handlers"
    assert all((folder / test).exists() for tests in SYSTEMS.values() for test in tests)


@pytest.mark.parametrize("page", TEXTS)
def test_what_a_page_names_exists(page: str) -> None:
    text = TEXTS[page]
    typed = " ".join(block.text for block in blocks(text) if block.language == "console")
    named = re.findall(r"(?:\./)?(?:deploy|\.ci)/[\w./-]+", typed)
    mentioned = re.findall(r"`((?:\./)?(?:deploy|\.ci|service|triggers|tests)/[\w./-]*)`", text)
    for path in named + mentioned:
        assert (CHECKOUT / path).exists(), path
    folder = (CHECKOUT / page).parent
    files = {block.file for block in blocks(text)}
    for path in set(re.findall(r"`([\w./-]+\.(?:py|md))`", text)) - files:
        assert (folder / path).exists() or (CHECKOUT / path).exists(), path
    for link, heading in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", text):
        target = ((CHECKOUT / page).parent / link) if link else CHECKOUT / page
        assert target.exists(), link
        if heading:
            assert heading in headings(target), f"{link}#{heading}"


def test_the_table_of_checks_names_tests_that_are_there() -> None:
    page = CHECKOUT / "tests" / "handlers" / "README.md"
    named = re.findall(r"`([\w./-]+\.py)::(\w+)`", page.read_text("utf-8"))
    assert named
    for file, test in named:
        source = ((CHECKOUT if "/" in file else page.parent) / file).read_text("utf-8")
        assert re.search(rf"^ *(?:async )?def {test}\(", source, re.MULTILINE), f"{file}::{test}"


def headings(page: Path) -> set[str]:
    """Return the headings of a page as links name them."""
    found = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in found}


def test_scripts_are_executable() -> None:
    for script in ("deploy/setup", "deploy/try", "deploy/test", ".ci/run"):
        assert os.access(CHECKOUT / script, os.X_OK), script


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_tour_shows_each_run_succeeded() -> None:
    # What `./deploy/try --once` runs once the set-up is made; `.ci/run` makes the set-up.
    tour = subprocess.run(
        [sys.executable, CHECKOUT / "deploy" / "tour.py", "--once"],
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert tour.returncode == 0, tour.stdout + tour.stderr
    states = re.findall(r"^  \S.*?  (\w+) +(succeeded|failed|\w+ing)\b", tour.stdout, re.MULTILINE)
    flows = ("activity", "pushed", "sales", "disk_free", "daily_report")
    assert dict(states) == dict.fromkeys(flows, "succeeded")
    assert "notification received: files done: 1" in tour.stdout


@pytest.mark.parametrize("page", TEXTS)
def test_generated_parts_say_what_the_code_says(page: str) -> None:
    assert rewritten(TEXTS[page]) == TEXTS[page], "run: python -m tests.support.pages"


def test_the_picture_of_states_draws_every_transition_once_and_no_other() -> None:
    shown = parts(TEXTS["service/README.md"])["service/domain/run.py"]
    arrows = re.findall(r"^    (\S+) --> (\S+)", shown, re.MULTILINE)
    ends = {(str(state), "[*]") for state in FINISHED}
    moves = {
        (str(state or "[*]"), str(target))
        for state, targets in TRANSITIONS.items()
        for target in targets
    }
    assert len(arrows) == len(set(arrows))
    assert set(arrows) == moves | ends


def test_every_command_named_exists() -> None:
    help_text = turnout("--help").stdout
    typed = re.findall(
        r"^turnout ([a-z]+)", "\n".join(block.text for block in blocks(EVERYTHING)), re.MULTILINE
    )
    for command in {*re.findall(r"`turnout ([a-z]+)", EVERYTHING), *typed} - {"serves"}:
        assert re.search(rf"^  {command} ", help_text, re.MULTILINE), f"turnout {command}"


def test_the_guarantee_stands_in_the_agreed_words() -> None:
    words = " ".join(README.replace("*", "").split())
    assert (
        "One run per accepted event within the dedupe window; steps at least once until recorded, "
        "never after; outside effects at least once, with a key." in words
    )
    assert "A redelivery after the window runs again." in words
    assert "exactly once" not in " ".join(EVERYTHING.lower().split())


def test_the_picture_of_rooms_has_no_cycle_and_names_every_room_of_the_table() -> None:
    graph = layers.imports()
    cycle = [room for room in graph if room in layers.reachable(graph, room)]
    assert not cycle
    told = TEXTS["service/README.md"].split("## Layers")[1].split("```mermaid")[0]
    first_cells = "\n".join(re.findall(r"^\| (.*?) \|", told, re.MULTILINE))
    rooms = set(re.findall(r"`([a-z]+)`", first_cells))
    assert rooms == graph.keys()


def test_the_first_page_is_short() -> None:
    assert len(README.splitlines()) <= 150
