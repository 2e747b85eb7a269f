"""The page of an approval: the question, the data that matter, and a form; no script.

Everything it shows is escaped, for it comes from authors, senders, models and approvers. So are
characters that cannot be seen: who approves must see what is approved, and in its order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import orjson

from turnout.service.domain.errors import InvalidData
from turnout.service.domain.run import Run
from turnout.service.governance.links import Question
from turnout.service.journal.records import StepRecord
from turnout.service.steps.approval import find_fields
from turnout.service.telemetry.unseen import IN_TEXT, python_escape

from .approval_form import form_fields, inputs

_STYLE = Path(__file__).with_suffix(".css")
_NOTHING: Mapping[str, Any] = {}


def question(
    question: Question,
    run: Run,
    step: StepRecord,
    given: Mapping[str, Any] = _NOTHING,
    problem: InvalidData | None = None,
) -> str:
    """Return the page that asks; after an answer that was refused, with it and the problem."""
    asked = orjson.loads(step.result or b"{}")
    name = str(asked.get("approval"))
    declared = find_fields(asked.get("fields"))
    fields = "" if declared is None else inputs(form_fields(declared), given, problem)
    alert = "" if problem is None else f'<p class="alert" role="alert">{escape(str(problem))}</p>'
    content = (
        f"<h1>{_shown(asked.get('text') or f'Approve: {name}?')}</h1>"
        f"{alert}{_facts(question, run, name)}{_data(asked.get('data'))}"
        f'<form method="post">{fields}{_person(given)}{_BUTTONS}</form>'
        '<p class="hint">This link answers once. Whoever holds it can answer: pass it on to nobody.'
        "</p>"
    )
    return _document("Approval", content)


def thanks(word: str, by: str | None) -> str:
    """Return the page after the answer."""
    who = f", {escape(by)}" if by else ""
    said = f"<p>Thank you{who}: the run goes on with your answer.</p>"
    return _document(word.capitalize(), f"<h1>{word.capitalize()}</h1>{said}")


def closed(reason: str) -> str:
    """Return the page of a link that answers nothing any more."""
    sentence = f"{reason[:1].upper()}{reason[1:]}."
    return _document("Approval", f"<h1>Nothing to answer here</h1><p>{escape(sentence)}</p>")


def _facts(question: Question, run: Run, name: str) -> str:
    """Return who is asked, by which run, and until when."""
    until = question.until
    return (
        f"<p>Asked of <b>{escape(name)}</b> by flow <b>{escape(run.flow)}</b>, run "
        f"<code>{escape(run.id[-8:])}</code>, until "
        f'<time datetime="{until.isoformat()}">{until:%Y-%m-%d %H:%M} UTC</time>.</p>'
    )


def _data(data: Any) -> str:
    """Return the data that matter, each under its name."""
    if not isinstance(data, dict) or not data:
        return ""
    rows = (f"<dt>{_shown(key)}</dt><dd>{_value(value)}</dd>" for key, value in data.items())
    return f"<dl>{''.join(rows)}</dl>"


def _value(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"<pre>{_shown(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    return _shown(value)


def _shown(value: object) -> str:
    return escape(IN_TEXT.sub(python_escape, str(value)))


def _person(given: Mapping[str, Any]) -> str:
    by, reason = (escape(str(given.get(name) or "")) for name in ("by", "reason"))
    return (
        '<div class="field"><label for="by">Your name (optional)</label>'
        '<p class="hint" id="by-hint">It is kept as you write it, beside the link you hold.</p>'
        '<input id="by" name="by" maxlength="200" autocomplete="name" aria-describedby="by-hint" '
        f'value="{by}"></div>'
        '<div class="field"><label for="reason">Reason, if you reject it (optional)</label>'
        f'<textarea id="reason" name="reason" maxlength="2000" rows="2">{reason}</textarea></div>'
    )


_BUTTONS = (
    '<div class="buttons"><button name="approve" value="true">Approve</button>'
    '<button name="approve" value="false" class="no" formnovalidate>Reject</button></div>'
)


@lru_cache(maxsize=1)
def _style() -> str:
    return _STYLE.read_text("utf-8")


def _document(title: str, content: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_style()}</style></head><body><main>{content}</main></body></html>"
    )
