"""Channels reach a real HTTP server and a real mail server, under one key, or say why not."""

from __future__ import annotations

import asyncio
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from tests.support.journal_contract import NOW
from tests.support.program import until
from tests.support.serving import serving
from tests.support.smtp_sink import smtp_sink
from tests.support.stub_http import Reply, Stub, stubbed
from turnout import flow, notify, secret
from turnout.service.client import Unavailable
from turnout.service.domain.alerts import Channel, Message
from turnout.service.domain.errors import SetupError
from turnout.service.domain.retry import asked_for
from turnout.service.domain.run import Fail
from turnout.testing import serve

MESSAGE = Message(
    "key-1", "bill failed: <b> & co", "bill failed: <b> & co\nno answer", {"count": 3}
)


def sent(stub: Stub) -> tuple[dict[str, object], str]:
    (asked,) = stub.asked
    return json.loads(asked.body), asked.headers["idempotency-key"]


async def test_chat_slack_and_webhook_are_posted() -> None:
    with stubbed() as stub:
        await notify(stub.says("/chat", Reply())).send(MESSAGE)
        assert sent(stub) == ({"text": MESSAGE.text}, "key-1")
    with stubbed() as stub:
        await notify.slack(stub.says("/slack", Reply())).send(MESSAGE)
        assert sent(stub)[0] == {"text": "bill failed: &lt;b&gt; &amp; co\nno answer"}


async def test_a_webhook_gets_the_document_and_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGER_TOKEN", "a-token-of-a-pager")
    with stubbed() as stub:
        url = stub.says("/pager", Reply())
        await notify.webhook(url, token=secret("PAGER_TOKEN")).send(MESSAGE)
        assert sent(stub) == ({"count": 3}, "key-1")
        assert stub.asked[0].headers["authorization"] == "Bearer a-token-of-a-pager"


async def test_mail_is_sent_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with smtp_sink() as sink:
        monkeypatch.setenv("SMTP_URL", f"smtp://127.0.0.1:{sink.port}")
        await notify.email(["ops@example.com", "you@example.com"]).send(MESSAGE)
        (mail,) = sink.mails
        assert mail["To"] == "ops@example.com, you@example.com"
        assert mail["Subject"] == "bill failed: <b> & co"
        assert mail["Message-ID"] == "<key-1@turnout>"
        assert mail["From"] == "turnout@127.0.0.1"
        assert "no answer" in str(mail.get_payload())


async def test_a_title_cannot_add_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    with smtp_sink() as sink:
        server = f"smtp://127.0.0.1:{sink.port}"
        message = Message("k", "one\r\nBcc: all@example.com", "text", {})
        await notify.email("ops@example.com", server=server, sender="me@example.com").send(message)
        (mail,) = sink.mails
        assert mail["Bcc"] is None
        assert mail["Subject"] == "one Bcc: all@example.com"


async def test_a_password_is_not_sent_without_tls() -> None:
    with smtp_sink() as sink:
        channel = notify.email("a@b.example", server=f"smtp://me:secret@127.0.0.1:{sink.port}")
        with pytest.raises(Unavailable, match="offers no TLS") as refused:
            await channel.send(MESSAGE)
        assert "secret" not in str(refused.value)
        assert sink.mails == []


@pytest.mark.parametrize(
    ("scheme", "begins"),
    [("smtp", b"220-"), ("smtps", b"\x16\x03\x03\x40\x00\x02\x00")],
    ids=["smtp", "smtps"],
)
async def test_a_mail_server_whose_answer_never_ends_holds_no_thread(
    scheme: str, begins: bytes
) -> None:
    with dripping(begins) as (port, lost):
        mail = notify.email("ops@example.com", server=f"{scheme}://127.0.0.1:{port}")
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            sending = [tasks.create_task(mail.send(MESSAGE)) for _ in range(6)]
            await asyncio.to_thread(int)  # the threads that others wait for are free
            _, waiting = await asyncio.wait(sending, timeout=0.3)
            assert len(waiting) == 6
            for each in waiting:
                each.cancel()
        until(lambda: lost() >= 4, 5, "the connections are closed")
    with smtp_sink() as sink:
        async with asyncio.timeout(10):
            await notify.email("a@b.example", server=f"smtp://127.0.0.1:{sink.port}").send(MESSAGE)
        assert len(sink.mails) == 1


@contextmanager
def dripping(begins: bytes) -> Iterator[tuple[int, Callable[[], int]]]:
    """Serve a byte now and then; yields the port, and how many connections were lost."""
    lost: list[object] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                self.request.sendall(begins)
                while not stopped.wait(0.02):
                    self.request.sendall(b"0")
            except OSError:
                lost.append(self)

    stopped = threading.Event()
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        try:
            yield server.server_address[1], lambda: len(lost)
        finally:
            stopped.set()


