"""The page behind a signed link, on which a person answers an approval once.

GET shows the page and answers nothing, because mail programs open links by themselves. POST
answers: the page's form, or JSON `{"approve": true, "fields": {…}, "reason": "…"}`. The link is
the permission, so no token is needed, unlike for `POST /api/runs/RUN/approve`, a verb of the API.
Not here: the page (`approval_page`), making links (`governance.links`).
"""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from turnout.service.domain.errors import Expired, InvalidData, NotFound, Refused
from turnout.service.domain.payload import decode, decode_json
from turnout.service.domain.run import Run
from turnout.service.governance.links import Question
from turnout.service.journal.records import StepRecord, UsedLink
from turnout.service.operate import documents
from turnout.service.operate.verbs import Answer
from turnout.service.steps.approval import find_fields

from . import approval_page
from .approval_form import answered_fields, form_fields
from .rest.authorization import Served, ServiceOf
from .rest.bodies import read_answer
from .rest.request_body import read_request

router = APIRouter(prefix="/approvals", include_in_schema=False)

FORM = b"application/x-www-form-urlencoded"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Robots-Tag": "noindex",
}


@router.get("/{token}")
async def ask(service: ServiceOf, request: Request, token: str) -> Response:
    """Show the question and a form to answer it; to a browser also why there is none."""
    try:
        question, run, step = await _open(service, token)
    except (Expired, NotFound) as error:
        if "text/html" not in request.headers.get("accept", ""):
            raise
        status = 410 if isinstance(error, Expired) else 404
        return _page(approval_page.closed(str(error)), status=status)
    return _page(approval_page.question(question, run, step))


@router.post("/{token}")
async def answer(service: ServiceOf, request: Request, token: str) -> Response:
    """Take the answer: 200, 404 for an invalid link, 410 for a used or expired one, 422.

    A form that cannot be taken is shown again, with what is wrong with it.
    """
    question, run, step = await _open(service, token)
    headers, body = await read_request(request, service)
    is_form = headers.get("content-type", [b""])[0].startswith(FORM)
    if not is_form:
        said = decode_json(body)
        await _store(service, question, run, said)
        document = {"run": run.id, "answer": _word(said)}
        return Response(documents.encode(document), media_type="application/json")
    form: dict[str, Any] = decode(body, "form")
    try:
        said = _said(form, step)
        await _store(service, question, run, said)
    except InvalidData as error:
        return _page(approval_page.question(question, run, step, form, error), status=422)
    return _page(approval_page.thanks(_word(said), said.get("by")))


async def _store(service: Served, question: Question, run: Run, said: Any) -> None:
    used = UsedLink(question.digest, question.until)
    fields = read_answer(said, by="", step=question.key)
    try:
        await service.operator.do(Answer(run_id=run.id, link=used, **fields))
    except Refused as error:  # someone else answered first
        raise Expired(str(error)) from None


def _word(said: Any) -> str:
    return "approved" if said["approve"] else "rejected"


def _said(form: dict[str, Any], step: StepRecord) -> dict[str, Any]:
    """Return the answer of a form as a body has it."""
    approve = {"true": True, "false": False}.get(str(form.get("approve")))
    said = {"approve": approve, "by": form.get("by"), "reason": form.get("reason")}
    declared = find_fields(orjson.loads(step.result or b"{}").get("fields"))
    if approve:
        fields = None if declared is None else form_fields(declared)
        said["fields"] = answered_fields(fields, form)
    return said


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


def _page(text: str, *, status: int = 200) -> Response:
    return HTMLResponse(text, status, headers=_HEADERS)
