"""Approvals: a person answers once, by command, API or link; what is filled in is checked."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
from pydantic import BaseModel, field_validator

from tests.support.program import Program, turnout, until
from tests.support.running import Running, eventually, running
from turnout import Rejected, approval, flow, gather, task
from turnout.service.domain.errors import Expired, InvalidData, NotFound, Refused, SetupError
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.governance.links import Links, load_or_make_key
from turnout.service.operate.verbs import Answer
from turnout.service.steps.approval import Approval


class Budget(BaseModel):
    euros: int
    note: str = ""

    @field_validator("note")
    @classmethod
    def _known(cls, note: str) -> str:
        return {"": "", "new": "new"}[note]


sent: list[str] = []


@pytest.fixture(autouse=True)
def nothing_sent() -> None:
    sent.clear()


@task
async def send(link: str) -> None:
    sent.append(link)


@flow
async def purchase() -> dict[str, Any]:
    asked = approval("buyer", fields=Budget)
    await send(asked.link)
    said = await asked
    return {"euros": said.fields.euros, "by": said.by}


async def asked(service: Running) -> str:
    """Start the flow and wait until it asks."""
    run_id = (await service.send()).runs[0]

    async def waits() -> bool:
        return (await service.run(run_id)).state is RunState.WAITING

    await eventually(waits)
    return run_id


async def test_a_yes_with_fields_lets_the_run_go_on(tmp_path: Path) -> None:
    async with running(tmp_path, [purchase]) as service:
        run_id = await asked(service)
        operator = service.process.operator
        with pytest.raises(InvalidData, match="euros"):
            await operator.do(Answer(run_id, approved=True, fields={"euros": "many"}))
        with pytest.raises(InvalidData, match="cannot be checked: KeyError: 'odd'"):
            await operator.do(Answer(run_id, approved=True, fields={"euros": 5, "note": "odd"}))
        assert (await service.run(run_id)).state is RunState.WAITING
        await operator.do(Answer(run_id, approved=True, fields={"euros": 5}, by="buyer 1"))
        run = await service.finished(run_id)
        with pytest.raises(Refused):
            await operator.do(Answer(run_id, approved=True, fields={"euros": 6}))
        steps = {step.key: step for step in await service.process.journal.steps(run.seq)}
    said = {"name": "buyer", "by": "buyer 1", "fields": {"euros": 5}}
    assert orjson.loads(steps["approval#1"].result or b"") == said, "for whoever asks later"
    assert orjson.loads(run.result or b"") == {"euros": 5, "by": "buyer 1"}
    assert len(sent) == 1


def test_what_an_answer_does_not_have_is_told_with_what_it_has() -> None:
    said: Any = Approval("ops", "ada", {"euros": 1})
    with pytest.raises(AttributeError, match=r"said has no 'answer'; did you mean said\.fields\?"):
        _ = said.answer


async def test_an_answer_is_given_once_and_kept_over_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path, [purchase]) as service:
        run_id = await asked(service)
        service.process.dispatcher.pause("purchase")
        await service.process.operator.do(Answer(run_id, approved=True, fields={"euros": 5}))
        with pytest.raises(Refused, match="answered already"):
            await service.process.operator.do(Answer(run_id, approved=False))
    async with running(tmp_path, [purchase]) as service:
        run = await service.finished(run_id)
    assert orjson.loads(run.result or b"")["euros"] == 5


async def test_a_no_fails_the_run_with_the_reason(tmp_path: Path) -> None:
    async with running(tmp_path, [purchase]) as service:
        run_id = await asked(service)
        await service.process.operator.do(Answer(run_id, approved=False, reason="too dear"))
        run = await service.finished(run_id)
    assert run.error is not None
    assert (run.error.type, run.error.message) == ("rejected", "buyer said no: too dear")


@flow
async def tells_each_time() -> str:
    question = approval("x")
    sent.append(question.link)
    await send(question.link)
    return (await question).by


async def test_a_link_is_the_same_in_every_attempt(tmp_path: Path) -> None:
    async with running(tmp_path, [tells_each_time]) as service:
        run_id = await asked(service)
        await service.process.operator.do(Answer(run_id, approved=True, by="me"))
        run = await service.finished(run_id)
        attempts = await service.process.journal.attempts(run.seq)
    assert run.result == b'"me"'
    assert len(sent) == 3 and len({*sent}) == 1, "twice by the flow, once by the step"
    assert not any(b"arguments_differ" in (attempt.log or b"") for attempt in attempts)


@flow
async def listens_twice() -> list[str]:
    question, answers = approval("x"), []
    for _ in range(2):
        try:
            answers.append((await question).by)
        except Rejected as no:
            answers.append(str(no))
    return answers


@pytest.mark.parametrize(("yes", "heard"), [(True, "me"), (False, "x said no: why")])
async def test_an_answer_may_be_awaited_again(tmp_path: Path, yes: bool, heard: str) -> None:
    async with running(tmp_path, [listens_twice]) as service:
        run_id = await asked(service)
        await service.process.operator.do(Answer(run_id, approved=yes, by="me", reason="why"))
        run = await service.finished(run_id)
    assert orjson.loads(run.result or b"") == [heard, heard]


@flow
async def asks_two() -> list[str]:
    third = approval("third", timeout="50ms")
    answers: tuple[Any, ...] = await gather(
        _asks("first"), _asks("second"), third, return_exceptions=True
    )
    return [answer if isinstance(answer, str) else type(answer).__name__ for answer in answers]


async def _asks(name: str) -> str:
    try:
        return (await approval(name)).name
    except Rejected:
        return f"not {name}"


async def test_of_several_approvals_one_is_named_and_one_may_time_out(tmp_path: Path) -> None:
    async with running(tmp_path, [asks_two]) as service:
        run_id = await asked(service)
        do = service.process.operator.do
        with pytest.raises(Refused, match="several"):
            await do(Answer(run_id, approved=True))
        await do(Answer(run_id, approved=True, step="gather#1[1]/approval#1"))
        await do(Answer(run_id, approved=False, step="gather#1[0]/approval#1"))
        run = await service.finished(run_id)
    assert orjson.loads(run.result or b"") == ["not first", "second", "TimeoutError"]


@flow
async def asks_for_the_unfindable() -> None:
    class Inner(BaseModel):
        euros: int

    await approval("x", fields=Inner)


async def test_a_class_nobody_finds_again_is_refused_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, [asks_for_the_unfindable]) as service:
        run = await service.finished((await service.send()).runs[0])
    assert run.error is not None and "at the top of a file" in run.error.message


# ---------------------------------------------------------------- links


def test_a_link_is_read_back_and_nothing_else_is(tmp_path: Path) -> None:
    key = load_or_make_key(tmp_path)
    links, now = Links(key, "https://flows.example/base/"), utc_now()
    link = links.address("run-1", "approval#1", now + timedelta(hours=1), now)
    base, _, token = link.rpartition("/")
    assert base == "https://flows.example/base/approvals"
    question = links.read(token, now=now)
    assert (question.run_id, question.key) == ("run-1", "approval#1")
    with pytest.raises(Expired, match="expired"):
        links.read(token, now=now + timedelta(hours=2))
    for false in ("", "x", token[:-1], token + "A", token.swapcase(), "é"):
        with pytest.raises(NotFound, match="not one of ours"):
            links.read(false, now=now)
    with pytest.raises(NotFound):
        Links(b"another key", "").read(token, now=now)


def test_the_key_stays_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    key = load_or_make_key(tmp_path)
    assert load_or_make_key(tmp_path) == key and len(key) == 32
    path = tmp_path / "approval-key"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(SetupError, match="chmod 600"):
        load_or_make_key(tmp_path)


# ---------------------------------------------------------------- the real program

FLOWS = """
from dataclasses import dataclass
from pathlib import Path
from turnout import approval, flow, task, webhook

