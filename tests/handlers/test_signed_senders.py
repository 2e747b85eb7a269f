"""Stripe and Slack start flows: their own libraries sign, and the examples answer by their clients.

The libraries are in an environment of their own, which the program under test finds behind its own
packages. Stripe is localstripe, or a stub that counts; Slack is a stub. The service is the real
program, and is killed.
"""

from __future__ import annotations

import importlib
import json
import re
import signal
import sys
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.bench.peers import program_of, services
from tests.support import CHECKOUT
from tests.support.boundaries import behind_ours, killed_at, library_of
from tests.support.ports import free_port
from tests.support.program import Answer, Program, supervised, until
from tests.support.stub_http import Reply, Stub, stubbed
from turnout.service.domain.trigger import Inbound
from turnout.service.governance.secrets import Secret
from turnout.triggers.signatures import Unverified, scheme_named

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

EXAMPLES = CHECKOUT / "handlers" / "examples" / "systems"
PATIENCE = 120.0
"""Seconds; the machine may be busy with other tests."""

SECRET = "whsec_of-this-test"
OLD = "whsec_that-is-rolled"


def library(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import somebody else's library."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(library_of("clients"))])
    return importlib.import_module(name)


@pytest.fixture
def stripe(monkeypatch: pytest.MonkeyPatch) -> Any:
    return library("stripe", monkeypatch)


class Service:
    """An example, which asks a stand-in, and is sent signed requests."""

    def __init__(self, folder: Path, name: str, sabotage: str, **env: str) -> None:
        self.path = f"/hooks/{name.partition('_')[0]}"
        self.program = Program(
            flows=EXAMPLES / f"{name}.py",
            data=folder / "data",
            log=folder / "log",
            env={"MARKER": str(folder / "marker"), **env},
            sabotage=behind_ours("clients") + sabotage,
        )

    def send(self, body: str, signed: dict[str, str]) -> Answer:
        """Send a request; while the service is down, again, as any sender does."""
        headers = {"Content-Type": "application/json", **signed}

        def answered() -> Answer | None:
            answer = self.program.ask(
                self.path, method="POST", body=body.encode(), headers=headers, timeout=30
            )
            return None if answer is not None and answer.status == 503 else answer

        return until(answered, PATIENCE, "an answer")

    def ended(self, run_id: str) -> dict[str, Any]:
        """Wait for the end of a run; returns it."""

        def look() -> dict[str, Any] | None:
            try:
                run: dict[str, Any] = self.program.api(f"/runs/{run_id}")
            except (AssertionError, FileNotFoundError):  # it is down
                return None
            return run if run["finished_at"] else None

        return until(look, PATIENCE, f"the end of {run_id}")

    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.program.api("/runs")["items"]
        return found


# ---------------------------------------------------------------- Stripe


def now() -> int:
    return int(datetime.now(UTC).timestamp())


def signed(stripe: Any, body: str, *secrets: str, age: int = 0, name: str = "v1") -> str:
    """Return the header that Stripe's own library makes."""
    stamp = now() - age
    one = stripe.WebhookSignature._compute_signature
    return f"t={stamp}," + ",".join(f"{name}={one(f'{stamp}.{body}', key)}" for key in secrets)


def test_our_verdict_is_that_of_stripes_own_library(
    stripe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    body = json.dumps({"id": "evt_1", "name": "pêches"}, ensure_ascii=False)
    good = signed(stripe, body, SECRET)
    own = stripe.WebhookSignature.generate_signature_header(body, SECRET)
    cases = {
        good: True,
        own: True,
        signed(stripe, body, OLD, SECRET): True,
        signed(stripe, body, SECRET, OLD): True,
        f"{good},v0={'0' * 64}": True,
        f"v0={'0' * 64},{good}": True,
        signed(stripe, body, SECRET, age=290): True,
        signed(stripe, body, SECRET, age=310): False,
        signed(stripe, body, OLD): False,
        signed(stripe, body, SECRET, name="v0"): False,
        signed(stripe, f"{body} ", SECRET): False,
        good.partition(",")[2]: False,
        good.partition(",")[0]: False,
        good.replace(",", ", "): False,
        f"{good}0": False,
        "nonsense": False,
    }
    judge = scheme_named("stripe").verifier([Secret("SECRET")])
    for header, verdict in cases.items():
        try:
            stripe.WebhookSignature.verify_header(body, header, SECRET, tolerance=300)
            theirs = True
        except stripe.SignatureVerificationError:
            theirs = False
        inbound = Inbound(
            method="POST", path="/hooks/stripe", params={}, query=b"",
            headers={"stripe-signature": [header.encode()]}, body=body.encode(), client=None,
            received_at=datetime.now(UTC),
        )  # fmt: skip
        try:
            judge.verify(inbound)
            ours = True
        except Unverified:
            ours = False
        assert (theirs, ours) == (verdict, verdict), header


def event_of(product: str, amount: int = 350, event_id: str = "evt_1") -> str:
    paid = {"id": "pi_1", "object": "payment_intent", "amount": amount}
    data = {"object": paid | {"metadata": {"product": product}}}
    kind = "payment_intent.succeeded"
    return json.dumps({"id": event_id, "object": "event", "type": kind, "data": data})


@pytest.fixture
def bank() -> Iterator[Stub]:
    """Stripe's API, which gives money back."""
    with stubbed() as bank:
        refund = json.dumps({"id": "re_1", "object": "refund"}).encode()
        bank.replies["/v1/refunds"] = [
            Reply(content=refund, headers={"content-type": "application/json"})
        ]
        yield bank


def asking(url: str) -> str:
    """Return sabotage: Stripe's client asks there."""
    return f"import stripe._stripe_client as client\nclient.DEFAULT_API_BASE = {url!r}\n"


def payments(folder: Path, url: str, sabotage: str = "") -> Service:
    env = {"STRIPE_WEBHOOK_SECRET": SECRET, "STRIPE_API_KEY": "sk_test_of-this-test"}
    return Service(folder, "stripe_payments", asking(url) + sabotage, **env)


@pytest.mark.parametrize(
    ("boundary", "product"),
    [
        ("none", "pears"), ("sell#1 succeeded", "pears"), ("run succeeded", "pears"),
        ("none", "figs"), ("pay_back#1 succeeded", "figs"), ("run succeeded", "figs"),
    ],
)  # fmt: skip
def test_a_payment_that_is_told_again_and_again_is_one_run_over_a_kill(
    tmp_path: Path, bank: Stub, stripe: Any, boundary: str, product: str
) -> None:
    service = payments(tmp_path, bank.url, killed_at(boundary))
    body = event_of(product)
    with service.program.start() as program:
        program.ready(PATIENCE)
        with supervised(program, most_restarts=2) as deaths:
            first = service.send(body, {"Stripe-Signature": signed(stripe, body, SECRET)})
            (run_id,) = first.json["runs"]
            assert first.status == 202
            for age in (60, 0):  # each delivery is signed anew
                header = signed(stripe, body, OLD, SECRET, age=age)
                again = service.send(body, {"Stripe-Signature": header})
                assert (again.status, again.json["runs"]) == (202, [run_id])
            run = service.ended(run_id)
        assert deaths == [-signal.SIGKILL] * (boundary != "none")
        assert len(service.runs()) == 1
    assert run["state"] == "succeeded", run["error"]
    keys = [asked.headers["idempotency-key"] for asked in bank.asked]
    if product == "figs":
        assert run["result"] == "figs, paid back by re_1"
        assert len(keys) == (2 if boundary.startswith("pay_back") else 1)
        assert len(set(keys)) == 1 and len(keys[0]) == 32
        assert {asked.body for asked in bank.asked} == {b"payment_intent=pi_1"}
    else:
        assert run["result"].startswith("pears, sold under ") and keys == []


def test_what_stripe_did_not_sign_starts_nothing_and_the_log_says_why(
    tmp_path: Path, bank: Stub, stripe: Any
) -> None:
    body = event_of("pears")
    for header, reason in (
        (signed(stripe, body, OLD), "the signature does not match"),
        (signed(stripe, body, SECRET, age=900), "the timestamp is too far from now"),
        (signed(stripe, body, SECRET, name="v0"), "one t= and at least one v1="),
    ):
        folder = tmp_path / reason[:5].strip()
        folder.mkdir(exist_ok=True)
        service = payments(folder, bank.url)
        with service.program.start() as program:
            program.ready(PATIENCE)
            refused = service.send(body, {"Stripe-Signature": header})
            assert refused.status == 401 and reason not in refused.body.decode()
            said = program.said(r'.*"webhook\.unverified".*', 10)
            assert reason in said[0] and "STRIPE_WEBHOOK_SECRET" in said[0]
            assert service.runs() == []


def test_the_same_event_with_other_content_is_refused(
    tmp_path: Path, bank: Stub, stripe: Any
) -> None:
    service = payments(tmp_path, bank.url)
    with service.program.start() as program:
        program.ready(PATIENCE)
        answers = []
        for body in (event_of("pears"), event_of("plums", 420)):
            answers.append(service.send(body, {"Stripe-Signature": signed(stripe, body, SECRET)}))
        assert [answer.status for answer in answers] == [202, 409]
        program.quiet(30)
        assert len(service.runs()) == 1


def test_payments_of_a_whole_stripe_are_sold_or_paid_back(tmp_path: Path, stripe: Any) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [program_of("clients", "localstripe"), "--port", str(port), "--from-scratch"]
    with services.running(
        command, tmp_path / "stripe.log", ready=lambda: services.listens(port), cwd=tmp_path
    ):
        service = payments(tmp_path, url)
        with service.program.start() as program:
            program.ready(PATIENCE)
            hook = {"url": f"http://127.0.0.1:{program.port}/hooks/stripe", "secret": SECRET}
            told = urllib.request.Request(
                f"{url}/_config/webhooks/turnout", data=json.dumps(hook).encode(),
                headers={"Content-Type": "application/json"},
            )  # fmt: skip
            urllib.request.urlopen(told, timeout=10).close()
            shop = stripe.StripeClient("sk_test_12345", base_addresses={"api": url}).v1
            card = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2030, "cvc": "123"}
            method = shop.payment_methods.create({"type": "card", "card": card})
            paid = {
                product: shop.payment_intents.create(
                    {
                        "amount": 350, "currency": "eur", "payment_method": method.id,
                        "confirm": True, "metadata": {"product": product},
                    }
                ).id
                for product in ("pears", "figs")
            }  # fmt: skip
            until(lambda: len(service.runs()) == 2, PATIENCE, "two runs")
            program.quiet(PATIENCE)
            results = sorted(run["result"].split(" under ")[0] for run in service.runs())
        refunds = shop.refunds.list({"limit": 10}).data
    assert [(each.payment_intent, each.amount) for each in refunds] == [(paid["figs"], 350)]
    assert results == [f"figs, paid back by {refunds[0].id}", "pears, sold"]


# ---------------------------------------------------------------- Slack


@pytest.fixture
def signs(monkeypatch: pytest.MonkeyPatch) -> Any:
    return library("slack_sdk.signature", monkeypatch).SignatureVerifier(SECRET)


@pytest.fixture
def workspace() -> Iterator[Stub]:
    """Slack's API."""
    with stubbed() as workspace:
        workspace.replies["/chat.postMessage"] = [said(ok=True, ts="17.2")]
        yield workspace


def said(status: int = 200, headers: dict[str, str] | None = None, **answer: Any) -> Reply:
    json_ = {"content-type": "application/json"}
    return Reply(status, json.dumps(answer).encode(), {**json_, **(headers or {})})


def desk(folder: Path, workspace: Stub, sabotage: str = "") -> Service:
    there = (
        "from slack_sdk import WebClient\nhonest = WebClient.__init__\n"
        f"WebClient.__init__ = lambda *a, **k: honest(*a, base_url={workspace.url + '/'!r}, **k)\n"
    )
    env = {"SLACK_SIGNING_SECRET": SECRET, "SLACK_BOT_TOKEN": "xoxb-of-this-test"}
    return Service(folder, "slack_mentions", there + sabotage, **env)


def by_slack(signs: Any, body: str, age: int = 0) -> dict[str, str]:
    stamp = str(now() - age)
    signature = signs.generate_signature(timestamp=stamp, body=body)
    return {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": signature}


MENTION = json.dumps(
    {
        "type": "event_callback",
        "event_id": "Ev1",
        "event": {"type": "app_mention", "channel": "C1", "ts": "17.1", "text": "<@U1> the disk?"},
    }
)


@pytest.mark.parametrize("boundary", ["none", "free_space#1 succeeded", "run succeeded"])
def test_a_mention_is_answered_once_in_its_thread_however_busy_slack_is(
    tmp_path: Path, workspace: Stub, signs: Any, boundary: str
) -> None:
    busy = said(429, {"retry-after": "1"}, ok=False, error="ratelimited")
    down = Reply(503, b"<html>later</html>")
    workspace.replies["/chat.postMessage"] = [busy, down, said(ok=True, ts="17.2")]
    service = desk(tmp_path, workspace, killed_at(boundary))
    with service.program.start() as program:
        program.ready(PATIENCE)
        with supervised(program, most_restarts=2) as deaths:
            for _ in range(3):  # as Slack does after three seconds without an answer
                answer = service.send(MENTION, by_slack(signs, MENTION))
                assert answer.status in (200, 202)
            (run,) = until(service.runs, PATIENCE, "the run")
            ended = service.ended(run["id"])
        assert deaths == [-signal.SIGKILL] * (boundary != "none")
        assert len(service.runs()) == 1
    assert (ended["state"], ended["result"]) == ("succeeded", "17.2"), ended["error"]
    assert len(workspace.asked) == 3
    written = json.loads(workspace.asked[-1].body)
    assert re.fullmatch(r"\d+ GB are free", written.pop("text"))
    assert written == {"channel": "C1", "thread_ts": "17.1"}
    assert workspace.asked[-1].headers["authorization"] == "Bearer xoxb-of-this-test"


def test_a_kill_after_the_answer_was_sent_sends_it_once_more(
    tmp_path: Path, workspace: Stub, signs: Any
) -> None:
    service = desk(tmp_path, workspace, killed_at("say#1 succeeded"))
    with service.program.start() as program:
        program.ready(PATIENCE)
        with supervised(program, most_restarts=2) as deaths:
            service.send(MENTION, by_slack(signs, MENTION))
            (run,) = until(service.runs, PATIENCE, "the run")
            assert service.ended(run["id"])["state"] == "succeeded"
        assert deaths == [-signal.SIGKILL]
    assert len(workspace.asked) == 2


def test_slack_is_answered_its_challenge_and_nobody_else_is(
    tmp_path: Path, workspace: Stub, signs: Any
) -> None:
    service = desk(tmp_path, workspace)
    question = json.dumps({"type": "url_verification", "challenge": "3eZbrw1a"})
    with service.program.start() as program:
        program.ready(PATIENCE)
        answer = service.send(question, by_slack(signs, question))
        assert (answer.status, answer.body) == (200, b"3eZbrw1a")
        for headers in (
            {},
            by_slack(signs, question, age=900),
            by_slack(signs, MENTION),
            by_slack(type(signs)("another secret"), question),
        ):
            assert service.send(question, headers).status == 401
        assert len(service.runs()) == 1
    assert workspace.asked == []


def test_a_token_that_slack_refuses_fails_the_run_at_once(
    tmp_path: Path, workspace: Stub, signs: Any
) -> None:
    workspace.replies["/chat.postMessage"] = [said(ok=False, error="invalid_auth")]
    service = desk(tmp_path, workspace)
    with service.program.start() as program:
        program.ready(PATIENCE)
        service.send(MENTION, by_slack(signs, MENTION))
        (run,) = until(service.runs, PATIENCE, "the run")
        ended = service.ended(run["id"])
    assert ended["error"]["message"] == "Slack refuses: invalid_auth"
    assert len(workspace.asked) == 1
