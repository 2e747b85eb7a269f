"""The glob: what it takes, where it starts, which folders it never enters."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.service.domain.errors import SetupError
from turnout.triggers.files import files, move
from turnout.triggers.files.pattern import Pattern


@pytest.mark.parametrize(
    ("pattern", "taken", "left"),
    [
        ("in/*.csv", ["a.csv", "-x.csv", "ä b.csv"], ["a.txt", ".a.csv", "s/a.csv", "a.csv.part"]),
        ("in/*", ["a", "a.b"], [".a", "a~", "a.tmp", "a.crdownload", "s/a"]),
        ("in/*.tmp", ["a.tmp"], ["a.tmp~"]),
        ("in/.*", [".a"], ["a"]),
        ("in/**/*.csv", ["a.csv", "s/a.csv", "s/t/u/a.csv"], [".s/a.csv", "s/.t/a.csv", "s/a"]),
        ("in/**", ["a", "s/a"], [".a", ".s/a"]),
        ("in/*/x/*.csv", ["a/x/1.csv"], ["x/1.csv", "a/b/x/1.csv", "a/y/1.csv"]),
        ("in/**/x/**/*.csv", ["x/1.csv", "a/x/b/1.csv"], ["a/b/1.csv"]),
        ("in/[ab]?.csv", ["a1.csv", "bb.csv"], ["c1.csv", "a.csv"]),
        ("in/orders.csv", ["orders.csv"], ["orders.csv.1", "s/orders.csv"]),
    ],
)
def test_takes_what_a_shell_would(pattern: str, taken: list[str], left: list[str]) -> None:
    glob = Pattern.of(pattern)
    assert [name for name in taken if not glob.matches(name)] == []
    assert [name for name in left if glob.matches(name)] == []


def test_newline_and_raw_bytes_are_ordinary_characters() -> None:
    glob = Pattern.of("in/*.csv")
    assert glob.matches("a\nb.csv")
    assert glob.matches(os.fsdecode(b"\xff\xfe.csv"))


@pytest.mark.parametrize(
    ("pattern", "root"),
    [
        ("*.csv", ""),
        ("in/*.csv", "in"),
        ("./in//deep/x*/*.csv", "in/deep"),
        ("in/orders.csv", "in"),
        ("in/sub/../*.csv", "in"),
    ],
)
def test_root_is_the_literal_folder_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, root: str
) -> None:
    monkeypatch.chdir(tmp_path)
    glob = Pattern.of(pattern)
    monkeypatch.chdir("/")  # fixed when it was read
    assert glob.root == str(tmp_path / root)


def test_absolute_pattern_keeps_its_root() -> None:
    assert Pattern.of("/srv/in/*.csv").root == "/srv/in"
    assert Pattern.of("/*.csv").root == "/"


@pytest.mark.parametrize("pattern", ["", "  ", "in/*/../x", "in/a**b/*.csv", "a\0b", "in/.."])
def test_what_cannot_work_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(SetupError, match=re.escape("files(")):
        Pattern.of(pattern)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("in/*.{csv,txt}", "braces"),
        ("in/{a,b}/*.csv", "braces"),
        ("in/{a/x,b/y}/*.csv", "braces"),
        ("in/{1..9}.csv", "braces"),
        ("in/[^a]*.dat", "[!…]"),
        ("~/in/*", "Path.home()"),
        ("~joe/in/*", "Path.home()"),
        ("$HOME/in/*", "os.environ"),
        ("/srv/${DAY}/*", "os.environ"),
        ("in/", 'such as "*"'),
        ("in/.", 'such as "*"'),
        ("in/..", 'such as "*"'),
        (".", 'such as "*"'),
        ("..", 'such as "*"'),
        ("/", 'such as "*"'),
        ("in/*/", 'such as "*"'),
        ("file:///in/*", "URL"),
        ("s3://bucket/*", "URL"),
        ("in/[abc", "[[]"),
        ("in/[]", "[[]"),
        ("in/[!]", "[[]"),
        ("in/[a/b]", "[[]"),
        ("in/[z-a]*", "[[]"),
        (" in/*.csv", "whitespace"),
        ("in/*.csv\n", "whitespace"),
        ("C:\\in\\*.csv", '"/"'),
        ("in/\\*.csv", '"[*]"'),
    ],
)
def test_what_can_only_be_a_mistake_is_refused_with_the_fix(pattern: str, hint: str) -> None:
    with pytest.raises(SetupError) as refused:
        Pattern.of(pattern)
    assert refused.value.message.startswith('files("')
    assert hint in refused.value.message


def test_a_path_in_place_of_a_text_is_refused_with_the_fix() -> None:
    with pytest.raises(SetupError, match=r'f"\{folder\}/'):
        files(Path("in/*.csv"))  # type: ignore[arg-type]  # an author may
    with pytest.raises(SetupError, match="str"):
        move(Path("done"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("in/[{]a,b}", "{a,b}"),
        ("in/{a}-{b},c", "{a}-{b},c"),
        ("in/[[]x]", "[x]"),
        ("in/[]]", "]"),
        ("in/[!a-c]", "d"),
        ("in/[!]]", "x"),
        ("in/a^b", "a^b"),
        ("in/[$]x", "$x"),
        ("in/a$b~c", "a$b~c"),
        ("in/[\\]", "\\"),
        ("in/a:b", "a:b"),
    ],
)
def test_odd_characters_have_a_way_to_be_written(pattern: str, name: str) -> None:
    assert Pattern.of(pattern).matches(name)


@pytest.mark.parametrize(
    "folder", ["~/done", "$HOME/done", "done/*", "file:///done", "done ", "a\0b"]
)
def test_a_target_that_can_only_be_a_mistake_is_refused(folder: str) -> None:
    with pytest.raises(SetupError, match=re.escape("move(")):
        move(folder)


def test_enters_only_folders_that_can_hold_a_match() -> None:
    assert not Pattern.of("in/*.csv").state_of("sub")
    assert not Pattern.of("in/*/x/*.csv").state_of("a/y")
    assert Pattern.of("in/*/x/*.csv").state_of("a/x")
    assert Pattern.of("in/**/*.csv").state_of("a/b/c/d")
    assert not Pattern.of("in/**/*.csv").state_of("a/.git")


names = st.text("ab.*", min_size=1, max_size=4)


@given(st.lists(names, min_size=1, max_size=4), st.lists(st.text("ab.", min_size=1), max_size=4))
def test_a_matching_file_lies_only_in_folders_that_are_entered(
    segments: list[str], parts: list[str]
) -> None:
    try:
        glob = Pattern.of("in/?/" + "/".join(segments))
    except SetupError:
        return
    path = "/".join(["x", *parts])
    if glob.matches(path):
        assert glob.state_of(path.rpartition("/")[0])
