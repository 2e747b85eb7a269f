"""Signature schemes: published vectors pass, and nothing else does."""

from __future__ import annotations

import base64
import hashlib
import hmac as reference
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import CHECKOUT
from turnout.service.domain.errors import SetupError
from turnout.service.domain.trigger import Inbound
from turnout.service.governance.secrets import Secret
from turnout.triggers.signatures import (
    MAX_HEADER_BYTES,
    SCHEMES,
    Hmac,
    HmacVerifier,
    StripeVerifier,
    Template,
    Unverified,
    Verifier,
    hmac,
    scheme_named,
)

VECTORS = json.loads((CHECKOUT / "tests/data" / "webhook_vectors.json").read_text("utf-8"))
NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
STAMP = str(int(NOW.timestamp())).encode()
KEY = b"a secret of the tests"


def request(
    body: bytes, headers: Mapping[str, bytes | Sequence[bytes]], at: datetime = NOW
) -> Inbound:
    listed = {
        name.lower(): [value] if isinstance(value, bytes) else list(value)
        for name, value in headers.items()
    }
    return Inbound(
        method="POST",
        path="/hooks/x",
        params={},
        query=b"",
        headers=listed,
        body=body,
        client=None,
        received_at=at,
    )


def verifier(scheme: Hmac, *keys: bytes) -> HmacVerifier:
    scheme.check()
    return HmacVerifier(scheme, [(f"KEY_{n}", key) for n, key in enumerate(keys or (KEY,))])


def is_refused(judge: Verifier, inbound: Inbound) -> bool:
    """Say whether a request is refused; any other exception than the refusal is the test's."""
    try:
        judge.verify(inbound)
    except Unverified:
        return True
    return False


def known(name: str) -> Hmac:
    scheme = SCHEMES[name]
    assert isinstance(scheme, Hmac)
    return scheme


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["id"] for vector in VECTORS])
def test_published_vectors_verify(vector: dict[str, Any]) -> None:
    if vector["scheme"] == "hmac":
        (header,) = vector["headers"]
        scheme = hmac(header, algorithm=vector["algorithm"], encoding=vector["encoding"])
    else:
        scheme = known(vector["scheme"])
    key = bytes.fromhex(vector["secret_hex"]) if "secret_hex" in vector else b""
    judge = verifier(scheme, key or vector["secret"].encode())
    headers = {name: value.encode() for name, value in vector["headers"].items()}
    at = datetime.fromtimestamp(int(headers.get("X-Slack-Request-Timestamp", STAMP)), UTC)
    body = vector["body"].encode()
    assert judge.verify(request(body, headers, at)) == "KEY_0"
    assert is_refused(judge, request(body + b" ", headers, at))
    assert is_refused(verifier(scheme, b"another secret"), request(body, headers, at))


def signed(
    scheme: Hmac, body: bytes, key: bytes = KEY, stamp: bytes = STAMP, identity: bytes = b"msg_1"
) -> dict[str, bytes]:
    """Sign as a sender would, with code of our own only in the oracle's place."""
    message = (
        scheme.template.encode()
        .replace(b"{id}", identity)
        .replace(b"{timestamp}", stamp)
        .replace(b"{body}", body)
    )
    raw = reference.new(key, message, getattr(hashlib, scheme.algorithm)).digest()
    text = raw.hex().encode() if scheme.encoding == "hex" else base64.b64encode(raw)
    headers = {scheme.header: scheme.prefix.encode() + text}
    if scheme.timestamp_header is not None:
        headers[scheme.timestamp_header] = stamp
    if scheme.id_header is not None:
        headers[scheme.id_header] = identity
    return headers


PLAIN = hmac("X-Signature", prefix="sha256=")
SHA512_BASE64 = hmac("X-Signature", algorithm="sha512", encoding="base64")
STAMPED = hmac("X-Signature", template="{timestamp}.{body}", timestamp_header="X-Time")
WHOLE = hmac(
    "X-Signature",
    encoding="base64",
    prefix="v1,",
    template="{id}.{timestamp}.{body}",
    timestamp_header="X-Time",
    id_header="X-Id",
)
SLACK = known("slack")
ALL = {"plain": PLAIN, "sha512-base64": SHA512_BASE64, "stamped": STAMPED, "whole": WHOLE}


