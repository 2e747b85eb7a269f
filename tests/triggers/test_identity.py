"""`id=` and `dedupe=`: what a sender calls the same is one event, and what is wrong is said."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.log_lines import logged
from tests.support.program import Answer, Program, turnout
from tests.support.running import Running, eventually, running
from turnout import Event, flow, secret, webhook
from turnout.service.domain.decisions import Reason
from turnout.service.domain.run import RunState
from turnout.service.domain.trigger import Inbound, Reply
from turnout.service.journal.records import Filter
from turnout.service.operate.verbs import ReplayDead
from turnout.service.project import AnyFlow
from turnout.service.project.check import check
from turnout.testing import serve, webhook_event
from turnout.triggers.webhook import WebhookTrigger

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def order_id(event: Event) -> Any:
    return event.data["id"]


def takes(trigger: WebhookTrigger, when: Callable[[Event], bool] | None = None) -> AnyFlow:
    @flow(name="takes", on=trigger, when=when)
    async def order(data: dict[str, Any]) -> Any:
        return data.get("n")

    return order


async def post(
    service: Running,
    data: Any,
    *,
    query: bytes = b"",
    path: str = "/hooks/orders",
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Post JSON to the one webhook of a service."""
    (trigger,) = service.process.project.triggers.values()
    assert isinstance(trigger, WebhookTrigger)
    sent = {"content-type": "application/json"} | {
        name.lower(): text for name, text in (headers or {}).items()
    }
    inbound = Inbound(
        method="POST", path=path, params={}, query=query,
        headers={name: (text.encode(),) for name, text in sent.items()},
        body=orjson.dumps(data), client=None, received_at=NOW,
    )  # fmt: skip
    return await trigger.receive(inbound, service.process.emitters[trigger.name])


def told(reply: Reply) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(reply.body)
    return document


def sample(service: Running, name: str, **labels: str) -> float | None:
    return service.process.metrics.registry.get_sample_value(name, labels)


async def counted(service: Running, result: str) -> bool:
    return bool(sample(service, "turnout_events_total", trigger="webhook:/orders", result=result))


# ---------------------------------------------------------------- one event


async def test_what_the_sender_calls_the_same_is_one_event_and_answers_with_its_run(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, [takes(webhook("/orders", id=order_id))]) as service:
        first = told(await post(service, {"id": "o-1", "n": 1}, headers={"Idempotency-Key": "a"}))
        again = told(await post(service, {"id": "o-1", "n": 1}, headers={"Idempotency-Key": "b"}))
        other = told(await post(service, {"id": "o-2", "n": 1}, headers={"Idempotency-Key": "a"}))
        runs = await service.all_finished()
        (stored,) = await service.process.journal.event("o-1")
    assert first["event"] == "o-1" and not first["duplicate"]
    assert again == {**first, "duplicate": True}
    assert [run.id for run in runs] == [*first["runs"], *other["runs"]]
    ((decision, facts),) = [(made["reason"], made["facts"]) for made in stored.decisions]
    assert decision == "duplicate"
    assert facts == {"type": "turnout.webhook", "bytes": len(b'{"id":"o-1","n":1}')}


async def test_the_name_of_a_header_is_an_id_too(tmp_path: Path) -> None:
    async with running(tmp_path, [takes(webhook("/orders", id="X-Order"))]) as service:
        replies = [told(await post(service, {"n": 1}, headers={"X-Order": name})) for name in "aba"]
    assert [each["event"] for each in replies] == ["a", "b", "a"]
    assert [each["duplicate"] for each in replies] == [False, False, True]


async def test_two_senders_of_one_path_with_parameters_do_not_share_their_ids(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, [takes(webhook("/t/{tenant}", id=order_id))]) as service:
        one = told(await post(service, {"id": 1}, path="/hooks/t/a"))
        other = told(await post(service, {"id": 1}, path="/hooks/t/b"))
    assert not one["duplicate"] and not other["duplicate"]