@dataclass
class Budget:
    euros: int

@task
def send(folder: str, link: str) -> None:
    (Path(folder) / "link").write_text(link)

@flow(on=webhook("/buy"))
async def buy(order: dict) -> int:
    asked = approval("buyer", fields=Budget)
    await send.run(order["folder"], asked.link)
    return (await asked).fields.euros
"""


@pytest.mark.timeout(60)
@pytest.mark.slow
def test_the_command_and_the_link_answer_a_running_service(tmp_path: Path) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    program = Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log")
    with program.start():
        program.ready()
        first = _buy(program, tmp_path)
        env = {"TURNOUT_DATA": str(tmp_path / "data")}
        wrong = turnout("approve", first, "--fields", '{"euros": []}', env=env)
        assert wrong.returncode == 2 and "euros" in wrong.stderr
        right = turnout("approve", first, "--fields", '{"euros": 5}', "--json", env=env)
        assert right.returncode == 0, right.stderr
        _has_result(program, first, 5)

        second = _buy(program, tmp_path)
        link = (tmp_path / "link").read_text()
        program.kill()  # the link outlives the process that made it
        program.start()
        program.ready()
        path = link.partition(f":{program.port}")[2]
        page = program.ask(path)
        assert page is not None and page.status == 200 and b"<form" in page.body
        assert "no-referrer" in page.headers["referrer-policy"]
        form = {"approve": "true", "fields": f'{{"euros": {2**70}}}', "by": "<b>"}
        odd = {"approve": "true", "fields": '{"euros": 7}'} | {f"x{n}": "1" for n in range(1001)}
        assert _post(program, path, odd) == 422
        token = (tmp_path / "data" / "api-token").read_text().strip()
        answer = program.ask(
            f"/api/runs/{second}/approve",
            method="POST",
            body=b'{"approve": true, "fields": {"euros": 7}, "step": ["approval#1"]}',
            headers={"authorization": f"Bearer {token}"},
        )
        assert answer is not None and answer.json["field"] == "step", answer
        answers = [_post(program, path, form) for _ in range(2)]
        assert answers == [200, 410], "once"
        _has_result(program, second, 2**70)
        again = turnout("retry", second, "--from", "approval#1", "--yes", env=env)
        assert again.returncode == 0, again.stderr
        until(lambda: program.api(f"/runs/{second}")["state"] == "waiting", 10, "it asks again")
        page = program.ask(path)
        assert page is not None and page.status == 410, "the link was used, whatever came of it"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert _post(program, path, form) == 410
        right = turnout("approve", second, "--fields", '{"euros": 6}', env=env)
        assert right.returncode == 0, right.stderr
        _has_result(program, second, 6)
        assert _post(program, path[:-1] + ("A" if path[-1] != "A" else "B"), form) == 404
        forbidden = program.ask(f"/api/runs/{second}/approve", method="POST", body=b"{}")
        assert forbidden is not None and forbidden.status == 401

        third = _buy(program, tmp_path)
        assert turnout("approve", third, "--reject", "no money", env=env).returncode == 0
        until(lambda: program.api(f"/runs/{third}")["state"] == "failed", 10, "the no")
        program.check_journal()


@pytest.mark.timeout(60)
@pytest.mark.slow
def test_an_unused_link_is_for_the_question_it_was_sent_with(tmp_path: Path) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    program = Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log")
    form = {"approve": "true", "fields": '{"euros": 7}'}
    with program.start():
        program.ready()
        run_id = _buy(program, tmp_path)
        first = _link(program, tmp_path)
        assert _api(program, f"/runs/{run_id}/approve", b'{"approve": false}') == 200
        until(lambda: program.api(f"/runs/{run_id}")["state"] == "failed", 10, "the no")
        assert _api(program, f"/runs/{run_id}/retry?from=send%231", b"") == 200
        until(lambda: program.api(f"/runs/{run_id}")["state"] == "waiting", 10, "it asks anew")
        assert _link(program, tmp_path) != first
        assert _post(program, first, form) == 410
        assert _post(program, _link(program, tmp_path), form) == 200
        _has_result(program, run_id, 7)


def _link(program: Program, folder: Path) -> str:
    return (folder / "link").read_text().partition(f":{program.port}")[2]


def _api(program: Program, path: str, body: bytes) -> int:
    token = (program.data / "api-token").read_text().strip()
    headers = {"authorization": f"Bearer {token}"}
    answer = program.ask(f"/api{path}", method="POST", body=body, headers=headers)
    assert answer is not None
    return answer.status


def _buy(program: Program, folder: Path) -> str:
    body = orjson.dumps({"folder": str(folder)})
    headers = {"content-type": "application/json"}
    answer = program.ask("/hooks/buy", method="POST", body=body, headers=headers)
    assert answer is not None and answer.status == 202, answer
    run_id: str = answer.json["runs"][0]
    until(lambda: program.api(f"/runs/{run_id}")["state"] == "waiting", 10, "the question")
    return run_id


def _has_result(program: Program, run_id: str, euros: int) -> None:
    until(lambda: program.api(f"/runs/{run_id}")["result"] == euros, 10, f"result {euros}")


def _post(program: Program, path: str, form: dict[str, str]) -> int:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = program.ask(path, method="POST", body=urlencode(form).encode(), headers=headers)
    assert answer is not None
    return answer.status