@pytest.mark.parametrize("scheme", ALL.values(), ids=ALL)
class TestMutations:
    """Whatever is changed about a good request, it is refused and nothing else happens."""

    @settings(max_examples=400, deadline=None)
    @given(data=st.data())
    def test_a_changed_request_is_refused(self, scheme: Hmac, data: st.DataObject) -> None:
        judge = verifier(scheme)
        body = data.draw(st.binary(max_size=200))
        headers: dict[str, bytes] = signed(scheme, body)
        assert judge.verify(request(body, headers)) == "KEY_0"
        target = data.draw(st.sampled_from(["body", *headers]))
        before = body if target == "body" else headers[target]
        after = data.draw(mutations(before))
        if after == before or (target == scheme.header and before in apart(after)):
            return
        if target == "body":
            assert is_refused(judge, request(after, headers))
        elif target in (scheme.header, scheme.timestamp_header) or "{id}" in scheme.template:
            assert is_refused(judge, request(body, {**headers, target: after}))

    @settings(max_examples=150, deadline=None)
    @given(
        values=st.dictionaries(
            st.sampled_from(["x-signature", "x-time", "x-id"]),
            st.lists(st.binary(max_size=80), max_size=3),
        ),
        body=st.binary(max_size=50),
    )
    def test_arbitrary_headers_are_refused(
        self, scheme: Hmac, values: dict[str, list[bytes]], body: bytes
    ) -> None:
        assert is_refused(verifier(scheme), request(body, values))

    def test_each_named_trick_is_refused(self, scheme: Hmac) -> None:
        judge = verifier(scheme)
        body = b'{"amount": 12}'
        headers = signed(scheme, body)
        good = headers[scheme.header]
        tricks: list[bytes | list[bytes]] = [
            b"",
            good.upper() if good.upper() != good else b"x",
            good.removeprefix(scheme.prefix.encode())[:-1],
            b" " + good,
            good + b"\n",
            good + b"=",
            b"," + good,
            good + b"  " + good,
            good.replace(b"+", b"-").replace(b"/", b"_").rstrip(b"=") + b"!",
            good + "é".encode(),
            b"\xff\xfe" + good,
            good + b"x" * MAX_HEADER_BYTES,
            [good, good],
            [],
        ]
        for trick in tricks:
            assert is_refused(judge, request(body, {**headers, scheme.header: trick})), trick
        missing = {name: value for name, value in headers.items() if name != scheme.header}
        assert is_refused(judge, request(body, missing))

    def test_another_secret_is_refused_and_each_active_one_is_named(self, scheme: Hmac) -> None:
        rotating = verifier(scheme, b"old secret", b"new secret")
        for key, name in ((b"old secret", "KEY_0"), (b"new secret", "KEY_1")):
            assert rotating.verify(request(b"x", signed(scheme, b"x", key))) == name
        assert is_refused(rotating, request(b"x", signed(scheme, b"x", b"third secret")))


def apart(header: bytes) -> list[bytes]:
    """Return the signatures of a header that holds several."""
    return (
        header.replace(b"v1,", b"v1;")
        .replace(b", ", b" ")
        .replace(b",", b" ")
        .replace(b"v1;", b"v1,")
        .split(b" ")
    )


@pytest.mark.parametrize("scheme", ALL.values(), ids=ALL)
class TestSeveralSignatures:
    """While a secret is changed, a sender signs with the old one and the new one."""

    def test_one_that_is_right_is_enough(self, scheme: Hmac) -> None:
        headers = signed(scheme, b"x")
        good = headers[scheme.header]
        other = signed(scheme, b"x", b"another secret")[scheme.header]
        unknown = b"v1a,0123+/=" if "," in scheme.prefix else b"v2=0123"
        for several in ([other, good], [good, other], [unknown, other, good]):
            sent = {**headers, scheme.header: b" ".join(several)}
            assert verifier(scheme).verify(request(b"x", sent)) == "KEY_0"
            if "," not in scheme.prefix:
                for between in (b",", b", "):
                    sent = {**headers, scheme.header: between.join(several)}
                    assert verifier(scheme).verify(request(b"x", sent)) == "KEY_0"

    def test_none_that_is_right_is_refused(self, scheme: Hmac) -> None:
        headers = signed(scheme, b"x")
        others = [signed(scheme, b"x", key)[scheme.header] for key in (b"one", b"two")]
        sent = {**headers, scheme.header: b" ".join(others)}
        assert is_refused(verifier(scheme), request(b"x", sent))