async def test_another_body_under_a_used_id_is_a_conflict_and_everybody_is_told(
    tmp_path: Path,
) -> None:
    with logged() as lines:
        async with running(tmp_path, [takes(webhook("/orders", id=order_id))]) as service:
            await post(service, {"id": "o-1", "n": 1})
            reply = await post(service, {"id": "o-1", "n": 2})
            runs = await service.all_finished()
            (stored,) = await service.process.journal.event("o-1")
            counted = sample(
                service, "turnout_events_total", trigger="webhook:/orders", result="conflict"
            )
            decided = sample(service, "turnout_decisions_total", flow="", reason="conflict")
    assert (reply.status, told(reply)["event"]) == (409, "o-1")
    assert told(reply)["detail"] == (
        "an event with this id was accepted before, with other content"
    )
    assert [run.result for run in runs] == [b"1"]
    ((reason, facts),) = [(made["reason"], made["facts"]) for made in stored.decisions]
    assert (reason, facts["bytes"]) == (Reason.CONFLICT, 18)
    assert (counted, decided) == (1, 1)
    (line,) = [each for each in lines if each["message"] == "event.conflict"]
    assert (line["trigger"], line["event"], line["bytes"]) == ("webhook:/orders", "o-1", 18)


async def test_none_is_no_id_and_the_event_counts_as_without(tmp_path: Path) -> None:
    trigger = webhook("/orders", id=lambda event: event.data.get("id"))
    async with running(tmp_path, [takes(trigger)]) as service:
        unnamed = [told(await post(service, {"n": 1})) for _ in range(2)]
        keyed = [
            told(await post(service, {"n": 1}, headers={"Idempotency-Key": "k"})) for _ in range(2)
        ]
    assert [each["duplicate"] for each in unnamed + keyed] == [False, False, False, True]
    assert keyed[0]["event"] == "k"


@pytest.mark.parametrize(
    ("answer", "stored"),
    [
        (7, "7"),
        (True, "True"),
        (math.nan, "nan"),
        (b"\xff", "b'\\xff'"),
        (("a", 1), "('a', 1)"),
        ("x" * 256, "x" * 256),
        ("x" * 257, f"sha256:{sha256(b'x' * 257).hexdigest()}"),
        ("\u00fc" * 129, f"sha256:{sha256(('ü' * 129).encode()).hexdigest()}"),
        ("x" * 10_000, f"sha256:{sha256(b'x' * 10_000).hexdigest()}"),
    ],
)
async def test_what_is_no_text_becomes_one_and_a_long_one_is_hashed(
    tmp_path: Path, answer: Any, stored: str
) -> None:
    async with running(tmp_path, [takes(webhook("/orders", id=lambda _: answer))]) as service:
        replies = [told(await post(service, {"n": 1})) for _ in range(2)]
        found = await service.process.journal.event(stored)
    assert [each["event"] for each in replies] == [stored] * 2
    assert [each["duplicate"] for each in replies] == [False, True]
    assert len(found) == 1


async def test_what_the_function_changes_in_the_event_nobody_else_sees(tmp_path: Path) -> None:
    def greedy(event: Event) -> str:
        event.data["n"] = "changed"
        event.headers.clear()  # type: ignore[attr-defined]  # a mapping, but a dict underneath
        return "g"

    async with running(tmp_path, [takes(webhook("/orders", id=greedy))]) as service:
        await post(service, {"n": 1})
        (run,) = await service.all_finished()
        (stored,) = await service.process.journal.event("g")
    assert run.result == b"1" and stored.event.headers


async def test_a_duplicate_that_waits_gets_the_result_of_the_first(tmp_path: Path) -> None:
    ready = asyncio.Event()

    @flow(on=webhook("/orders", id=order_id, respond=True))
    async def slow(data: dict[str, Any]) -> int:
        await ready.wait()
        return int(data["n"])

    async with running(tmp_path, [slow]) as service:
        async with asyncio.TaskGroup() as tasks:
            waiting = [
                tasks.create_task(post(service, {"id": 1, "n": 5}, query=b"wait=9s"))
                for _ in range(2)
            ]
            await eventually(lambda: counted(service, "duplicate"))
            ready.set()
        replies = [each.result() for each in waiting]
        after = await post(service, {"id": 1, "n": 5}, query=b"wait=9s")
        runs = await service.all_finished()
    assert [(each.status, each.body) for each in (*replies, after)] == [(200, b"5")] * 3
    assert len(runs) == 1


