"""The walk and the looks: regular files only, inside the root only, and never hanging."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from turnout.triggers.files.pattern import Pattern
from turnout.triggers.files.scan import Inspection, Other, Version, WalkReport, inspect, look, walk


def paths(root: Path, pattern: str = "**/*", **limits: int) -> tuple[list[str], WalkReport]:
    report = WalkReport()
    found = walk(
        str(root), Pattern.of(f"{root}/{pattern}"), report, max_depth=limits.get("max_depth", 32)
    )
    return sorted(path for path, _ in found), report


def test_finds_files_with_their_versions(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    file = tmp_path / "s" / "a.csv"
    file.write_text("four")
    report = WalkReport()
    [(path, version)] = walk(str(tmp_path), Pattern.of(f"{tmp_path}/**/*"), report, max_depth=9)
    assert path == "s/a.csv"
    assert version == Version.of(file.stat())
    assert version.size == 4
    assert report.folders.keys() == {"", "s"}


def test_refuses_everything_that_is_no_regular_file(tmp_path: Path) -> None:
    secret = tmp_path / "outside"
    secret.mkdir()
    (secret / "canary.csv").write_text("secret")
    root = tmp_path / "in"
    root.mkdir()
    (root / "link.csv").symlink_to(secret / "canary.csv")
    (root / "folder").symlink_to(secret)
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.csv")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket.csv"))
        (root / "good.csv").write_text("good")
        found, report = paths(root)
        assert found == ["good.csv"]
        assert report.refused == {"link.csv", "folder", "loop", "pipe.csv", "socket.csv"}
        special = ["link.csv", "pipe.csv", "socket.csv"]
        assert look(str(root), special) == [Other.REFUSED] * 3
        assert inspect(str(root), special) == [Inspection(Other.REFUSED)] * 3
        assert inspect(str(root), ["folder/canary.csv"])[0].found is Other.GONE


def test_a_name_swapped_for_a_link_or_a_pipe_is_never_followed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("x" * 4711)
    root = tmp_path / "in"
    root.mkdir()
    file = root / "a.csv"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for make in (
                lambda spare: spare.write_text("ok"),
                lambda spare: spare.symlink_to(canary),
                lambda spare: os.mkfifo(spare),
            ):
                spare = tmp_path / "spare"
                make(spare)
                spare.rename(file)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        sizes = set()
        for _ in range(3000):
            found = inspect(str(root), ["a.csv"])[0].found
            if isinstance(found, Version):
                sizes.add(found.size)
    finally:
        stop.set()
        thread.join()
    assert 4711 not in sizes


def test_deep_folders_are_refused_not_entered(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for folder in ("", "a", "a/b"):
        (tmp_path / folder / "f").touch()
    found, report = paths(tmp_path, max_depth=1)
    assert (found, set(report.folders), report.refused) == (["a/f", "f"], {"", "a"}, {"a/b"})
    assert paths(tmp_path, max_depth=0)[0] == ["f"]


def test_a_missing_root_is_an_error_and_a_missing_folder_is_not(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        paths(tmp_path / "nowhere")
    pattern = Pattern.of(f"{tmp_path}/**/*")
    assert list(walk(str(tmp_path), pattern, WalkReport(), below="gone", max_depth=9)) == []


def test_says_when_nobody_has_the_file_open_for_writing(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with file.open("w") as writer:
        writer.write("x")
        assert not inspect(str(tmp_path), ["a"], ask_closed=True)[0].closed
    assert inspect(str(tmp_path), ["a"], ask_closed=True)[0].closed
    with file.open("a"):  # and the answer left nothing behind that would hinder a writer
        pass


def test_odd_names_survive_as_bytes(tmp_path: Path) -> None:
    names = [b"\xff\xfe", "emoji \U0001f600".encode(), b"new\nline", b"\x1b[31m", b"n" * 255]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    found, _ = paths(tmp_path)
    assert sorted(os.fsencode(path) for path in found) == sorted(names)