def mutations(value: bytes) -> st.SearchStrategy[bytes]:
    """Bytes near `value`: a flipped bit, a cut, something put in, another case, or anything."""

    def flip(bit: int) -> bytes:
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << (bit % 8)
        return bytes(changed)

    near = [
        st.integers(0, max(len(value) - 1, 0)).map(lambda end: value[:end]),
        st.tuples(st.integers(0, len(value)), st.binary(min_size=1, max_size=3)).map(
            lambda put: value[: put[0]] + put[1] + value[put[0] :]
        ),
        st.sampled_from([value.upper(), value.lower(), value[::-1], value + value, b" " + value]),
        st.binary(max_size=100),
    ]
    if value:
        near.append(st.integers(0, len(value) * 8 - 1).map(flip))
    return st.one_of(near)


@pytest.mark.parametrize("scheme", [STAMPED, WHOLE, SLACK], ids=["stamped", "whole", "slack"])
class TestTimestamps:
    @pytest.mark.parametrize("seconds", [-300, -299, 0, 299, 300])
    def test_within_the_tolerance_both_ways(self, scheme: Hmac, seconds: int) -> None:
        headers = signed(scheme, b"x")
        assert verifier(scheme).verify(request(b"x", headers, NOW + timedelta(seconds=seconds)))

    @pytest.mark.parametrize("seconds", [-100_000, -301, 301, 100_000])
    def test_outside_it_a_replay_is_refused(self, scheme: Hmac, seconds: int) -> None:
        headers = signed(scheme, b"x")
        late = request(b"x", headers, NOW + timedelta(seconds=seconds))
        assert is_refused(verifier(scheme), late)

    @pytest.mark.parametrize(
        "stamp",
        [b"", b" %b " % STAMP, b"1e9", b"nan", b"+1", b"-1", STAMP + b".0", b"0x10", b"9" * 13,
         b"9223372036854775808", "١٢٣".encode(), b"1_000", STAMP + b"\n"],
    )  # fmt: skip
    def test_even_signed_a_time_that_is_no_number_is_refused(
        self, scheme: Hmac, stamp: bytes
    ) -> None:
        assert is_refused(verifier(scheme), request(b"x", signed(scheme, b"x", stamp=stamp)))


@pytest.mark.parametrize("scheme", [STAMPED, WHOLE], ids=["stamped", "whole"])
class TestWaysToWriteATime:
    @pytest.mark.parametrize(
        "stamp",
        [STAMP, STAMP + b"000", STAMP + b"999", b"2026-05-04T12:00:00Z",
         b"2026-05-04T14:00:01.250+02:00", b"Mon, 04 May 2026 12:00:00 GMT"],
    )  # fmt: skip
    def test_an_instant_is_taken_however_it_is_written(self, scheme: Hmac, stamp: bytes) -> None:
        headers = signed(scheme, b"x", stamp=stamp)
        assert verifier(scheme).verify(request(b"x", headers)) == "KEY_0"
        late = request(b"x", headers, NOW + timedelta(seconds=302))
        assert is_refused(verifier(scheme), late)

    @pytest.mark.parametrize(
        "stamp",
        [b"2026-05-04T12:00:00", b"2026-05-04", b"2026-13-04T12:00:00Z",
         b"0001-01-01T00:00:00+23:59",
         b"Mon, 04 May 2026 12:00:00 CET", b"Mon, 34 May 2026 12:00:00 GMT", b"noon"],
    )  # fmt: skip
    def test_what_is_no_instant_is_refused(self, scheme: Hmac, stamp: bytes) -> None:
        assert is_refused(verifier(scheme), request(b"x", signed(scheme, b"x", stamp=stamp)))


STRIPE = "Stripe-Signature"


def of_stripe(body: bytes, *keys: bytes, stamp: bytes = STAMP, name: str = "v1") -> bytes:
    """Sign as Stripe does, with each of these secrets."""
    signatures = [reference.new(key, stamp + b"." + body, hashlib.sha256) for key in keys]
    return b",".join(
        [b"t=" + stamp, *(f"{name}={each.hexdigest()}".encode() for each in signatures)]
    )


