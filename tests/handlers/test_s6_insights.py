"""S6, questions about a file in plain words: PandasAI in its own environment, a scripted model.

The model server answers with Python, as a model does, and PandasAI runs it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # no stubs
import pytest

from tests.bench.peers import python_of
from tests.support import CHECKOUT
from tests.support.model_server import ModelServer, Request, Said, model_server
from tests.support.processes import Mark
from tests.support.program import Program, until

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

EXAMPLES = CHECKOUT / "handlers" / "examples" / "ai"
ROWS = "product,sold\na,3\nb,5\nc,4\n"
QUERIES = {
    "Which products sold well?": "SELECT product FROM {} WHERE sold > 3 ORDER BY sold DESC",
    "How many did we sell?": "SELECT CAST(sum(sold) AS INTEGER) AS product FROM {}",
    "Which sold worst?": "SELECT product FROM {} ORDER BY sold LIMIT 1",
}


class Analyst:
    """A model that knows how to ask these questions of any table."""

    def __init__(self) -> None:
        self.before = ""
        """Code that it puts first."""
        self.refuses: set[str] = set()
        """Questions that it does not answer the first time."""

    def __call__(self, request: Request) -> Said:
        asked = question_of(request)
        if asked in self.refuses:
            self.refuses.remove(asked)
            return Said(status=503)
        (table,) = set(re.findall(r'table_name="(\w+)"', text_of(request)))
        sql = QUERIES[asked].format(table)
        return Said(
            f"```python\n{self.before}\nframe = execute_sql_query({sql!r})\n"
            'text = ",".join(str(each) for each in frame["product"])\n'
            'result = {"type": "string", "value": text}\n```'
        )


def text_of(request: Request) -> str:
    return str(request.messages[-1]["content"])


def question_of(request: Request) -> str:
    (asked,) = (each for each in QUERIES if each in text_of(request))
    return asked


class Desk:
    """The example on files dropped into its folder."""

    def __init__(self, folder: Path, model: ModelServer, analyst: Analyst) -> None:
        self.folder, self.model, self.analyst = folder, model, analyst
        self.mark = Mark()
        (folder / "tables").mkdir()
        for name in ("insights.py", "_ask_frame.py"):
            (folder / name).write_text((EXAMPLES / name).read_text())
        (name, value), *_ = self.mark.env.items()  # a command has the environment it is given
        self.change("env={", f"env={{{name!r}: {value!r}, ")
        self.program = Program(
            flows=folder / "insights.py",
            data=folder / "data",
            log=folder / "log",
            env={
                "MODEL_URL": model.url, "MODEL_KEY": "a-key", **self.mark.env,
                "PANDASAI_PYTHON": str(python_of("pandasai")),
            },
            prefix=("env", "-C", str(folder)),
        )  # fmt: skip

    def change(self, here: str, there: str) -> None:
        """Change the flow file."""
        flows = self.folder / "insights.py"
        source = flows.read_text()
        assert here in source
        flows.write_text(source.replace(here, there))

    def drop(self, name: str) -> dict[str, Any]:
        """Drop the rows under a name; returns the run that has ended."""
        before = len(until(self._runs, 60, "the list of runs")[0])
        (self.folder / f"{name}.part").write_text(ROWS)
        (self.folder / f"{name}.part").rename(self.folder / "tables" / f"{name}.csv")

        def ended() -> dict[str, Any] | None:
            (runs,) = self._runs() or [[]]
            done = [run for run in runs if run["finished_at"] is not None]
            return done[0] if len(done) > before else None

        found = until(ended, 300, f"the run of {name}")
        run: dict[str, Any] = self.program.api(f"/runs/{found['id']}")
        return run

    def _runs(self) -> list[list[dict[str, Any]]] | None:
        """Return the list of runs in a list, or nothing where no answer comes in time."""
        try:
            return [self.program.api("/runs")["items"]]
        except AssertionError:
            return None

    def asking(self) -> list[str]:
        """Return the processes that ask, and run what the model writes."""
        return [str(each) for each in self.mark.found() if _is_pandasai(each)]

    @property
    def asked(self) -> list[str]:
        return sorted(question_of(request) for request in self.model.asked)


def _is_pandasai(process: psutil.Process) -> bool:
    try:
        return "pandasai" in process.cmdline()[0]
    except (psutil.Error, IndexError):
        return False


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    analyst = Analyst()
    with model_server(analyst) as model:
        desk = Desk(tmp_path, model, analyst)
        yield desk


ANSWERS = ["b,c", "12", "a"]


def test_s6_three_answers_and_none_is_asked_for_again(desk: Desk) -> None:
    with desk.program.start() as program:
        program.ready(120)
        run = desk.drop("monday")
        assert (run["state"], run["result"]) == ("succeeded", ANSWERS), run["error"]
        assert desk.asked == sorted(QUERIES)
        again = desk.drop("copy")
        assert again["result"] == ANSWERS
        assert len(desk.asked) == 3, "the same content is not asked about again"
        assert sum(step["cached"] for step in again["steps"]) == 3
        assert program.stop() == 0


def test_s6_a_question_that_failed_is_asked_again_alone(desk: Desk) -> None:
    failing = "How many did we sell?"
    desk.analyst.refuses = {failing}
    with desk.program.start() as program:
        program.ready(120)
        run = desk.drop("monday")
        assert program.stop() == 0
    assert run["result"] == ANSWERS, run["error"]
    assert desk.asked == sorted([*QUERIES, failing])


def test_s6_code_that_never_ends_is_killed_and_the_service_answers_meanwhile(desk: Desk) -> None:
    desk.analyst.before = "while True: pass"
    desk.change('timeout="60s"', 'timeout="30s"')
    desk.change('retry=retry(2, delay="1s"), ', "")
    with desk.program.start() as program:
        program.ready(120)
        answered: list[float] = []
        over = threading.Event()

        def look() -> None:
            while not over.is_set():
                started = time.monotonic()
                answer = program.ask("/healthz")
                answered.append(time.monotonic() - started)
                assert answer is not None and answer.status == 200
                over.wait(0.02)

        watcher = threading.Thread(target=look)
        watcher.start()
        run = desk.drop("monday")
        over.set()
        watcher.join()
        assert run["state"] == "failed" and run["error"]["type"] == "ShellError"
        until(lambda: not desk.asking(), 20, "the end of what the model wrote")
        assert program.ask("/healthz") is not None
    assert len(answered) > 100
    assert sorted(answered)[len(answered) // 2] < 0.1


def test_s6_two_questions_at_once_at_most(desk: Desk) -> None:
    desk.change("QUESTIONS = [", f"QUESTIONS = [*{[*QUERIES] * 2!r}] or [")
    desk.change('cache=by_input(ttl="1d")', "")
    desk.model.delay_seconds = 0.5
    with desk.program.start() as program:
        program.ready(120)
        most = 0
        over = threading.Event()

        def count() -> None:
            nonlocal most
            while not over.is_set():
                most = max(most, len(desk.asking()))
                over.wait(0.1)

        watcher = threading.Thread(target=count)
        watcher.start()
        run = desk.drop("monday")
        over.set()
        watcher.join()
        assert run["result"] == ANSWERS * 2, run["error"]
    assert most == 2
