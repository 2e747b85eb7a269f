"""`turnout check` finds every problem of every file, at its line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from turnout.service.project import loader
from turnout.service.project.check import check

from .flow_files import flow_file, fresh, refusal, write

__all__ = ["fresh"]  # the fixture


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
