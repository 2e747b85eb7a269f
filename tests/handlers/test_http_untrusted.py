"""`http(…, untrusted=True)`: addresses that others have chosen reach nothing that is not public.

Each target is asked directly and through a redirect. A canary listens on the loopback addresses; a
name server of the test answers as an attacker's would.
"""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tests.domain.test_addresses import NOT_PUBLIC
from tests.support.inside import forget_certificates
from tests.support.stub_http import Reply, Stub, stubbed
from turnout import HttpError, HttpRefused, http
from turnout.service.client import outbound
from turnout.service.domain.addresses import is_public

PORT = "PORT"
_NUMERIC = re.compile(r"[0-9a-fx.:%]+|(.+\.)?localhost\.?", re.IGNORECASE)
_HOSTS_4 = ("127.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.1.1", "0.0.0.0")


def _spellings(host: str) -> Iterator[str]:
    """Yield other ways to write an IPv4 address."""
    a, b, c, d = (int(part) for part in host.split("."))
    whole = int(ip_address(host))
    yield from (str(whole), hex(whole), oct(whole).replace("o", ""), f"0x{whole:08X}")
    yield from (f"{a}.{(b << 16) + (c << 8) + d}", f"{a}.{b}.{(c << 8) + d}")
    yield from (f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}", f"0{a:o}.0{b:o}.0{c:o}.0{d:o}")
    yield from (f"0x{a:x}.{b}.0{c:o}.{d}", f"{a}.{b}.{c}.{d}.", f"00{a:o}.{b}.{c}.{d}")
    yield from (f"[::ffff:{host}]", f"[::{host}]", f"[64:ff9b::{host}]")
    yield f"[2002:{a:02x}{b:02x}:{c:02x}{d:02x}::]"
    yield f"[2606:4700::5efe:{host}]"
    yield host.translate({ord(str(n)): chr(0xFF10 + n) for n in range(10)})  # full width
    yield host.replace(".", "\u3002")
    yield host.replace(".", "\uff0e")


def _targets() -> Iterator[str]:
    for address in NOT_PUBLIC:
        if (address and address[0].isdigit()) or ":" in address:
            host = f"[{address.replace('%', '%25')}]" if ":" in address else address
            yield f"http://{host}:{PORT}/"
    for host in _HOSTS_4:
        for spelling in _spellings(host):
            yield f"http://{spelling}:{PORT}/latest/meta-data"
    for name in ("localhost", "LOCALHOST", "localhost.", "a.localhost", "l\u24deca\u217chost"):
        yield f"http://{name}:{PORT}/"
    yield from (
        "http://example.com@127.0.0.1:PORT/", "http://example.com:80@127.0.0.1:PORT/",
        "http://127.0.0.1:PORT#@example.com/", "http://127.0.0.1:PORT?@example.com/",
        "http://127.0.0.1:PORT\\@example.com/", "http://example.com\\@127.0.0.1:PORT/",
        "http://a:b@example.com/", "http://@127.0.0.1:PORT/", "http:127.0.0.1:PORT/",
        "http:/127.0.0.1:PORT/", "http:///127.0.0.1:PORT/", "//127.0.0.1:PORT/", "127.0.0.1:PORT",
        "http://127.0.0.1:PORT%2f@example.com/", "http://127.0.0.1%00.example.com:PORT/",
        "http://127.0.0.1%2eexample.com:PORT/", "http://127.0.0.1\t:PORT/",
        "http://127.0.0.1:PORT\r\nHost: example.com/", "http://[::1]:PORT@example.com/",
        "HTTP://127.0.0.1:PORT/", "http://private.test:PORT/", "http://mixed.test:PORT/",
        "http://mapped.test:PORT/", "http://unknown.test:PORT/", "https://private.test:PORT/",
        "http://xn--.test:PORT/", "http://" + "a" * 300 + ".test:PORT/", "http://:PORT/", "http://",
        "", " ", "http://[::1", "http://[1::%25]:PORT/", "http://%31%32%37.0.0.1:PORT/",
    )  # fmt: skip
    for scheme in (
        "file", "ftp", "gopher", "dict", "ldap", "unix", "http+unix", "data", "javascript", "jar",
        "netdoc", "sftp", "ws", "smb", "telnet", "tftp",
    ):  # fmt: skip
        yield f"{scheme}://127.0.0.1:{PORT}/etc/passwd"
        yield f"{scheme}:///etc/passwd"
    for port in (0, 1, 21, 22, 23, 25, 110, 111, 445, 2375, 3306, 5432, 6379, 9200, 11211, 65535):
        yield f"http://93.184.216.34:{port}/"
        yield f"https://93.184.216.34:{port}/"


TARGETS = tuple(dict.fromkeys(_targets()))

NAMES = {
    "private.test": ["10.0.0.1"],
    "mixed.test": ["93.184.216.34", "127.0.0.1"],
    "mapped.test": ["::ffff:127.0.0.1"],
}


