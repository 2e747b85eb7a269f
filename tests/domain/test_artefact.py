"""Which names and types an artefact may have."""

from __future__ import annotations

import pytest

from turnout.service.domain.artefact import check_name, check_type
from turnout.service.domain.errors import NotKept

HOSTILE = {
    "": "it is empty",
    "..": "it begins with a dot or a dash",
    ".": "it begins with a dot or a dash",
    ".bashrc": "it begins with a dot or a dash",
    "-rf": "it begins with a dot or a dash",
    "../a": "without / and",
    "a/b": "without / and",
    "/etc/passwd": "without / and",
    "..\\a": "without / and",
    "a\nb": "cannot be seen",
    "a\x00b": "cannot be seen",
    "a\x1b[2Jb": "cannot be seen",
    "a\x9bb": "cannot be seen",
    "a\u202egnp.exe": "cannot be seen",
    "a\u200bb": "cannot be seen",
    "a\u2028b": "cannot be seen",
    "a\ud800": "cannot be seen",
    "a\u3164b": "cannot be seen",
    "\u1160": "cannot be seen",
    "\u2800": "cannot be seen",
    "a.txt\ufe0f": "cannot be seen",
    "a\U000e0100": "cannot be seen",
    "a\u034fb": "cannot be seen",
    " a": "blanks around it",
    "a\u00a0": "cannot be seen",
    "x" * 300: "more than 255 bytes",
    "\u00e9" * 128: "more than 255 bytes",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_no_plain_file_name_is_refused(name: str) -> None:
    with pytest.raises(NotKept, match=HOSTILE[name]) as refused:
        check_name(name)
    assert str(refused.value).isascii(), "what is refused is shown without its effect"


@pytest.mark.parametrize(
    "name",
    ["a", "report 2026.pdf", "\u00fcber.csv", "<script>.svg", 'a"b.txt', "x" * 255, "%2e%2e"],
)
def test_any_other_name_may_be_used(name: str) -> None:
    assert check_name(name) == name


def test_what_is_no_text_is_no_name() -> None:
    with pytest.raises(NotKept, match="the name of an artefact is text, not int"):
        check_name(7)


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("a.png", "image/png"), ("a.CSV", "text/csv"), ("a.html", "text/html"),
        ("a.svg", "image/svg+xml"), ("a.tar.gz", "application/gzip"),
        ("a", "application/octet-stream"),
    ],
)  # fmt: skip
def test_the_type_is_what_the_name_says(name: str, type_: str) -> None:
    assert check_type(None, name) == type_


def test_a_type_can_be_given() -> None:
    assert check_type("Application/PDF", "a.txt") == "application/pdf"


@pytest.mark.parametrize(
    "type_",
    ["", "text", "text/", "/html", "text/html; x=y", "a/b\r\nX: y", "a b/c", "t/" + "x" * 99],
)
def test_what_is_no_media_type_is_refused(type_: str) -> None:
    with pytest.raises(NotKept, match="write a media type such as text/csv"):
        check_type(type_, "a")
