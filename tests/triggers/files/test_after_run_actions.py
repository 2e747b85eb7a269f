"""Moving and deleting: nothing overwritten, nothing lost, repeatable wherever a crash came."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from turnout.service.domain.errors import TooEarly, TriggerError
from turnout.triggers.files.after_run_actions import Subject, delete_file, move_file

TAG = "0a1b2c3d"


def subject(root: Path, path: str) -> Subject:
    status = (root / path).stat()
    return Subject(str(root), path, status.st_size, status.st_mtime_ns, status.st_ino)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "s").mkdir(parents=True)
    (folder / "a.csv").write_text("one")
    (folder / "s" / "b.csv").write_text("two")
    return folder


def mount_apart(patch: pytest.MonkeyPatch) -> None:
    """Let no file be linked from one folder into another, as between two mounts (EXDEV)."""
    real = os.link

    def link(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int, **rest: bool) -> None:
        if not os.path.samestat(os.fstat(src_dir_fd), os.fstat(dst_dir_fd)):
            with contextlib.suppress(FileNotFoundError):
                os.stat(new, dir_fd=dst_dir_fd, follow_symlinks=False)
                raise FileExistsError(errno.EEXIST, "File exists")  # the kernel looks here first
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **rest)

    patch.setattr(os, "link", link)


def refuse_links(patch: pytest.MonkeyPatch) -> None:
    """Let no file be linked, as on a file system without hard links."""

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    patch.setattr(os, "link", no_links)


@pytest.fixture(
    params=["same file system", "no links", "another mount of it", "another file system"]
)
def done(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    if request.param != "another file system":
        if request.param == "another mount of it":
            mount_apart(monkeypatch)
        if request.param == "no links":
            refuse_links(monkeypatch)
        yield tmp_path / "deep" / "done"
        return
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has no second file system to write to")
    with tempfile.TemporaryDirectory(dir=other) as folder:
        yield Path(folder) / "deep" / "done"


def test_moves_keeping_subfolders_content_and_stamps(inbox: Path, done: Path) -> None:
    (inbox / "s" / "b.csv").chmod(0o640)
    before = (inbox / "s" / "b.csv").stat()
    assert move_file(subject(inbox, "s/b.csv"), str(done), TAG) == str(done / "s" / "b.csv")
    assert contents(inbox) == {"a.csv": "one"}
    assert contents(done) == {"s/b.csv": "two"}
    after = (done / "s" / "b.csv").stat()
    assert (after.st_mtime_ns, after.st_mode) == (before.st_mtime_ns, before.st_mode)


def test_never_overwrites(inbox: Path, done: Path) -> None:
    done.mkdir(parents=True)
    (done / "a.csv").write_text("older")
    assert move_file(subject(inbox, "a.csv"), str(done), TAG) == str(done / f"a-{TAG}.csv")
    assert contents(done) == {"a.csv": "older", f"a-{TAG}.csv": "one"}


def test_refuses_when_both_names_are_taken(inbox: Path, done: Path) -> None:
    done.mkdir(parents=True)
    for name in ("a.csv", f"a-{TAG}.csv"):
        (done / name).write_text("older")
    with pytest.raises(FileExistsError):
        move_file(subject(inbox, "a.csv"), str(done), TAG)
    assert (inbox / "a.csv").read_text() == "one"
    assert set(contents(done).values()) == {"older"}


def test_moving_again_finds_what_already_arrived(inbox: Path, done: Path) -> None:
    what = subject(inbox, "a.csv")
    first = move_file(what, str(done), TAG)
    assert move_file(what, str(done), TAG) == first
    assert contents(done) == {"a.csv": "one"}


def test_moving_again_finds_it_under_the_other_name(inbox: Path, done: Path) -> None:
    done.mkdir(parents=True)
    (done / "a.csv").write_text("older")
    what = subject(inbox, "a.csv")
    first = move_file(what, str(done), TAG)
    assert move_file(what, str(done), TAG) == first == str(done / f"a-{TAG}.csv")


def test_a_newer_version_stays_where_it_is(inbox: Path, done: Path) -> None:
    what = subject(inbox, "a.csv")
    (inbox / "a.csv").write_text("newer one")
    assert move_file(what, str(done), TAG) is None
    delete_file(what, TAG)
    assert contents(inbox)["a.csv"] == "newer one"
    assert contents(done) == {}


# ---------------------------------------------------------------- a file that comes in between


def arriving(inbox: Path, monkeypatch: pytest.MonkeyPatch, before: int) -> list[str]:
    """Let another program rename a new file into place right before so many-th rename or unlink.

    Returns what it has done by then, so that a test knows whether the moment came.
    """
    came: list[str] = []
    calls = count(1)

    def after(real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **named: Any) -> None:
            if next(calls) == before:
                (inbox / "new.tmp").write_text("newer")
                replace(inbox / "new.tmp", inbox / "a.csv")
                came.append("newer")
            real(*arguments, **named)

        return call

    replace = os.replace
    for name in ("rename", "unlink", "link"):
        monkeypatch.setattr(os, name, after(getattr(os, name)))
    return came


@pytest.mark.parametrize("before", range(1, 9))
def test_a_file_that_is_renamed_into_place_while_the_old_one_is_moved_stays(
    inbox: Path, done: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    what = subject(inbox, "a.csv")
    with monkeypatch.context() as patch:
        came = arriving(inbox, patch, before)
        with contextlib.suppress(TriggerError):
            move_file(what, str(done), TAG)
    found = contents(inbox)
    move_file(what, str(done), TAG)
    assert contents(inbox) == found, "nothing is left but the file"
    assert contents(done) in ({}, {"a.csv": "one"})
    if came:
        assert found == {"a.csv": "newer", "s/b.csv": "two"}
    else:
        assert found == {"s/b.csv": "two"} and contents(done) == {"a.csv": "one"}


@pytest.mark.parametrize("before", range(1, 5))
def test_a_file_that_is_renamed_into_place_while_the_old_one_is_deleted_stays(
    inbox: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    what = subject(inbox, "a.csv")
    came = arriving(inbox, monkeypatch, before)
    delete_file(what, TAG)
    assert contents(inbox) == {"s/b.csv": "two"} | ({"a.csv": "newer"} if came else {})


@pytest.mark.parametrize("call", ["link", "rename", "unlink", "fsync"])
@pytest.mark.parametrize("at", range(1, 5))
@pytest.mark.parametrize("newer", [False, True])
def test_a_crash_while_the_old_file_is_taken_away_leaves_the_newer_one(
    inbox: Path, done: Path, monkeypatch: pytest.MonkeyPatch, call: str, at: int, newer: bool
) -> None:
    what = subject(inbox, "a.csv")
    calls = count(1)
    real = getattr(os, call)

    def dies(*arguments: Any, **named: Any) -> None:
        if next(calls) == at:
            raise KeyboardInterrupt
        real(*arguments, **named)

    crashed = True
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, call, dies)
        move_file(what, str(done), TAG)
        crashed = False
    if newer:
        (inbox / "new.tmp").write_text("newer")
        (inbox / "new.tmp").replace(inbox / "a.csv")
    move_file(what, str(done), TAG)
    assert contents(inbox) == {"s/b.csv": "two"} | ({"a.csv": "newer"} if newer else {})
    kept = [text for text in contents(done).values() if text]  # without links a crash leaves a name
    assert kept == ["one"] or (newer and crashed and not kept)


def test_a_file_that_is_gone_is_fine(inbox: Path, done: Path) -> None:
    what = subject(inbox, "s/b.csv")
    (inbox / "s" / "b.csv").unlink()
    (inbox / "s").rmdir()
    assert move_file(what, str(done), TAG) is None
    delete_file(what, TAG)


def test_deletes(inbox: Path) -> None:
    what = subject(inbox, "a.csv")
    delete_file(what, TAG)
    delete_file(what, TAG)
    assert contents(inbox) == {"s/b.csv": "two"}


def test_a_target_that_leads_back_by_a_link_loses_nothing(inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(inbox)
    with pytest.raises(TriggerError, match="the folder the file is in"):
        move_file(subject(inbox, "a.csv"), str(tmp_path / "alias"), TAG)
    assert contents(inbox)["a.csv"] == "one"


def test_a_link_below_the_target_is_not_followed(inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "done" / "s").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="s"):
        move_file(subject(inbox, "s/b.csv"), str(tmp_path / "done"), TAG)
    assert contents(tmp_path / "elsewhere") == {}
    assert contents(inbox)["s/b.csv"] == "two"


@pytest.mark.parametrize("name", [b"n" * 255, b"x." + b"y" * 253, b"\xff\n.csv", b".hidden"])
def test_odd_names_move_byte_exact(inbox: Path, tmp_path: Path, name: bytes) -> None:
    path = os.fsdecode(name)
    done = tmp_path / "done"
    (inbox / path).write_text("odd")
    moved = move_file(subject(inbox, path), str(done), TAG)
    assert moved is not None
    assert os.fsencode(moved) == os.fsencode(done) + b"/" + name
    (inbox / path).write_text("odd again")
    tagged = move_file(subject(inbox, path), str(done), TAG)
    assert tagged is not None
    assert tagged != moved
    assert Path(tagged).read_text() == "odd again"


# ---------------------------------------------------------------- a copy that fails


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has no second file system to write to")
    with tempfile.TemporaryDirectory(dir=other) as folder:
        yield Path(folder)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse to write more than `size` bytes to a file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_copy_that_does_not_fit_leaves_nothing_in_the_target(
    inbox: Path, elsewhere: Path
) -> None:
    (inbox / "big.csv").write_bytes(b"x" * 400_000)
    with largest_file(200_000), pytest.raises(OSError, match="File too large"):
        move_file(subject(inbox, "big.csv"), str(elsewhere), TAG)
    assert list(elsewhere.iterdir()) == []
    assert (inbox / "big.csv").stat().st_size == 400_000
    assert move_file(subject(inbox, "big.csv"), str(elsewhere), TAG) is not None
    assert contents(elsewhere).keys() == {"big.csv"}


@pytest.mark.parametrize("became", ["gone", "another version"])
def test_a_copy_cut_short_by_a_crash_is_removed_when_the_file_is_not_there_to_copy(
    inbox: Path, elsewhere: Path, became: str
) -> None:
    what = subject(inbox, "a.csv")
    (elsewhere / f".{TAG}.part").write_text("half of")
    if became == "gone":
        (inbox / "a.csv").unlink()
    else:
        (inbox / "a.csv").write_text("newer")
    assert move_file(what, str(elsewhere), TAG) is None
    assert list(elsewhere.iterdir()) == []


# ---------------------------------------------------------------- a writer that is not done


def test_a_file_that_is_open_for_writing_waits(inbox: Path, done: Path) -> None:
    what = subject(inbox, "a.csv")
    with (inbox / "a.csv").open("a"):
        with pytest.raises(TooEarly):
            move_file(what, str(done), TAG)
        with pytest.raises(TooEarly):
            delete_file(what, TAG)
        assert (inbox / "a.csv").read_text() == "one"
        assert contents(done) == {}
    with (inbox / "a.csv").open():  # a reader is no reason to wait
        assert move_file(what, str(done), TAG) == str(done / "a.csv")


def test_what_a_writer_added_is_another_version_and_stays(inbox: Path, done: Path) -> None:
    what = subject(inbox, "a.csv")
    with (inbox / "a.csv").open("a") as writer:
        with pytest.raises(TooEarly):
            move_file(what, str(done), TAG)
        writer.write(" and the rest")
    assert move_file(what, str(done), TAG) is None
    assert (inbox / "a.csv").read_text() == "one and the rest"


def test_a_writer_that_comes_just_before_the_file_is_taken_away_keeps_it(
    inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, real = subject(inbox, "a.csv"), os.rename
    with contextlib.ExitStack() as stack:

        def rename(*arguments: Any, **named: Any) -> None:
            stack.enter_context((inbox / "a.csv").open("a"))
            real(*arguments, **named)

        with monkeypatch.context() as patch, pytest.raises(TooEarly, match=r"^'a.csv' is open"):
            patch.setattr(os, "rename", rename)
            delete_file(what, TAG)
    assert contents(inbox) == {"a.csv": "one", "s/b.csv": "two"}
    delete_file(what, TAG)
    assert contents(inbox) == {"s/b.csv": "two"}