class TestStripe:
    """In `tests/handlers/test_signed_senders.py` Stripe's own library signs and judges."""

    @pytest.fixture
    def judge(self, monkeypatch: pytest.MonkeyPatch) -> Verifier:
        monkeypatch.setenv("OLD", "whsec_old")
        monkeypatch.setenv("NEW", "whsec_new")
        return scheme_named("stripe").verifier([Secret("OLD"), Secret("NEW")])

    def test_one_signature_that_is_right_is_enough_while_a_secret_is_rolled(
        self, judge: Verifier
    ) -> None:
        for keys, name in (
            ([b"whsec_old"], "OLD"),
            ([b"whsec_new"], "NEW"),
            ([b"whsec_newer", b"whsec_new"], "NEW"),
            ([b"whsec_new", b"whsec_newer"], "NEW"),
        ):
            header = of_stripe(b"{}", *keys)
            assert judge.verify(request(b"{}", {STRIPE: header})) == name
            old_way = b",v0=" + b"0" * 64
            assert judge.verify(request(b"{}", {STRIPE: header + old_way})) == name

    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_a_changed_request_is_refused(self, data: st.DataObject) -> None:
        judge = StripeVerifier([("KEY_0", KEY)])
        body = data.draw(st.binary(max_size=50))
        header = of_stripe(body, KEY)
        assert judge.verify(request(body, {STRIPE: header})) == "KEY_0"
        changed = data.draw(mutations(header))
        if not set(header.split(b",")) <= set(changed.split(b",")):
            assert is_refused(judge, request(body, {STRIPE: changed}))
        changed = data.draw(mutations(body))
        if changed != body:
            assert is_refused(judge, request(changed, {STRIPE: header}))

    @pytest.mark.parametrize(
        ("header", "reason"),
        [
            ([], "must occur once"),
            ([b"t=1", b"v1=2"], "must occur once"),
            (b"", "1 to 4096 bytes"),
            (b"t=%b,v1=" % STAMP + b"0" * 4096, "1 to 4096 bytes"),
            (b"v1=00", "one t= and at least one v1="),
            (b"t=%b,t=%b,v1=00" % (STAMP, STAMP), "one t= and at least one v1="),
            (of_stripe(b"{}", b"whsec_old", name="v0"), "one t= and at least one v1="),
            (of_stripe(b"{}", b"whsec_old", stamp=STAMP + b".0"), "not in seconds since 1970"),
            (of_stripe(b"{}", b"whsec_old", stamp=b"1777896301"), "too far from now"),
            (of_stripe(b"{}", b"whsec_old", stamp=b"1777895699"), "too far from now"),
            (of_stripe(b"{}", b"whsec_other"), "does not match"),
            (of_stripe(b"{ }", b"whsec_old"), "does not match"),
            (of_stripe(b"{}", b"whsec_old").upper().replace(b"T=", b"t=").replace(b"V1", b"v1"),
             "does not match"),
            (b"t=%b,v1=\xff\xfe" % STAMP, "does not match"),
        ],
    )  # fmt: skip
    def test_what_is_refused_is_told_why(
        self, judge: Verifier, header: bytes | list[bytes], reason: str
    ) -> None:
        with pytest.raises(Unverified, match=reason):
            judge.verify(request(b"{}", {STRIPE: header}))

    def test_five_minutes_either_way_are_taken(self, judge: Verifier) -> None:
        for seconds in (-300, 300):
            header = of_stripe(b"{}", b"whsec_old")
            assert judge.verify(request(b"{}", {STRIPE: header}, NOW + timedelta(seconds=seconds)))

    def test_without_a_secret_it_does_not_start(self) -> None:
        with pytest.raises(SetupError, match="needs a secret"):
            scheme_named("stripe").verifier([])


