"""The page of an approval in a real browser: everybody can use it, on a phone, without scripts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browser import Browser, browsing
from tests.support.program import Program, until

from .test_approval_page import opened, program

__all__ = ["program"]

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

PHONE, DESK = 375, 1280


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as started:
        yield started


def url(program: Program, path: str) -> str:
    return f"http://127.0.0.1:{program.port}{path}"


def check(browser: Browser, what: str) -> None:
    """Look at the page on a phone and at a desk, by day and by night."""
    for width in (PHONE, DESK):
        for dark in (False, True):
            browser.look_like(width, dark=dark)
            seen = f"{what}, {width} pixels, {'dark' if dark else 'light'}"
            found = browser.axe()
            assert found["violations"] == [], seen
            assert found["incomplete"] == [], seen
            assert len(found["passes"]) > 10, seen
            wide = browser.value("document.documentElement.scrollWidth")
            assert wide <= width, f"{seen}: it scrolls sideways, {wide} pixels"


SMALL = """[...document.querySelectorAll("input, select, textarea, button")]
    .map((each) => [each.name, each.type, each.getBoundingClientRect()])
    .filter(([, type, box]) => box.height < (type === "checkbox" ? 24 : 44))
    .map(([name]) => name)"""


def test_axe_finds_what_is_wrong_with_a_page(browser: Browser) -> None:
    browser.look_like(PHONE)
    browser.open("data:text/html,<img src=x><input><p style='color:%23ccc'>pale</p>")
    found = {each.partition(":")[0] for each in browser.axe()["violations"]}
    assert {"image-alt", "label", "color-contrast", "html-has-lang"} <= found


def test_nothing_of_the_page_keeps_anybody_out(program: Program, browser: Browser) -> None:
    _, path = opened(program)
    browser.look_like(PHONE)
    browser.open(url(program, path))
    check(browser, "the question")
    browser.look_like(PHONE)
    assert browser.value(SMALL) == [], "too small for a finger"
    browser.write("[name='field.euros']", "many")
    browser.press("button[value=true]")
    assert "Input should be a valid integer" in browser.text()
    check(browser, "after an answer that was refused")
    browser.look_like(PHONE)
    browser.press("button.no")
    assert "<h1>Rejected</h1>" in browser.text()
    check(browser, "after the answer")
    browser.open(url(program, path))
    assert "<h1>Nothing to answer here</h1>" in browser.text()
    check(browser, "a used link")


def test_it_is_answered_on_a_phone_without_scripts(program: Program, browser: Browser) -> None:
    run_id, path = opened(program)
    browser.look_like(PHONE, script=False)
    browser.open(url(program, path))
    browser.write("[name='field.euros']", "7")
    browser.write("[name='field.note']", "by phone")
    browser.write("[name=by]", "Ada")
    browser.press("[name='field.express']", follows=False)
    browser.press("button[value=true]")
    assert "Thank you, Ada" in browser.text()
    until(lambda: program.api(f"/runs/{run_id}")["state"] == "succeeded", 10, "it goes on")
    result = program.api(f"/runs/{run_id}")["result"]
    assert (result["by"], result["euros"], result["note"], result["express"]) == (
        "Ada", 7, "by phone", True,
    )  # fmt: skip
