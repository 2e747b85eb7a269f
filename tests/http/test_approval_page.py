"""The page of an approval: the question, the data, a form for the fields; it needs no script."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from textwrap import dedent
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.program import Answer, Program, turnout, until
from turnout.service.telemetry.unseen import IN_TEXT

pytestmark = pytest.mark.slow

FLOWS = """
    from datetime import date
    from enum import Enum
    from typing import Literal
    from pydantic import BaseModel, Field
    from turnout import approval, event, flow, secret

    class Kind(Enum):
        small = "small"
        large = "large"

    class Item(BaseModel):
        name: str

    class Budget(BaseModel):
        euros: int = Field(description="Whole euros", ge=1)
        note: str = Field("", title="A note", max_length=100)
        kind: Kind = Kind.small
        level: Literal[1, 2]
        express: bool = False
        due: date | None = None
        items: list[Item] = []

    @flow(on=event("asked"))
    async def asked(data: dict) -> dict:
        said = await approval(
            "purchasing", fields=Budget, text="Buy the <new> cutter?",
            data={
                "supplier": "ACME & Sons", "lines": [{"sku": "L-1", "is\\u202e": "\\u200b"}],
                "file\\u2066": "\\u202egpj.exe\\x1b[2J", "words": "two\\nlines",
            },
            timeout="2d",
        )
        return {"by": said.by, **said.fields.model_dump(mode="json")}
"""


class Page(HTMLParser):
    """The inputs, labels and words of a page."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.status = answer.status
        self.html = answer.body.decode()
        self.inputs: dict[str, dict[str, str | None]] = {}
        self.labelled: set[str] = set()
        self.tags: list[str] = []
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if tag in ("input", "select", "textarea"):
            self.inputs[str(found["name"])] = {"tag": tag, **found}
        elif tag == "label":
            self.labelled.add(str(found["for"]))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("page")
    flows = folder / "flows.py"
    flows.write_text(dedent(FLOWS).lstrip())
    with Program(flows=flows, data=folder / "data", log=folder / "log").start() as program:
        program.ready()
        yield program


def opened(program: Program) -> tuple[str, str]:
    """Start a run that asks; returns its id and the path of its page."""
    sent = turnout("emit", "--type", "asked", "--input", "{}", "--json", "--data", program.data)
    run_id = sent.stdout.split('"runs":["')[1].split('"')[0]

    def link() -> str | None:
        listed: list[Any] = program.api("/approvals")["items"]
        return next((each["link"] for each in listed if each["run"] == run_id), None)

    return run_id, until(link, 10, "it asks").partition(f":{program.port}")[2]


def page(program: Program, path: str, **form: str) -> Page:
    if not form:
        answer = program.ask(path)
    else:
        sent = {name.replace("__", "."): text for name, text in form.items()}
        headers = {"content-type": "application/x-www-form-urlencoded"}
        answer = program.ask(path, method="POST", body=urlencode(sent).encode(), headers=headers)
    assert answer is not None
    return Page(answer)


def test_it_shows_the_question_the_data_and_an_input_for_each_field(program: Program) -> None:
    shown = page(program, opened(program)[1])
    assert "<h1>Buy the &lt;new&gt; cutter?</h1>" in shown.html
    assert "<dt>supplier</dt><dd>ACME &amp; Sons</dd>" in shown.html and "L-1" in shown.html
    assert "<dt>file\\u2066</dt><dd>\\u202egpj.exe\\x1b[2J</dd>" in shown.html
    assert "&quot;is\\u202e&quot;: &quot;\\u200b&quot;" in shown.html
    assert "<dd>two\nlines</dd>" in shown.html
    assert not IN_TEXT.search(shown.html), "what cannot be seen is written out"
    assert (
        "Asked of <b>purchasing</b> by flow <b>asked</b>" in shown.html
        and " UTC</time>" in shown.html
    )
    tags = {name: (each["tag"], each.get("type")) for name, each in shown.inputs.items()}
    assert tags == {
        "field.euros": ("input", "text"), "field.note": ("input", "text"),
        "field.kind": ("select", None), "field.level": ("select", None),
        "field.express": ("input", "checkbox"), "field.due": ("input", "date"),
        "field.items": ("textarea", None), "by": ("input", None), "reason": ("textarea", None),
    }  # fmt: skip
    assert shown.inputs["field.euros"]["inputmode"] == "numeric"
    assert shown.inputs["field.note"]["maxlength"] == "100"
    assert {str(each["id"]) for each in shown.inputs.values()} == shown.labelled
    assert "script" not in shown.tags and '<html lang="en">' in shown.html
    assert "width=device-width" in shown.html


def test_a_form_is_read_by_the_types_of_its_fields(program: Program) -> None:
    run_id, path = opened(program)
    done = page(program, path, approve="true", field__euros=str(2**70), field__level="2",
                field__express="true", field__kind='"large"', field__due="2026-03-01",
                field__items='[{"name": "a"}]', field__note="ok", by="Ada")  # fmt: skip
    assert done.status == 200 and "Thank you, Ada" in done.html
    until(lambda: program.api(f"/runs/{run_id}")["state"] == "succeeded", 10, "it goes on")
    run = program.api(f"/runs/{run_id}")
    assert run["result"] == {
        "by": "Ada", "euros": 2**70, "note": "ok", "kind": "large", "level": 2, "express": True,
        "due": "2026-03-01", "items": [{"name": "a"}],
    }  # fmt: skip
    [answer] = run["answers"]
    assert (answer["step"], answer["approved"], answer["by"]) == ("approval#1", True, "Ada")
    assert answer["via"].startswith("link ")


def test_what_is_wrong_is_said_at_its_field_and_the_rest_stays(program: Program) -> None:
    _, path = opened(program)
    again = page(program, path, approve="true", field__euros="many", field__level="2", by="<Ada>")
    assert again.status == 422
    assert 'role="alert">euros: Input should be a valid integer' in again.html
    euros = again.inputs["field.euros"]
    assert euros["aria-invalid"] == "true" and euros["value"] == "many"
    assert "field.euros-wrong" in str(euros["aria-describedby"])
    assert again.inputs["by"]["value"] == "<Ada>" and "&lt;Ada&gt;" in again.html
    again = page(
        program, path, approve="true", field__euros="1", field__level="2", field__items="["
    )
    assert again.status == 422 and "items: this is not JSON" in again.html


def test_a_no_needs_no_fields(program: Program) -> None:
    run_id, path = opened(program)
    assert "Rejected" in page(program, path, approve="false", reason="too dear").html
    until(lambda: program.api(f"/runs/{run_id}")["state"] == "failed", 10, "the no")
    run = program.api(f"/runs/{run_id}")
    assert run["error"]["message"] == "purchasing said no: too dear"
    [answer] = run["answers"]
    assert (answer["approved"], answer["by"]) == (False, "")
    assert page(program, path, approve="true").status == 410
    told = program.ask(path, headers={"accept": "text/html,*/*"})
    assert told is not None and told.status == 410
    assert b"<h1>Nothing to answer here</h1><p>This link has been used" in told.body


def test_a_token_is_told_apart_from_a_link(program: Program) -> None:
    run_id, _ = opened(program)
    done = turnout(
        "approve", run_id, "--fields", '{"euros": 1, "level": 1}', "--by", "bob",
        "--data", program.data,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [answer] = program.api(f"/runs/{run_id}")["answers"]
    assert (answer["via"], answer["by"]) == ("API token", "bob")
    shown = turnout("show", run_id, "--data", program.data).stdout
    assert "approval#1  yes" in shown and "API token" in shown and "bob" in shown
