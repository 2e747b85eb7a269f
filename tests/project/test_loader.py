"""Flow files become a project, or a problem with file and line; never half of one."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from turnout.service.domain.errors import SetupError
from turnout.service.project import loader
from turnout.service.project.check import check


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Leave modules and the path as they were."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith((loader.PACKAGE, "helper_of_")):
            del sys.modules[name]
    sys.path[:] = path


def write(path: Path, text: str) -> Path:
    path.write_text(dedent(text).lstrip())
    return path


def flow_file(path: Path, name: str = "bill", body: str = "pass") -> Path:
    return write(
        path,
        f"""
        from turnout import flow

        @flow
        def {name}() -> None:
            {body}
        """,
    )


def refusal(*paths: Path) -> SetupError:
    with pytest.raises(SetupError) as caught:
        loader.load(list(paths))
    return caught.value


# ---------------------------------------------------------------- names


def test_a_module_name_is_the_same_everywhere_and_an_identifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = loader.module_name(tmp_path / "daily report-2.py")
    package, _, rest = name.partition(".")
    assert package == "_turnout_flows"
    assert rest.startswith("daily_report_2_")
    assert rest.isidentifier()
    assert loader.module_name(tmp_path / "2026.py").split(".")[1].isidentifier()
    monkeypatch.chdir(tmp_path)
    assert name == loader.module_name(Path("daily report-2.py"))
    assert name != loader.module_name(tmp_path / "other" / "daily report-2.py")


def test_a_worker_process_finds_by_name_what_was_pickled_here(tmp_path: Path) -> None:
    path = write(tmp_path / "shop.py", "class Order:\n    paid = True\n")
    order = loader.load_file(path).Order()
    worker = (
        "import pickle, sys; from pathlib import Path;"
        "from turnout.service.project.loader import load_file;"
        "load_file(Path(sys.argv[1])); print(pickle.loads(sys.stdin.buffer.read()).paid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", worker, str(path)], input=pickle.dumps(order), capture_output=True
    )
    assert done.stdout.strip() == b"True", done.stderr


def test_a_file_is_executed_once_by_load_file(tmp_path: Path) -> None:
    path = write(tmp_path / "shop.py", "made = object()\n")
    assert loader.load_file(path).made is loader.load_file(path).made


# ---------------------------------------------------------------- loading


def test_files_and_folders_are_one_project(tmp_path: Path) -> None:
    folder = tmp_path / "flows"
    folder.mkdir()
    flow_file(folder / "a.py", "first")
    flow_file(folder / "b.py", "second")
    write(folder / "_shared.py", "raise RuntimeError('a shared file is not a flow file')")
    project = loader.load([folder, flow_file(tmp_path / "c.py", "third")])
    assert sorted(project.flows) == ["first", "second", "third"]


def test_a_flow_knows_its_file_and_line(tmp_path: Path) -> None:
    path = flow_file(tmp_path / "a.py")
    flow = loader.load([path]).flows["bill"]
    assert flow.file == str(path)
    assert flow.line in (3, 4)


def test_a_file_may_import_its_neighbours_but_never_hides_the_real_ones(tmp_path: Path) -> None:
    write(tmp_path / "json.py", "raise RuntimeError('shadowed')")
    write(tmp_path / "helper_of_a.py", "PRICE = 7")
    flow_file(tmp_path / "a.py", body="import json, helper_of_a; print(helper_of_a.PRICE)")
    project = loader.load([tmp_path / "a.py"])
    project.flows["bill"]()
    assert sys.path[-1] == str(tmp_path)


def test_a_flow_imported_from_another_loaded_file_is_counted_once(tmp_path: Path) -> None:
    flow_file(tmp_path / "helper_of_b.py", "first")
    write(
        tmp_path / "b.py",
        """
        from helper_of_b import first
        from turnout import flow

        @flow
        def second() -> None:
            first()
        """,
    )
    assert sorted(loader.load([tmp_path]).flows) == ["first", "second"]
    assert sorted(loader.load([tmp_path / "b.py"]).flows) == ["first", "second"]


def test_dataclasses_and_string_annotations_work(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.py",
        """
        from __future__ import annotations
        from dataclasses import dataclass
        from turnout import flow

        @dataclass
        class Order:
            id: str

        @flow
        def bill(order: Order) -> None: ...
        """,
    )
    assert "bill" in loader.load([path]).flows


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("x = 1\ndef broken(:\n    pass\n", 2, "syntax error"),
        ("\n\nimport no_such_library_at_all\n", 3, "no_such_library_at_all"),
        ("x = 1\ny = x / 0\n", 2, "ZeroDivisionError"),
        ("def f():\n    raise ValueError('deep\\nsecond line')\n\nf()\n", 2, "deep second line"),
        ("import sys\nsys.exit(3)\n", 2, "exit()"),
        ("from turnout import every\n\nevery('soon')\n", 3, "soon"),
        ("x = 1\n", 1, "no flow found"),
    ],
)
def test_what_a_file_does_wrong_is_told_at_the_users_line(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    path = tmp_path / "a.py"
    path.write_text(text)
    error = refusal(path)
    assert (error.file, error.line) == (str(path), line)
    assert words in str(error)
    assert "\n" not in str(error)


def test_an_error_in_a_neighbour_is_told_where_it_is(tmp_path: Path) -> None:
    neighbour = write(tmp_path / "helper_of_a.py", "x = 1\n1 / 0\n")
    path = write(tmp_path / "a.py", "import helper_of_a\n")
    error = refusal(path)
    assert (error.file, error.line) == (str(neighbour), 2)


def test_paths_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    assert "no such file" in str(refusal(tmp_path / "nope.py"))
    assert "no flow file" in str(refusal(tmp_path))
    text = tmp_path / "notes.txt"
    text.write_text("x")
    assert "end in .py" in str(refusal(text))


# ---------------------------------------------------------------- reload


def test_a_reload_brings_new_code_also_of_neighbours(tmp_path: Path) -> None:
    neighbour = write(tmp_path / "helper_of_a.py", "PRICE = 1\n")
    path = write(
        tmp_path / "a.py",
        """
        from helper_of_a import PRICE
        from turnout import flow

        @flow
        def bill() -> int:
            return PRICE
        """,
    )
    before = loader.load([path]).flows["bill"]
    write(neighbour, "PRICE = 22\n")
    after = loader.load([path]).flows["bill"]
    assert (before(), after()) == (1, 22)
    assert sys.modules[loader.module_name(path)].bill is after


@pytest.mark.parametrize("broken", ["1 / 0\n", "def f(:\n", "x = 1\n"])
def test_a_reload_that_fails_leaves_the_old_code(tmp_path: Path, broken: str) -> None:
    first, second = flow_file(tmp_path / "a.py", "one"), flow_file(tmp_path / "b.py", "two")
    loader.load([first, second])
    kept = {path: sys.modules[loader.module_name(path)] for path in (first, second)}
    flow_file(first, "changed")
    second.write_text(broken if broken != "x = 1\n" else first.read_text())  # a duplicate name
    with pytest.raises(SetupError):
        loader.load([first, second])
    for path, module in kept.items():
        assert sys.modules[loader.module_name(path)] is module


# ---------------------------------------------------------------- check


def test_check_finds_every_problem_of_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    write(
        tmp_path / "a.py",
        """
        from turnout import cron, flow, secret, task, webhook
        import no_such_library_at_all

        shrink = task(pool="process", name="shrink")(lambda image: image)

        @flow(on=webhook("/orders/{id}", verify="github", secret=secret("NO_SUCH_KEY")))
        def bill() -> None: ...

        @flow(on=cron("61 * * * *"))
        def tick() -> None: ...

        client = no_such_library_at_all.Client()
        """,
    )
    write(
        tmp_path / "b.py",
        """
        from turnout import flow, webhook

        @flow
        def bill() -> None: ...

        @flow(on=webhook("/orders/{name}"))
        def other() -> None: ...
        """,
    )
    write(tmp_path / "c.py", "def broken(:\n")
    findings = check([tmp_path], env=True)
    told = [(Path(str(p.file)).name, p.line, p.message) for p in findings.problems]
    for name, lines, words in (
        ("a.py", (2,), "no_such_library_at_all"),
        ("a.py", (4,), "process"),
        ("a.py", (6,), "NO_SUCH_KEY"),
        ("a.py", (9, 10), "61"),
        ("b.py", (3, 4), "taken"),
        ("b.py", (6, 7), "clashes"),
        ("c.py", (1,), "syntax error"),
    ):
        assert [1 for n, at, text in told if n == name and at in lines and words in text], (
            words,
            told,
        )
    assert len(told) == 7, told


def test_an_unknown_secret_is_a_warning_until_the_machine_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = flow_file(tmp_path / "a.py", body='from turnout import secret; secret("SOME_KEY")')
    monkeypatch.delenv("SOME_KEY", raising=False)
    findings = check([path])
    assert not findings.problems
    assert [warning.line for warning in findings.warnings] == [5]
    assert check([path], env=True).problems
    (tmp_path / "SOME_KEY").write_text("from a file")
    assert not check([path], env=True, secrets_folder=tmp_path).problems
    monkeypatch.setenv("SOME_KEY", "from the environment")
    assert not check([path], env=True).problems


def test_a_trigger_of_the_author_may_refuse_its_settings_with_any_error(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.py",
        """
        from dataclasses import dataclass

        from turnout import flow

        @dataclass(frozen=True)
        class Mailbox:
            limit: int
            kind: str = "mailbox"
            name: str = "mailbox"

            def check(self):
                if self.limit > 10:
                    raise ValueError("ten letters are the most")

            async def run(self, emit): ...

        @flow(on=Mailbox(limit=20))
        def read() -> None: ...
        """,
    )
    (problem,) = check([path]).problems
    assert problem.message == "Mailbox cannot be checked: ValueError: ten letters are the most"
    assert refusal(path).message == problem.message


def test_check_leaves_no_module_behind(tmp_path: Path) -> None:
    path = flow_file(tmp_path / "a.py")
    assert [flow.name for flow in check([path]).flows] == ["bill"]
    assert loader.module_name(path) not in sys.modules


def test_a_process_flow_must_be_importable(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.py",
        """
        from turnout import flow

        def make():
            @flow(pool="process")
            def hidden() -> None: ...
            return hidden

        made = make()

        @flow(pool="process")
        def open_one() -> None: ...
        """,
    )
    error = refusal(path)
    assert "hidden" in error.message
    assert error.line in (4, 5)


@pytest.mark.parametrize("was", ["bill", "other"])
def test_a_flow_cannot_take_over_from_one_that_is_still_there(tmp_path: Path, was: str) -> None:
    path = write(
        tmp_path / "a.py",
        f"""
        from turnout import flow

        @flow(was="{was}")
        def other() -> None: ...

        @flow
        def bill() -> None: ...
        """,
    )
    error = refusal(path)
    assert f"was='{was}'" in error.message
    assert error.line in (3, 4)


def test_a_webhook_that_answers_with_a_result_has_one_flow(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.py",
        """
        from turnout import flow, webhook

        orders = webhook("/orders", respond=True)

        @flow(on=orders)
        def bill() -> None: ...

        @flow(on=orders)
        def ship() -> None: ...
        """,
    )
    error = refusal(path)
    assert "one flow only" in error.message
    assert f"'bill' ({path}:5)" in error.message
    assert error.line in (8, 9)


@pytest.mark.parametrize("written", ['"hunter2"', '["hunter2", "hunter3"]'])
def test_a_secret_in_the_file_itself_is_refused(tmp_path: Path, written: str) -> None:
    path = write(
        tmp_path / "a.py",
        f"""
        from turnout import flow, webhook

        @flow(on=webhook("/orders", verify="github", secret={written}))
        def bill() -> None: ...
        """,
    )
    error = refusal(path)
    assert 'secret("NAME"), never the secret itself' in error.message
    assert "hunter2" not in error.message


def test_tests_beside_flow_files_are_left_out_of_a_folder(tmp_path: Path) -> None:
    flow_file(tmp_path / "a.py")
    for name in ("test_a.py", "a_test.py", "conftest.py", "_shared.py"):
        (tmp_path / name).write_text("raise RuntimeError('loaded')\n")
    assert list(loader.load([tmp_path]).flows) == ["bill"]
    with pytest.raises(SetupError, match="loaded"):
        loader.load([tmp_path / "test_a.py"])  # named by hand it is meant


def test_whatever_a_file_raises_is_a_problem_at_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.py",
        """
        class Outcome(BaseException): ...
        raise Outcome("skipped")
        """,
    )
    error = refusal(path)
    assert (error.line, error.message) == (2, "Outcome: skipped")
    assert [problem.message for problem in check([path]).problems] == ["Outcome: skipped"]
    path.write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        loader.load([path])
    assert loader.module_name(path) not in sys.modules


# ---------------------------------------------------------------- as Python itself would run it


def test_a_file_is_compiled_by_its_own_future_statements_only(tmp_path: Path) -> None:
    text = """
        {first}
        from dataclasses import dataclass, fields
        from typing import Required, TypedDict
        from turnout import flow

        @dataclass
        class Point:
            x: int

        class Order(TypedDict, total=False):
            id: Required[int]

        def make():
            class Local(TypedDict):
                a: int

            @flow(name="local")
            def inner(value: Local) -> int:
                return value["a"]

            return inner

        KIND = fields(Point)[0].type
        REQUIRED = Order.__required_keys__
        {last}
    """
    plain = write(tmp_path / "plain.py", dedent(text).format(first="", last="local = make()"))
    postponed = write(
        tmp_path / "postponed.py",
        dedent(text).format(
            first="from __future__ import annotations",
            last="@flow\ndef order(value: Order) -> None: ...",
        ),
    )
    (local,) = loader.load([plain]).flows.values()
    module = sys.modules[loader.module_name(plain)]
    assert module.KIND is int
    assert list(module.REQUIRED) == ["id"]
    assert list(local.binding.fills)
    assert not check([plain]).problems
    loader.load([postponed])
    assert sys.modules[loader.module_name(postponed)].KIND == "int"
    assert not check([postponed]).problems