# ---------------------------------------------------------------- a function that fails


def raises(error: BaseException) -> Callable[[Event], str]:
    def failing(_event: Event) -> str:
        raise error

    return failing


async def later(_event: Event) -> str:
    return "x"


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("ID_TOKEN", "s3cret-of-the-ids")
    yield secret("ID_TOKEN").reveal()


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (order_id, "KeyError: 'id' (in id=, at "),
        (raises(SystemExit(3)), "SystemExit: 3 (in id=, at "),
        (raises(asyncio.CancelledError()), "CancelledError:"),
        (raises(ValueError("\ud800 bad")), "ValueError: \\ud800 bad"),
        (raises(ValueError("y" * 100_000)), "ValueError: yyy"),
        (lambda _: "\ud800", "ValueError: id=: '\\ud800' holds '\\ud800', half of a character"),
        (lambda _: "", 'ValueError: id= answers with ""; answer None for an event without an id'),
        (lambda event: later(event), "TypeError: id= answers with something to await"),
    ],
)
async def test_an_id_that_fails_is_a_dead_letter_and_runs_after_a_fix(
    tmp_path: Path, ask: Any, said: str
) -> None:
    with logged() as lines:
        async with running(tmp_path, [takes(webhook("/orders", id=ask))]) as service:
            reply = await post(service, {"n": 1})
            (dead,) = await service.process.journal.runs(Filter())
    assert (reply.status, told(reply)["runs"]) == (202, [dead.id])
    assert dead.dead and dead.error is not None
    assert (dead.state, dead.error.type) == (RunState.FAILED, "id_error")
    assert dead.error.message.startswith(said) and len(dead.error.message) <= 1000
    if ask is order_id:
        place = f"{__file__}:{order_id.__code__.co_firstlineno + 1}"
        assert dead.error.message == (
            f"KeyError: 'id' (in id=, at {place}, which read data.id = missing)"
        )
    (line,) = [each for each in lines if each["message"] == "event.without_id"]
    assert line["error"] == dead.error.message

    fixed = takes(webhook("/orders", id=lambda event: event.data["n"]))
    async with running(tmp_path, [fixed]) as service:
        (run_id,) = await service.process.operator.do(ReplayDead(dead.id))
        assert (await service.finished(run_id)).result == b"1"


async def test_an_id_with_a_secret_in_it_is_refused_and_masked(tmp_path: Path, token: str) -> None:
    trigger = webhook("/orders", id=lambda _: f"o-{token}")
    async with running(tmp_path, [takes(trigger)]) as service:
        await post(service, {"n": 1})
        (dead,) = await service.process.journal.runs(Filter())
    assert dead.error is not None and dead.error.type == "id_error"
    assert "the id holds the value of secret 'ID_TOKEN'" in dead.error.message
    assert token.encode() not in bytes_below(tmp_path)