class NameServer:
    """Answers like an attacker's name server: `rebind.test` is public once, and then local."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._real = loop.getaddrinfo
        self.public = "127.0.0.2"
        self.asked: list[str] = []

    async def __call__(self, host: Any, port: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append(name)
        if _NUMERIC.fullmatch(name):
            return await self._real(name, port, **options)
        found = NAMES.get(name, [])
        if name == "rebind.test":
            found = [self.public if self.asked.count(name) == 1 else "127.0.0.1"]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    loop = asyncio.get_running_loop()
    server = NameServer(loop)
    monkeypatch.setattr(loop, "getaddrinfo", server)
    return server


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Stub]]:
    """Listen on loopback, at a port that untrusted addresses may have."""
    with ExitStack() as stack:
        found = [stack.enter_context(stubbed("127.0.0.1"))]
        ports = outbound.UNTRUSTED_PORTS | {found[0].port}
        monkeypatch.setattr(outbound, "UNTRUSTED_PORTS", ports)
        yield found


def test_there_are_enough_targets() -> None:
    assert len(TARGETS) >= 200


async def test_no_target_is_reached(canaries: list[Stub], names: NameServer) -> None:
    (canary,) = canaries
    missed = []
    for target in TARGETS:
        url = target.replace(PORT, str(canary.port))
        try:
            await http.get(url, untrusted=True, timeout="5s")
        except HttpError as error:
            if canary.connections or "answered" in str(error):
                missed.append(url)
        else:
            missed.append(url)
    assert missed == [] and canary.connections == 0


@pytest.mark.slow
@pytest.mark.timeout(60)  # 260 targets, each asked through a redirect
async def test_no_target_is_reached_through_a_redirect(
    canaries: list[Stub], names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (canary,) = canaries
    with stubbed("127.0.0.2") as public:
        allow(monkeypatch, public)
        missed = []
        for number, target in enumerate(TARGETS):
            place = target.replace(PORT, str(canary.port))
            if not place.isascii() or not place.isprintable() or "://" not in place:
                continue  # no header holds it, or it is a place on the same server
            url = public.says(f"/{number}", Reply(302, headers={"Location": place}))
            try:
                await http.get(url, untrusted=True, timeout="5s")
            except HttpError:
                pass
            else:
                missed.append(place)
            if canary.connections:
                missed.append(place)
        assert missed == [] and canary.connections == 0
        assert public.connections > 150


async def test_a_name_is_looked_up_once_and_asked_where_it_was(
    canaries: list[Stub], names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (canary,) = canaries
    with stubbed("127.0.0.2") as public:
        allow(monkeypatch, public)
        public.says("/hook", Reply(200, b"public"))
        url = f"http://rebind.test:{public.port}/hook"
        answer = await http.get(url, untrusted=True)
        assert (answer.text, answer.url) == ("public", url)
        assert public.asked[0].headers["host"] == f"rebind.test:{public.port}"
        assert names.asked.count("rebind.test") == 1, "what it says later does not count"
        with pytest.raises(HttpRefused, match=r"the host is at 127\.0\.0\.1, which is not a"):
            await http.get(url, untrusted=True)
        assert canary.connections == 0


async def test_a_redirect_looks_the_name_up_anew(
    canaries: list[Stub], names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stubbed("127.0.0.2") as public:
        allow(monkeypatch, public)
        url = f"http://rebind.test:{public.port}/hook"
        public.says("/hook", Reply(302, headers={"Location": url}))
        with pytest.raises(HttpRefused, match=r"the host is at 127\.0\.0\.1"):
            await http.get(url, untrusted=True)
    assert canaries[0].connections == 0


async def test_the_certificate_is_that_of_the_name_though_the_address_is_asked(
    names: NameServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = await asyncio.to_thread(make_certificate, tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made))
    forget_certificates()
    with stubbed("127.0.0.2", certificate=made) as public:
        allow(monkeypatch, public)
        public.says("/", Reply(200, b"secure"))
        for name in ("secure.test", "other.test"):
            monkeypatch.setitem(NAMES, name, ["127.0.0.2"])
        answer = await http.get(f"https://secure.test:{public.port}/", untrusted=True)
        assert answer.text == "secure"
        with pytest.raises(HttpError, match="CERTIFICATE_VERIFY_FAILED"):
            await http.get(f"https://other.test:{public.port}/", untrusted=True)
        with pytest.raises(HttpError, match="CERTIFICATE_VERIFY_FAILED"):
            await http.get(f"https://127.0.0.2:{public.port}/")
    forget_certificates()


def make_certificate(folder: Path) -> Path:
    made = folder / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=secure.test", "-addext",
         "subjectAltName=DNS:secure.test", "-keyout", folder / "key.pem", "-out", made],
        check=True, capture_output=True,
    )  # fmt: skip
    with made.open("a") as file:
        file.write((folder / "key.pem").read_text())
    return made


async def test_the_reason_is_told(names: NameServer) -> None:
    for url, words in (
        ("http://127.0.0.1/", "GET http://127.0.0.1/ is refused: the host is at 127.0.0.1, which "),
        (
            "http://a:b@93.184.216.34/",
            "GET http://93.184.216.34/ is refused: an untrusted address ",
        ),
        ("http://93.184.216.34:22/", "an untrusted address has a port of the web, not 22"),
        ("file:///etc/passwd", "it is not http or https: file"),
    ):
        with pytest.raises(HttpRefused) as refused:
            await http.get(url, untrusted=True)
        assert words in str(refused.value)
    with pytest.raises(HttpError, match="the host is not found"):
        await http.get("http://unknown.test/", untrusted=True)


def allow(monkeypatch: pytest.MonkeyPatch, public: Stub) -> None:
    """Let an address of this machine be a public one, as none is in a test."""
    monkeypatch.setattr(outbound, "is_public", lambda text: text == "127.0.0.2" or is_public(text))
    ports = outbound.UNTRUSTED_PORTS | {public.port}
    monkeypatch.setattr(outbound, "UNTRUSTED_PORTS", ports)
