"""The page behind a signed link, on which a person answers an approval once.

GET shows the page and answers nothing, because mail programs open links by themselves. POST
answers: the page's form, or JSON `{"approve": true, "fields": {…}, "reason": "…"}`. The link is
the permission, so no token is needed, unlike for `POST /api/runs/RUN/approve`, a verb of the API.
Not here: making links (`governance.links`).
"""

from __future__ import annotations

import html
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from turnout.service.domain.errors import Expired, NotFound, Refused
from turnout.service.domain.payload import decode, decode_json
from turnout.service.domain.run import Run
from turnout.service.governance.links import Question
from turnout.service.journal.records import StepRecord, UsedLink
from turnout.service.operate import documents
from turnout.service.operate.verbs import Answer

from .rest.authorization import Served, ServiceOf
from .rest.bodies import read_answer
from .rest.request_body import read_request

router = APIRouter(prefix="/approvals", include_in_schema=False)

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Robots-Tag": "noindex",
}


@router.get("/{token}")
async def ask(service: ServiceOf, token: str) -> Response:
    """Show the question and a form to answer it."""
    question, run, step = await _open(service, token)
    asked = orjson.loads(step.result or b"{}")
    return _page(
        f"<h1>{html.escape(str(asked.get('approval')))}: approve?</h1>"
        f"<p>Flow <b>{html.escape(run.flow)}</b>, run {html.escape(run.id)}.</p>"
        '<form method="post">'
        + (
            '<p><label>Fields, as JSON<br><textarea name="fields" rows="6" cols="60">{}</textarea>'
            "</label></p>"
            if asked.get("fields")
            else ""
        )
        + '<p><label>Your name<br><input name="by" maxlength="200"></label></p>'
        '<p><label>Reason<br><input name="reason" maxlength="2000" size="60"></label></p>'
        '<p><button name="approve" value="true">Approve</button> '
        '<button name="approve" value="false">Reject</button></p></form>'
        f"<p>This link works once and until {html.escape(str(documents.instant(question.until)))}."
        "</p>"
    )


@router.post("/{token}")
async def answer(service: ServiceOf, request: Request, token: str) -> Response:
    """Take the answer: 200, 404 for an invalid link, 410 for a used or expired one."""
    question, run, _step = await _open(service, token)
    headers, body = await read_request(request, service)
    form = headers.get("content-type", [b""])[0].startswith(b"application/x-www-form-urlencoded")
    answered = _form(body) if form else decode_json(body)
    used = UsedLink(question.digest, question.until)
    fields = read_answer(answered, by="link", step=question.key)
    try:
        await service.operator.do(Answer(run_id=run.id, link=used, **fields))
    except Refused as error:  # someone else answered first
        raise Expired(str(error)) from None
    word = "approved" if answered["approve"] else "rejected"
    if form:
        return _page(f"<h1>{word.capitalize()}</h1><p>Thank you; the run resumes.</p>")
    return Response(
        documents.encode({"run": run.id, "answer": word}), media_type="application/json"
    )


async def _open(service: Served, token: str) -> tuple[Question, Run, StepRecord]:
    """Return the open question behind a link."""
    question = service.links.read(token, now=service.now())
    if await service.journal.is_used(question.digest):
        raise Expired("this link has been used; ask for a new one")
    run = await service.journal.run(question.run_id)
    if run is None:
        raise NotFound("the run behind this link has been deleted")
    waits = await service.journal.waits(run.seq, question.key)
    for step in await service.journal.steps(run.seq):
        if step.key == question.key and waits and waits[0].answer is None:
            if question.asked_at not in (None, step.started_at):
                raise Expired("the run has asked anew since; use its new link")
            return question, run, step
    raise Expired("this approval was answered already, or is no longer open")


def _form(body: bytes) -> dict[str, Any]:
    answered: dict[str, Any] = decode(body, "form")
    answered["approve"] = {"true": True, "false": False}.get(str(answered.get("approve")))
    if answered.get("fields"):
        answered["fields"] = decode_json(str(answered["fields"]).encode())
    return answered


def _page(content: str) -> Response:
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Approval</title>'
        '<meta name="viewport" content="width=device-width">'
        "<style>body{font:1rem/1.5 system-ui;max-width:40rem;margin:3rem auto;padding:0 1rem}"
        f"</style><body>{content}</body></html>"
    )
    return HTMLResponse(page, headers=_HEADERS)