def bytes_below(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


async def test_only_a_flow_that_wants_the_event_gets_the_dead_letter(tmp_path: Path) -> None:
    never = takes(webhook("/orders", id=order_id), when=lambda event: False)
    async with running(tmp_path, [never]) as service:
        reply = told(await post(service, {"n": 1}))
        (stored,) = await service.process.journal.event(reply["event"])
    assert (reply["runs"], [made["reason"] for made in stored.decisions]) == ([], ["filtered"])


async def test_what_cannot_be_decoded_is_refused_before_its_id_is_asked(tmp_path: Path) -> None:
    asked: list[Event] = []
    trigger = webhook("/orders", id=asked.append)
    async with running(tmp_path, [takes(trigger)]) as service:
        inbound = Inbound(
            method="POST", path="/hooks/orders", params={}, query=b"", body=b"{",
            headers={"content-type": (b"application/json",)}, client=None, received_at=NOW,
        )  # fmt: skip
        reply = await trigger.receive(inbound, service.process.emitters[trigger.name])
    assert (reply.status, asked) == (400, [])


# ---------------------------------------------------------------- for how long


@pytest.mark.parametrize(("dedupe", "inside", "outside"), [("3d", "2d23h", "2h"),
                                                           ("30d", "29d23h", "2h")])  # fmt: skip
async def test_a_trigger_remembers_its_ids_as_long_as_it_says(
    dedupe: str, inside: str, outside: str
) -> None:
    flow = takes(webhook("/orders", id=order_id, dedupe=dedupe))
    async with serve(flow, keep_finished="90d") as service:
        (first,) = await service.emit(webhook_event(flow, {"id": 7, "n": 1}))
        await service.advance(inside)
        (again,) = await service.emit(webhook_event(flow, {"id": 7, "n": 1}))
        await service.advance(outside)
        (second,) = await service.emit(webhook_event(flow, {"id": 7, "n": 1}))
    assert again.id == first.id != second.id


async def test_one_trigger_with_a_long_window_keeps_no_other_from_being_pruned(
    tmp_path: Path,
) -> None:
    long, short = webhook("/long", id=order_id, dedupe="30d"), webhook("/short", id=order_id)

    @flow(on=[long, short])
    async def both(data: dict[str, Any]) -> None: ...

    async with serve(both, dedupe="1d") as service:
        for number in range(3):
            for trigger in (long, short):
                await service.emit(webhook_event(trigger, {"id": number}))
        await service.advance("2d")
        await service.emit(webhook_event(long, {"id": 2}))
        found = await service.journal.events(Filter(limit=100))
        kept = [each for each in found if each.event.trigger == short.name]
        (again,) = await service.emit(webhook_event(short, {"id": 2}))
    assert len(kept) == 3 and again.id not in {run for each in kept for run in each.runs}


# ---------------------------------------------------------------- what an author writes

HEAD = "from turnout import at, cron, event, every, files, flow, kafka, webhook\n\n"

WRONG = [
    ('webhook("/a", id="not a header")', "webhook:/a: id='not a header' is not a header's name"),
    (
        'webhook("/a", id=7)',
        'webhook:/a: id=7: write a function, such as id=lambda event: event.data["id"]',
    ),
    (
        'webhook("/a", id=lambda: "x")',
        "webhook:/a: id= takes one argument, the event: id=lambda event: …",
    ),
    (
        'webhook("/a", id=later)',
        "webhook:/a: id= is asked while an event is accepted: `def`, not `async def`",
    ),
    (
        'webhook("/a", id="X-A", id_header="X-B")',
        "webhook:/a: id= and id_header= say the same; write id= alone",
    ),
    ('webhook("/a", dedupe="59s")', 'webhook:/a: dedupe= is at least "1m"'),
    ('webhook("/a", dedupe=True)', 'dedupe=True: write a time such as "3d", or "forever"'),
    (
        'webhook("/a", dedupe="soon")',
        'dedupe=\'soon\': cannot read the duration \'soon\'; write it like "500ms", "30s", "5m", '
        '"1h30m", "1d"',
    ),
    (
        'kafka("t", group="g", id="key")',
        'kafka(id="key"): a text is the name of a header, and a key is no id: every later record '
        "of a key would be dropped; write id=lambda event: …",
    ),
    ('kafka("t", group="g", id="")', "kafka(id='') is not a header's name"),
    (
        'kafka("t", group="g", id=7)',
        'kafka(…): id=7: write a function, such as id=lambda event: event.data["id"]',
    ),
    (
        'kafka("t", group="g", dedupe="3d")',
        "kafka(dedupe=…): needs id=; without it each offset is read once, whatever it holds",
    ),
    (
        'files("in/*", id="name")',
        "files:in/*: id='name': write id=\"content\", or id=lambda event: …",
    ),
    (
        'files("in/*", dedupe="3d")',
        "files:in/*: dedupe= needs id=; without it each version of a file is an event once, for as "
        "long as it lies there",
    ),
    (
        'cron("0 9 * * *", id=str)',
        "cron(…, id=…): a tick is its due instant, which comes once; leave it out",
    ),
    (
        'every("15m", dedupe="3d")',
        "every(…, dedupe=…): a tick is its due instant, which comes once; leave it out",
    ),
    (
        'at("2090-01-01", tz="UTC", id=str)',
        "at(…, id=…): a tick is its due instant, which comes once; leave it out",
    ),
    (
        'event("order.paid", id=str)',
        "event(…, id=…): whoever emits an event says its id: the CloudEvents attribute `id`, or "
        "emit(…, id=…)",
    ),
    (
        'every("15m", ids=str)',
        "every() has no option 'ids'; it has start=, tz=, missed=, missed_limit=, jitter=, name=",
    ),
]


@pytest.mark.parametrize(("trigger", "said"), WRONG)
def test_what_cannot_be_meant_is_refused_at_its_line(
    tmp_path: Path, trigger: str, said: str
) -> None:
    file = tmp_path / "flows.py"
    file.write_text(
        f"{HEAD}async def later(event): ...\n\n@flow(on={trigger})\nasync def f() -> None: ...\n"
    )
    (problem,) = check([file]).problems
    assert (problem.message, problem.file, problem.line) == (said, str(file), 5)


def test_what_is_meant_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "flows.py"
    file.write_text(
        f"{HEAD}from datetime import timedelta\n"
        "def name(event): return event.data['id']\n"
        "@flow(on=[webhook('/a', id=name, dedupe='3d'), webhook('/b', id='X-Id'),\n"
        "          webhook('/c', dedupe=timedelta(days=3)), webhook('/d', dedupe='forever'),\n"
        "          kafka('t', group='g', id=name, dedupe='1m'), kafka('u', group='g', id='X-Id'),\n"
        "          files('in/*', id='content', dedupe='30d'), files('out/*', id=name)])\n"
        "async def f() -> None: ...\n"
    )
    assert check([file]).problems == ()


# ---------------------------------------------------------------- the real program

FLOWS = """
from turnout import flow, webhook

@flow(on=webhook("/orders", id=lambda event: event.data["id"], dedupe="3d"))
async def bill(data: dict) -> int:
    return data["n"]
"""


def posted(program: Program, order: dict[str, Any]) -> Answer:
    headers = {"content-type": "application/json"}
    body = orjson.dumps(order)
    answer = program.ask("/hooks/orders", method="POST", body=body, headers=headers)
    assert answer is not None
    return answer


@pytest.mark.slow
def test_a_kill_between_two_deliveries_makes_no_second_run(tmp_path: Path) -> None:
    (tmp_path / "flows.py").write_text(FLOWS)
    data = tmp_path / "data"
    with Program(flows=tmp_path / "flows.py", data=data, log=tmp_path / "log") as program:
        program.start().ready()
        first = posted(program, {"id": "o-1", "n": 1}).json
        program.kill()
        program.start().ready()
        again = posted(program, {"id": "o-1", "n": 1})
        other = posted(program, {"id": "o-1", "n": 2})
        nameless = posted(program, {"n": 3})
        program.quiet(20)
        told = turnout("why", "o-1", "--data", data)
        decided = program.metrics("turnout_decisions_total")
        dead = program.metrics("turnout_dead_letters")
    assert (again.status, again.json) == (202, {**first, "duplicate": True})
    assert (other.status, other.json["event"]) == (409, "o-1")
    assert (nameless.status, len(nameless.json["runs"])) == (202, 1)
    assert told.returncode == 0 and "duplicate" in told.stdout and "conflict" in told.stdout
    assert decided == {'flow="",reason="conflict"': 1, 'flow="",reason="duplicate"': 1}
    assert dead == {'flow="bill"': 1}
    log = (tmp_path / "log").read_text()
    assert log.count('"event.conflict"') == 1 and log.count('"event.without_id"') == 1
