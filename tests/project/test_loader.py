"""Flow files are loaded and reloaded as one project, or refused at the author's line."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from turnout.service.domain.errors import SetupError
from turnout.service.project import loader
from turnout.service.project.check import check

from .flow_files import flow_file, fresh, refusal, write

__all__ = ["fresh"]  # the fixture

SAVED_AT = 1_700_000_000


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


def test_a_reload_brings_new_code_also_of_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The import system takes a neighbour of the same second and size for the one it compiled."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    neighbour = write(tmp_path / "helper_of_a.py", "PRICE = 1\n")
    os.utime(neighbour, (SAVED_AT, SAVED_AT))
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
    write(neighbour, "PRICE = 2\n")
    os.utime(neighbour, (SAVED_AT, SAVED_AT))
    after = loader.load([path]).flows["bill"]
    assert (before(), after()) == (1, 2)
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


def test_tests_beside_flow_files_are_left_out_of_a_folder(tmp_path: Path) -> None:
    flow_file(tmp_path / "a.py")
    for name in ("test_a.py", "a_test.py", "conftest.py", "_shared.py"):
        (tmp_path / name).write_text("raise RuntimeError('loaded')\n")
    assert list(loader.load([tmp_path]).flows) == ["bill"]
    with pytest.raises(SetupError, match="loaded"):
        loader.load([tmp_path / "test_a.py"])  # named by hand it is meant


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