class TestBearer:
    @pytest.fixture
    def judge(self, monkeypatch: pytest.MonkeyPatch) -> Verifier:
        monkeypatch.setenv("OLD", "an old token")
        monkeypatch.setenv("NEW", "a new token")
        return scheme_named("bearer").verifier([Secret("OLD"), Secret("NEW")])

    def test_each_secret_is_a_token(self, judge: Verifier) -> None:
        for header, name in (
            (b"Bearer an old token", "OLD"),
            (b"bearer a new token", "NEW"),
        ):
            assert judge.verify(request(b"{}", {"Authorization": header})) == name

    @pytest.mark.parametrize(
        ("header", "reason"),
        [
            ([], "must occur once"),
            ([b"Bearer a new token"] * 2, "must occur once"),
            (b"Bearer " + b"x" * MAX_HEADER_BYTES, "1 to 4096 bytes"),
            (b"Basic a new token", "must be: Bearer"),
            (b"a new token", "must be: Bearer"),
            (b"Bearer", "token does not match"),
            (b"Bearer a new token ", "token does not match"),
            (b"Bearer  a new token", "token does not match"),
            (b"Bearer A new token", "token does not match"),
            (b"Bearer \xff\xfe", "token does not match"),
        ],
    )
    def test_what_is_refused_is_told_why(
        self, judge: Verifier, header: bytes | list[bytes], reason: str
    ) -> None:
        with pytest.raises(Unverified, match=reason) as refused:
            judge.verify(request(b"{}", {"Authorization": header}))
        assert "new" not in str(refused.value)


def test_a_secret_of_standard_webhooks_is_taken_as_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STANDARD", "whsec_" + base64.b64encode(KEY).decode())
    judge = hmac("X-Signature", key="base64").verifier([Secret("STANDARD")])
    assert judge.verify(request(b"x", signed(PLAIN, b"x") | {"x-signature": _hex(b"x")}))


def _hex(body: bytes) -> bytes:
    return reference.new(KEY, body, hashlib.sha256).hexdigest().encode()


def test_a_dot_in_a_signed_id_is_refused_for_it_could_be_cut_elsewhere() -> None:
    headers = signed(WHOLE, b"body", identity=b"a.1")
    assert is_refused(verifier(WHOLE), request(b"body", headers))


class TestSetup:
    def test_an_unknown_scheme_names_the_known_ones(self) -> None:
        with pytest.raises(
            SetupError, match=r'"github", "slack", "stripe", "bearer", "none" and hmac'
        ):
            scheme_named("gihtub")

    @pytest.mark.parametrize(
        "scheme",
        [
            hmac("not a header"),
            hmac("X", algorithm="sha1"),  # type: ignore[arg-type]  # what an author may write
            hmac("X", encoding="base32"),  # type: ignore[arg-type]
            hmac("X", template="{body}!"),  # type: ignore[arg-type]
            hmac("X", template="{timestamp}.{body}"),
            hmac("X", timestamp_header="X-Time"),
            hmac("X", template="{id}.{timestamp}.{body}", timestamp_header="X-Time"),
            hmac("X", prefix="é"),
        ],
    )
    def test_settings_that_cannot_work_are_refused(self, scheme: Hmac) -> None:
        with pytest.raises(SetupError):
            scheme.check()

    def test_a_missing_secret_refuses_to_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HOOK_KEY", raising=False)
        with pytest.raises(SetupError, match="HOOK_KEY"):
            PLAIN.verifier([Secret("HOOK_KEY")])
        with pytest.raises(SetupError, match="secret"):
            PLAIN.verifier([])

    @pytest.mark.parametrize(("key", "value"), [("hex", "xyzzy-xyzzy"), ("base64", "!!!!!!")])
    def test_an_undecodable_secret_refuses_to_start_without_showing_it(
        self, monkeypatch: pytest.MonkeyPatch, key: Any, value: str
    ) -> None:
        monkeypatch.setenv("HOOK_KEY", value)
        with pytest.raises(SetupError, match=f"is not {key}") as caught:
            hmac("X", key=key).verifier([Secret("HOOK_KEY")])
        assert value not in str(caught.value)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("text", KEY.decode()), ("hex", KEY.hex()), ("base64", base64.b64encode(KEY).decode())],
    )
    def test_a_key_is_read_as_declared(
        self, monkeypatch: pytest.MonkeyPatch, key: Any, value: str
    ) -> None:
        monkeypatch.setenv("HOOK_KEY", value)
        scheme = hmac("X", key=key)
        judge = scheme.verifier([Secret("HOOK_KEY")])
        assert judge.verify(request(b"x", signed(scheme, b"x"))) == "HOOK_KEY"

    @pytest.mark.parametrize("template", get_args(Template))
    def test_every_template_is_signable(self, template: Template) -> None:
        has_time = "{timestamp}" in template
        scheme = hmac(
            "X-Signature",
            template=template,
            timestamp_header="X-Time" if has_time else None,
            id_header="X-Id",
        )
        assert verifier(scheme).verify(request(b"x", signed(scheme, b"x"))) == "KEY_0"