@pytest.mark.parametrize(
    ("status", "error"), [(500, Unavailable), (429, Unavailable), (404, Fail), (301, Fail)]
)
async def test_an_answer_that_is_no_success_is_an_error(
    status: int, error: type[Exception]
) -> None:
    with stubbed() as stub, pytest.raises(error, match=f"answered {status}"):
        await notify(stub.says("/chat", Reply(status))).send(MESSAGE)


@pytest.mark.parametrize("status", [429, 503])
async def test_an_answer_that_asks_for_time_says_for_how_much(status: int) -> None:
    reply = Reply(status, headers={"Retry-After": "30"})
    with stubbed() as stub, pytest.raises(Unavailable) as refused:
        await notify.slack(stub.says("/slack", reply)).send(MESSAGE)
    assert asked_for(refused.value, now=NOW) == timedelta(seconds=30)


async def test_a_server_that_is_gone_is_an_error_that_shows_no_address() -> None:
    with stubbed() as stub:
        url = stub.says("/secret-path", Reply())
    with pytest.raises(Unavailable) as gone:
        await notify(url).send(MESSAGE)
    assert "secret-path" not in str(gone.value)
    with pytest.raises(Unavailable, match="did not take it"):
        await notify.email("a@b.example", server="smtp://127.0.0.1:9").send(MESSAGE)


def test_a_channel_has_a_name_that_shows_no_secret() -> None:
    channels: list[Channel] = [
        notify("https://chat.example/T0/secret"),
        notify.slack(secret("CHAT_URL")),
        notify.email("ops@example.com"),
        notify.webhook("https://pager.example/x"),
    ]
    names = [each.name for each in channels]
    assert names[0].startswith("chat:chat.example#") and "secret" not in names[0]
    assert names[1:3] == ["slack:CHAT_URL", "email:ops@example.com"]
    assert names[3].startswith("webhook:pager.example#")


async def test_with_a_text_each_is_a_recorded_step(monkeypatch: pytest.MonkeyPatch) -> None:
    @flow
    async def report(data: dict[str, str]) -> None:
        await notify.slack(data["url"], "a < b")
        await notify.webhook(data["url"], "plain")
        await notify.email("ops@example.com", "All is well.\nBye", server=data["server"])

    with stubbed() as stub, smtp_sink() as sink:
        url = stub.says("/", Reply())
        async with serve(report) as service:
            asked = {"url": url, "server": f"smtp://127.0.0.1:{sink.port}"}
            result = await service.run(report, asked)
        assert list(result.steps) == ["notify.slack#1", "notify.webhook#1", "notify.email#1"]
        assert [json.loads(each.body)["text"] for each in stub.asked] == ["a &lt; b", "plain"]
        assert sink.mails[0]["Subject"] == "All is well."


def wrong(value: object) -> Any:
    """Return a value that no type checker would let pass."""
    return value


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: notify("chat.example"), "write an address"),
        (lambda: notify.slack(""), "write an address"),
        (lambda: notify.slack("https://chat.example:x/a"), "write an address"),
        (lambda: notify.slack("https://chat .example/a"), "write an address"),
        (lambda: notify.webhook("https://[::1"), "write an address"),
        (lambda: notify.webhook("https://a.example", token=wrong("text")), "write the secret"),
        (lambda: notify.email("nobody"), "write an address"),
        (lambda: notify.email([]), "write whom it goes to"),
        (lambda: notify.email("a@b.example", sender="a@b\nBcc: c@d"), "write an address"),
        (lambda: notify.email("a@b.example", server="mail.example:25"), "smtp://USER:PASSWORD"),
        (lambda: flow(on_failure=notify)(nothing), "say whom it tells"),
        (lambda: flow(on_failure=wrong("ops@example.com"))(nothing), "write a function"),
        (lambda: flow(on_failure=[notify("https://a.example/x")] * 2)(nothing), "twice"),
        (lambda: flow(expect_every="often")(nothing), "expect_every=: cannot read the duration"),
        (lambda: flow(expect_every="10ms")(nothing), "one second at least"),
        (lambda: flow(deadline=wrong("06:00"))(nothing), "write deadline"),
        (lambda: flow(finish_within=wrong(5))(nothing), 'write it like "5s" for seconds'),
        (lambda: flow(expect_every="1h", shadow=True)(nothing), "a shadow starts no runs"),
        (lambda: flow(tags="etl")(nothing), "write a list"),
        (lambda: flow(tags=["two words"])(nothing), "is no tag"),
        (lambda: flow(description="two\nlines")(nothing), "a line of 1 to 500"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(make: Callable[[], object], words: str) -> None:
    with pytest.raises(SetupError, match=words):
        make()


async def nothing() -> None: ...
