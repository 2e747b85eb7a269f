"""The action `http` against a real server: tries, keys, bounds, redirects, what is recorded."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # no stubs
import pytest

from tests.support.program import turnout
from tests.support.stub_http import Reply, Stub, stubbed
from turnout import (
    HttpError,
    HttpRefused,
    HttpResponse,
    artefact,
    flow,
    http,
    secret,
    task,
)
from turnout.service.domain.errors import SetupError
from turnout.service.journal.sqlite.staging import StagedBlob
from turnout.testing import START, run, serve

log: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_logged() -> None:
    log.clear()


@pytest.fixture(scope="module")
def shared() -> Iterator[Stub]:
    with stubbed() as stub:
        yield stub


@pytest.fixture
def stub(shared: Stub) -> Stub:
    shared.asked.clear()
    shared.replies.clear()
    return shared


@flow
async def order(url: str) -> dict[str, Any]:
    answer = await http.post(url, json={"item": 7})
    assert isinstance(answer, HttpResponse)
    return {"status": answer.status_code, "said": answer.json()}


@flow
async def fetch(url: str) -> str:
    return (await http.get(url)).text


@flow(retry=5)
async def persistent(url: str) -> str:
    return (await http.get(url)).text


# ---------------------------------------------------------------- tries


def test_500_and_429_and_200_are_three_tries_and_one_effect_by_its_key(stub: Stub) -> None:
    url = stub.says(
        "/orders", Reply(500, b"oops"), Reply(429, headers={"Retry-After": "2"}),
        Reply(200, b'{"number": 1}'),
    )  # fmt: skip
    result = run(order, url)
    assert result.result == {"status": 200, "said": {"number": 1}}
    asked = stub.to("/orders")
    assert len(asked) == 3
    assert len({each.headers["idempotency-key"] for each in asked}) == 1
    assert {each.body for each in asked} == {b'{"item":7}'}
    assert asked[0].headers["content-type"] == "application/json"
    assert result.steps["http.post#1"].tries == 3
    assert result.took >= timedelta(seconds=2), "what the server asked for"


def test_an_answer_says_what_it_has_instead_of_what_it_does_not() -> None:
    answer: Any = HttpResponse(status_code=200, headers={}, content=b"{}", url="https://a.example")
    with pytest.raises(AttributeError, match=r"did you mean answer\.status_code\?"):
        _ = answer.status
    with pytest.raises(AttributeError, match=r"did you mean answer\.content\?"):
        _ = answer.body


def test_a_date_in_retry_after_is_kept(stub: Stub) -> None:
    date = format_datetime(START + timedelta(seconds=90), usegmt=True)
    url = stub.says("/late", Reply(503, headers={"Retry-After": date}), Reply(200, b"ok"))
    result = run(fetch, url)
    assert result.result == "ok"
    assert timedelta(seconds=89) <= result.took <= timedelta(seconds=95)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
def test_another_4xx_is_not_tried_again_and_told_with_its_beginning(
    stub: Stub, status: int
) -> None:
    url = stub.says("/gone", Reply(status, b"<b>no\x1b[2J such</b>\n" + b"x" * 2000))
    result = run(persistent, f"{url}?token=abc")
    assert len(stub.asked) == 1 and result.state == "failed" and result.attempts == 1
    assert result.error is not None and result.error.type == "HttpRefused"
    assert result.error.message.startswith(f"GET {url} answered {status}: <b>no?[2J such</b> xxx")
    assert len(result.error.message) < 700 and "abc" not in result.error.message


def test_a_status_that_is_allowed_is_an_answer(stub: Stub) -> None:
    @flow(name="looks")
    async def looks(url: str) -> list[int]:
        return [
            (await http.get(url, allow={404})).status_code,
            (await http.head(url, allow={404})).status_code,
        ]

    assert run(looks, f"{stub.url}/nothing").result == [404, 404]


def test_nobody_who_answers_is_asked_again(stub: Stub) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://user:pass@127.0.0.1:{closed.getsockname()[1]}/x?y"
        result = run(fetch, url)
    assert result.error is not None and result.error.type == "HttpError"
    assert result.error.message.count("pass") == 0
    assert result.steps["http.get#1"].tries == 4
    shown = url.replace("user:pass@", "").replace("?y", "")
    assert result.error.message.startswith(f"GET {shown}: no answer: ")


def test_an_answer_that_is_cut_is_none(stub: Stub) -> None:
    result = run(fetch, stub.says("/cut", Reply(200, b"half", cut=True), Reply(200, b"whole")))
    assert (result.result, result.steps["http.get#1"].tries) == ("whole", 2)


def test_a_try_has_a_time(stub: Stub) -> None:
    def slowly() -> Iterator[bytes]:
        yield b"a"
        held.accept()[0].close()
        yield b"b"

    @flow(name="waits")
    async def waits(url: str) -> str:
        return (await http.get(url, timeout="100ms", retry=0)).text

    with socket.create_server(("127.0.0.1", 0)) as held:
        url = stub.says("/slow", Reply(200, slowly, has_length=False))
        result = run(waits, url)
        socket.create_connection(held.getsockname()).close()
    assert result.error is not None
    assert result.error.message == f"GET {url}: no answer within 0.1s"


# ---------------------------------------------------------------- what is recorded


def test_an_answer_is_recorded_and_nobody_is_asked_again(stub: Stub) -> None:
    content = bytes(range(256))
    url = stub.says("/raw", Reply(200, content, {"X-Kind": "raw", "Content-Type": "a/b"}))

    @task
    async def look(answer: HttpResponse) -> int:
        log.append(answer)
        return len(answer.content)

    @flow(name="raw")
    async def raw(url: str) -> int:
        answer = await http.get(url)
        log.append(answer)
        return await look(answer)

    assert run(raw, url, crash_at=2).result == 256
    assert len(stub.asked) == 1
    assert len({each.content for each in log}) == 1 and log[0] == log[-1]
    assert log[-1].headers["x-kind"] == "raw" and log[-1].url == url
    assert "idempotency-key" not in stub.asked[0].headers, "GET changes nothing"


def test_a_caught_error_comes_back_with_its_status(stub: Stub) -> None:
    @task
    async def after(status: int | None) -> int | None:
        return status

    @flow(name="catches")
    async def catches(url: str) -> int | None:
        try:
            await http.get(url, retry=1)
        except HttpError as error:
            log.append((type(error), error.status_code, error.retry_after))
            return await after(error.status_code)
        return None

    for status, kind in ((503, HttpError), (404, HttpRefused)):
        stub.asked.clear()
        url = stub.says(f"/{status}", Reply(status, headers={"Retry-After": "0"}))
        assert run(catches, url, crash_at=2).result == status
        assert len(stub.asked) == (2 if status == 503 else 1)
        assert log[-1] == log[-2] == (kind, status, "0" if status == 503 else None)


def test_text_and_json_are_read_as_they_say(stub: Stub) -> None:
    @flow(name="reads")
    async def reads(url: str) -> list[str]:
        text = (await http.get(f"{url}/latin", retry=0)).text
        try:
            (await http.get(f"{url}/bad", retry=0)).json()
        except ValueError as error:
            return [text, type(error).__name__]
        return []

    headers = {"Content-Type": "text/plain; charset=ISO-8859-1"}
    stub.says("/latin", Reply(200, "stra\xdfe".encode("latin-1"), headers))
    stub.says("/bad", Reply(200, b"{"))
    result = run(reads, stub.url).result
    assert result[0] == "stra\xdfe" and "Error" in result[1]


# ---------------------------------------------------------------- secrets and keys


def test_a_secret_travels_and_is_never_told(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "wrong-horse-charger")
    monkeypatch.setenv("SHOP_URL", f"{stub.url}/hooks/very-secret-path")

    @flow(name="pays")
    async def pays() -> None:
        await http.post(
            secret("SHOP_URL"), content="hello", headers={"X-Token": secret("SHOP_TOKEN")}
        )

    stub.says("/hooks/very-secret-path", Reply(403, b"wrong-horse-charger is wrong"))
    result = run(pays)
    assert stub.asked[0].headers["x-token"] == "wrong-horse-charger"
    assert stub.asked[0].body == b"hello"
    assert result.error is not None
    assert result.error.message == f"POST {stub.url} answered 403: ******** is wrong"
    recorded = result.steps["http.post#1"].arguments
    assert recorded is not None and "correct" not in recorded.words


def test_what_is_sent_to_a_secret_address_succeeds_and_nothing_recorded_holds_it(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAT_URL", stub.says("/hooks/very-secret-path", Reply(200, b"ok")))
    monkeypatch.setenv("CHAT_TOKEN", "wrong-horse-charger")

    @flow(name="tells")
    async def tells(url: str) -> list[str]:
        token = secret("CHAT_TOKEN")
        return [
            (await http.post(secret("CHAT_URL"), json="hello")).url,
            (await http.post(url, params={"token": token})).url,
            (await http.post(f"{url}/{token.reveal()}/send")).url,
        ]

    stub.says("/chat", Reply(200))
    stub.says("/chat/wrong-horse-charger/send", Reply(200))
    result = run(tells, f"{stub.url}/chat")
    assert result.result == [
        stub.url, f"{stub.url}/chat?token=********", f"{stub.url}/chat/********/send",
    ]  # fmt: skip
    assert [each.path for each in stub.asked] == [
        "/hooks/very-secret-path", "/chat?token=wrong-horse-charger",
        "/chat/wrong-horse-charger/send",
    ]  # fmt: skip


async def test_a_secret_that_no_header_can_hold_is_named(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_TOKEN", "two\nlines")
    with pytest.raises(HttpRefused) as refused:
        await http.get(stub.url, headers={"X-Token": secret("BAD_TOKEN")})
    assert str(refused.value) == "header 'X-Token': secret('BAD_TOKEN') is no line of ASCII text"
    assert not stub.asked


def test_in_a_task_requests_that_differ_in_their_query_have_keys_of_their_own(stub: Stub) -> None:
    @task
    async def all_of_them(url: str) -> None:
        for item in (1, 2):
            await http.post(url, params={"item": item})

    @flow(name="orders")
    async def orders(url: str) -> None:
        await all_of_them(url)

    assert run(orders, stub.says("/orders", Reply(200))).state == "succeeded"
    assert len({each.headers["idempotency-key"] for each in stub.asked}) == 2


def test_in_a_task_each_request_has_a_key_of_its_own(stub: Stub) -> None:
    @task(retry=1)
    async def both(url: str) -> None:
        await http.put(url, json=1)
        await http.put(url, json=2)
        log.append("done")
        if len(log) == 1:
            raise OSError

    @flow(name="twice")
    async def twice(url: str) -> None:
        await both(url)

    stub.says("/puts", Reply(200))
    assert list(run(twice, f"{stub.url}/puts").steps) == ["both#1"]
    keys = [each.headers["idempotency-key"] for each in stub.asked]
    assert len(keys) == 4 and keys[:2] == keys[2:] and keys[0] != keys[1]


async def test_outside_a_run_it_is_a_plain_call_with_a_new_key(stub: Stub) -> None:
    url = stub.says("/plain", Reply(200, b"1"))
    for _ in range(2):
        assert (await http.delete(url, headers={"X": "y"})).json() == 1
    assert len({each.headers["idempotency-key"] for each in stub.asked}) == 2
    await http.post(url, headers={"Idempotency-Key": "mine"}, params={"a": "b c"})
    assert stub.asked[-1].headers["idempotency-key"] == "mine"
    assert stub.asked[-1].path == "/plain?a=b+c" or stub.asked[-1].path == "/plain?a=b%20c"


# ---------------------------------------------------------------- bounds


BOMB = gzip.compress(bytes(50_000_000))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(200, b"x" * 1001), "the answer is too large (it has 1,001 bytes; max_bytes=1,000)"),
        (Reply(200, b"x" * 1001, has_length=False), "(it has more than 1,000 bytes; max_bytes=1"),
        (Reply(200, BOMB, {"Content-Encoding": "gzip"}), "the answer is too large (it has "),
        (
            Reply(200, BOMB, {"Content-Encoding": "gzip"}, has_length=False),
            "(it has more than 1,000 bytes; max_bytes=1,000)",
        ),
        (Reply(200, b"x", {"Content-Encoding": "br"}), "is packed as 'br', which was not asked"),
        (
            Reply(200, b"not packed at all", {"Content-Encoding": "gzip"}),
            "the answer cannot be unpacked",
        ),
        (
            Reply(200, gzip.compress(b"x" * 99)[:-9], {"Content-Encoding": "gzip"}),
            "the answer ended before it was complete",
        ),
    ],
)
async def test_what_is_too_large_or_unreadable_is_refused(
    stub: Stub, reply: Reply, words: str
) -> None:
    url = stub.says("/much", reply)
    with pytest.raises(HttpError) as refused:
        await http.get(url, max_bytes=1000)
    assert words in str(refused.value)


def test_an_error_page_beyond_the_bound_or_packed_is_an_answer_of_its_status(stub: Stub) -> None:
    @flow(name="small")
    async def small(url: str) -> str:
        return (await http.get(url, max_bytes="1KiB")).text

    big = Reply(503, b"x" * 5000)
    assert run(small, stub.says("/busy", big, Reply(200, b"ok"))).result == "ok"
    packed = Reply(404, b"nope", {"Content-Encoding": "br"})
    error = run(small, stub.says("/packed", packed)).error
    assert error is not None and error.message == f"GET {stub.url}/packed answered 404"


async def test_what_is_packed_is_unpacked(stub: Stub) -> None:
    content = b"0123456789" * 100_000
    url = stub.says("/packed", Reply(200, gzip.compress(content), {"Content-Encoding": "gzip"}))
    assert (await http.get(url)).content == content
    assert stub.asked[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("packed", "content"),
    [
        (gzip.compress(b"one") + gzip.compress(b"two"), b"onetwo"),
        (gzip.compress(b"one") + bytes(100_000), b"one"),
        (b"", b""),
    ],
    ids=["several", "padding", "none"],
)
async def test_several_packed_contents_padding_and_none_are_unpacked(
    stub: Stub, packed: bytes, content: bytes
) -> None:
    url = stub.says("/packed", Reply(200, packed, {"Content-Encoding": "gzip"}))
    assert (await http.get(url)).content == content


async def test_what_follows_a_packed_content_is_not_held_in_memory(stub: Stub) -> None:
    def endless() -> Iterator[bytes]:
        yield gzip.compress(b"one")
        for _ in range(1000):
            yield b"x" * 65_536

    url = stub.says("/packed", Reply(200, endless, {"Content-Encoding": "gzip"}))
    before = psutil.Process().memory_info().rss
    with pytest.raises(HttpError, match="the answer cannot be unpacked"):
        await http.get(url)
    assert psutil.Process().memory_info().rss - before < 20 * 2**20


async def test_no_proxy_of_the_environment_comes_between(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await http.get(stub.says("/direct", Reply(200, b"ok")))).text == "ok"


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"method": "get "}, "write a method such as 'GET'"),
    ({"json": 1, "content": b"x"}, "http(json=…, content=…): one of them is the body"),
    ({"json": object()}, "http(json=…) cannot be written as JSON"),
    ({"headers": {"X": "a\r\nY: b"}}, "'X' is no header of one line of ASCII text"),
    ({"headers": {"X y": "a"}}, "'X y' is no header of one line of ASCII text"),
    ({"to": "dump.zst"}, "http(to='dump.zst'): write to=artefact('dump.zst')"),
    ({"timeout": "soon"}, "soon"),
    ({"max_bytes": "many"}, "cannot read the size 'many'"),
    ({"params": "a=b"}, "http(params='a=b'): write a dict, such as {'name': 'x'}"),
    ({"headers": [("a", "b")]}, "http(headers=[('a', 'b')]): write a dict"),
    ({"headers": {1: "b"}}, "'1' is no header of one line of ASCII text"),
    ({"content": {"a": 1}}, "http(content={'a': 1}): write bytes or text, or json=…"),
    ({"allow": 404}, "http(allow=404): write statuses, such as allow={404}"),
    ({"allow": ["404"]}, "http(allow=['404']): write statuses, such as allow={404}"),
    ({"redirects": -1}, "http(redirects=-1): write a number to 20"),
]


@pytest.mark.parametrize(("options", "words"), MISTAKES)
def test_mistakes_are_told_at_the_call(options: dict[str, Any], words: str) -> None:
    given = {"method": "GET", **options}
    with pytest.raises(SetupError) as refused:
        _ = http(url="http://x", **given)
    assert words in str(refused.value)


# ---------------------------------------------------------------- redirects


async def test_redirects_are_followed_within_a_bound(stub: Stub) -> None:
    for number in range(9):
        stub.says(f"/r{number}", Reply(302, headers={"Location": f"/r{number + 1}"}))
    stub.says("/r5", Reply(200, b"here"))
    answer = await http.get(f"{stub.url}/r0", headers={"Authorization": "x", "X-Key": "k"})
    assert (answer.text, answer.url) == ("here", f"{stub.url}/r5")
    assert all(each.headers["x-key"] == "k" for each in stub.asked), "one origin"
    stub.says("/r5", Reply(302, headers={"Location": "/r6"}))
    with pytest.raises(HttpRefused, match=r"answered 302, to /r6|answered 302"):
        await http.get(f"{stub.url}/r0")
    with pytest.raises(HttpRefused, match="answered 302"):
        await http.post(f"{stub.url}/r0", json=1)
    assert stub.asked[-1].path == "/r0", "what writes follows none"


async def test_another_origin_gets_no_body_of_ours(stub: Stub) -> None:
    with stubbed() as other:
        stub.says("/moved", Reply(307, headers={"Location": other.says("/new", Reply(200))}))
        await http("GET", f"{stub.url}/moved", json={"card": 1})
        assert stub.asked[-1].body == b'{"card":1}' and other.asked[0].body == b""


async def test_another_origin_gets_no_header_of_ours(stub: Stub) -> None:
    with stubbed() as other:
        place = other.says("/there", Reply(200, b"there"))
        stub.says("/away", Reply(307, headers={"Location": place}))
        given = {"Authorization": "x", "Cookie": "a=b", "X-Api-Key": "k", "Accept": "text/plain"}
        answer = await http.get(stub.url.replace("//", "//u:p@") + "/away", headers=given)
        assert answer.text == "there"
        [asked] = other.asked
        assert "authorization" not in asked.headers and "cookie" not in asked.headers
        assert "x-api-key" not in asked.headers and asked.headers["accept"] == "text/plain"
        assert stub.asked[0].headers["cookie"] == "a=b"


@pytest.mark.parametrize("place", ["file:///etc/passwd", "gopher://127.0.0.1/", "data:,x"])
async def test_a_redirect_leads_to_the_web_only(stub: Stub, place: str) -> None:
    url = stub.says("/odd", Reply(301, headers={"Location": place}))
    with pytest.raises(HttpRefused, match="is refused: it"):
        await http.get(url)


# ---------------------------------------------------------------- downloads


@task
def measure(name: str) -> int:
    return artefact(name).path.stat().st_size


@flow
async def download(url: str) -> int:
    answer = await http.get(url, to=artefact("dump.bin"), timeout="10m")
    assert answer.content == b"" and answer.artefact == "dump.bin"
    return await measure.run("dump.bin")


async def test_a_body_goes_to_an_artefact_also_after_a_try_that_failed(stub: Stub) -> None:
    url = stub.says(
        "/dump", Reply(200, b"half" * 500_000, cut=True), Reply(503, b"later"),
        Reply(200, b"whole" * 500_000, {"Content-Type": "application/zstd; x=y"}),
    )  # fmt: skip
    async with serve(download) as service:
        result = await service.run(download, url, crash_at=1)
        assert result.result == 2_500_000
        stored = await service.journal.run(result.id)
        assert stored is not None
        [kept] = await service.journal.artefacts(stored.seq, 10)
        assert (kept.key, kept.type, kept.size) == ("http.get#1", "application/zstd", 2_500_000)
        parts = service.folder.glob("journal/results/*.part")
        async with asyncio.timeout(10):
            while list(parts):  # noqa: ASYNC110  a thread deletes them
                await asyncio.sleep(0.001)


def test_what_a_thread_still_writes_at_the_timeout_is_discarded_after_that(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, discard, may_end = StagedBlob.write, StagedBlob.discard, threading.Event()

    def slow_write(staged: StagedBlob, data: bytes) -> None:
        threading.Timer(1.2, may_end.set).start()
        may_end.wait(10)
        write(staged, data)
        log.append("written")

    def told_discard(staged: StagedBlob) -> None:
        log.append("discarded")
        discard(staged)

    monkeypatch.setattr(StagedBlob, "write", slow_write)
    monkeypatch.setattr(StagedBlob, "discard", told_discard)

    @flow(name="late")
    async def late(url: str) -> None:
        await http.get(url)  # what it imports takes its time
        await http.get(url, to=artefact("dump"), timeout="1s", retry=0)

    error = run(late, stub.says("/dump", Reply(200, bytes(100)))).error
    assert error is not None and error.message.endswith("no answer within 1s")
    assert log == ["written", "discarded"]


@pytest.mark.parametrize("said", ["x" * 101 + "/y", "\xe4/b", "_/x"])
def test_a_type_that_is_none_is_left_out(stub: Stub, said: str) -> None:
    @flow(name="keeps")
    async def keeps(url: str) -> str | None:
        return (await http.get(url, to=artefact("page"))).artefact

    url = stub.says("/odd", Reply(200, b"data", {"Content-Type": said}))
    assert run(keeps, url).result == "page"


async def test_a_refusal_attaches_nothing(stub: Stub) -> None:
    async with serve(download) as service:
        result = await service.run(download, f"{stub.url}/none")
        assert result.error is not None and result.error.message.endswith("404: no such path")
        stored = await service.journal.run(result.id)
        assert stored is not None and await service.journal.artefacts(stored.seq, 10) == []


async def test_an_artefact_has_its_own_bound(stub: Stub) -> None:
    url = stub.says("/large", Reply(200, b"x" * 3_000_000, has_length=False))
    async with serve(download, max_artefact_bytes=2_000_000) as service:
        result = await service.run(download, url)
        assert result.error is not None
        assert "artefact 'dump.bin' has more than 2,000,000 bytes" in result.error.message
        assert len(stub.asked) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_download_of_any_size_takes_the_same_memory(
    stub: Stub, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnout.testing.service._PATIENCE_SECONDS", 280.0)
    part = b"0123456789abcdef" * 65_536
    count = 1024 if full else 40  # MiB

    def parts() -> Iterator[bytes]:
        for _ in range(count):
            yield part

    url = stub.says("/gib", Reply(200, parts, has_length=False))
    process, most = psutil.Process(), 0
    async with serve(download) as service:
        await service.run(download, stub.says("/small", Reply(200, b"x" * 3_000_000)))
        before = process.memory_info().rss

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, process.memory_info().rss - before)
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch())
            result = await service.run(download, url)
            watching.cancel()
        assert result.result == count * 2**20
    assert most < 24 * 2**20, f"{most / 2**20:.0f} MiB more for a download of {count} MiB"


def test_it_is_explained_as_a_step_and_a_dry_run_sends_what_reads_only(
    stub: Stub, tmp_path: Path
) -> None:
    (tmp_path / "flows.py").write_text(
        "from turnout import flow, http\n\n\n@flow\nasync def asks(url: str) -> str:\n"
        "    await http.post(url, json=1)\n    return (await http.get(url)).text\n"
    )
    url = stub.says("/dry", Reply(200, b"read"))
    told = turnout("explain", f"{tmp_path}/flows.py:asks", "--json")
    assert told.returncode == 0, told.stderr
    steps = json.loads(told.stdout)["steps"]
    assert [each["name"] for each in steps] == ["http.post", "http.get"]
    dry = turnout("run", tmp_path / "flows.py:asks", "--input", f'"{url}"', "--dry-run")
    assert [each.method for each in stub.asked] == ["GET"], dry.stdout + dry.stderr
    assert "http.post#1" in dry.stdout


@pytest.mark.slow
def test_a_dry_run_asks_for_nothing_that_is_made_of_what_is_not_known(
    stub: Stub, tmp_path: Path
) -> None:
    (tmp_path / "flows.py").write_text(
        "from turnout import flow, http, task\n\n\n@task\nasync def create() -> str:\n"
        "    return 'x'\n\n\n@flow\nasync def asks(url: str) -> None:\n"
        "    made = await create()\n"
        "    await http.get(f'{url}/{made}')\n"
        "    await http.get(url, params={'made': made})\n"
        "    await http.get(url, headers={'X-Made': made})\n"
        "    await http.post(url, json={'made': [made]})\n"
        "    await http.post(url, content=made)\n"
        "    await http.get(url)\n"
    )
    url = stub.says("/dry", Reply(200, b"read"))
    dry = turnout("run", tmp_path / "flows.py:asks", "--input", f'"{url}"', "--dry-run", "--json")
    assert dry.returncode == 0, dry.stdout + dry.stderr
    told = [(each["kind"], each["step"]) for each in json.loads(dry.stdout)["would"]]
    assert told == [
        ("call", "create#1"), ("read", "http.get#1"), ("read", "http.get#2"),
        ("read", "http.get#3"), ("call", "http.post#1"), ("call", "http.post#2"),
    ]  # fmt: skip
    [word, *_] = [each["words"] for each in json.loads(dry.stdout)["would"]][1:]
    assert word.startswith(f"http.get('{url}/<create#1>'") and word.endswith(
        ", but <create#1> is not known"
    )
    assert [each.path for each in stub.asked] == ["/dry"]


def test_people_see_what_a_request_sends_with_its_secrets_masked(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "wrong-horse-charger")

    @flow(name="shows")
    async def shows(url: str) -> None:
        token = secret("SHOP_TOKEN")
        await http.post(url, json={"item": 7, "token": token.reveal()})
        await http.put(url, content="x" * 200, params={"of": 1, "token": token})
        await http.get(url, to=artefact("page"))
        await http.get(url)

    url = stub.says("/s", Reply(200))
    steps = run(shows, url).steps.values()
    assert [each.arguments and each.arguments.words for each in steps] == [
        f"""http.post('{url}', json={{"item":7,"token":"********"}})""",
        f"http.put('{url}', params={{'of': 1, 'token': secret('SHOP_TOKEN')}}, "
        f"content='{'x' * 22}…)",
        f"http.get('{url}', to=artefact('page'))",
        f"http.get('{url}')",
    ]
