"""Hostile bodies are refused with a reason or decoded exactly; never changed in silence."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.service.domain.errors import InvalidData
from turnout.service.domain.payload import MAX_DEPTH, decode, write_json

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@pytest.mark.parametrize(
    "body",
    [
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e999",
        b"[1e999, 12345678901234567890]",
        b"[NaN, 12345678901234567890]",
        b'"\\ud800"',
        b'["\\ud800", 12345678901234567890]',
        b'{"a": \xff}',
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b"9" * 5000,
        b"[" * 65 + b"]" * 65,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 1100 + b"1" + b"}" * 1100,
        b"[12345678901234567890," + b"[" * 100_000 + b"]" * 100_000 + b"]",
        b"{",
        b"",
        b"{'a': 1}",
        b"[1,]",
        b"nul",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_json_that_some_reader_would_change_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidData):
        decode(body, "json")


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**64), 10**40, 2**53 + 1])
def test_integers_past_64_bits_stay_exact(number: int) -> None:
    assert decode(b'{"n": %d}' % number, "json") == {"n": number}
    assert type(decode(b"%d" % number, "json")) is int


def test_nesting_up_to_the_limit_is_accepted() -> None:
    body = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert decode(body, "json") == json.loads(body)
    wide = b"[" + b",".join([b"[]"] * 5000) + b"]"
    assert len(decode(wide, "json")) == 5000


def test_of_duplicate_keys_the_last_one_wins() -> None:
    assert decode(b'{"a": 1, "a": 2}', "json") == {"a": 2}


@given(JSON)
def test_every_value_json_can_write_comes_back_equal(value: object) -> None:
    assert decode(json.dumps(value).encode(), "json") == value


@given(st.binary(max_size=200))
def test_any_bytes_are_data_or_refused(body: bytes) -> None:
    for encoding in ("json", "text", "form", "bytes"):
        try:
            decode(body, encoding)
        except InvalidData as error:
            assert str(error)


def test_forms_keep_repeated_fields_and_have_a_bound() -> None:
    assert decode(b"a=1&b=&a=2", "form") == {"a": ["1", "2"], "b": ""}
    with pytest.raises(InvalidData, match="1000"):
        decode(b"&".join([b"a=1"] * 1001), "form")


@pytest.mark.parametrize("body", [b"name=caf%E9", b"n%FF=1", b"a=%ED%A0%80", b"a=1&b=%C3"])
def test_a_form_that_is_not_utf_8_is_refused_not_changed(body: bytes) -> None:
    with pytest.raises(InvalidData, match="not UTF-8"):
        decode(body, "form")
    assert decode("name=caf%C3%A9&ort=Köln".encode(), "form") == {"name": "café", "ort": "Köln"}


def test_a_number_that_is_too_long_is_named_without_the_interpreter_s_advice() -> None:
    with pytest.raises(InvalidData, match=r"^a number in the JSON has more than \d+ digits$"):
        decode(b"[" + b"9" * 5000 + b"]", "json")


@pytest.mark.parametrize("characters", [5, 3000])
def test_json_that_is_kept_takes_the_room_of_its_text(characters: int) -> None:
    value = {"text": "x" * characters}
    tracemalloc.start()
    try:
        kept = [write_json(value) for _ in range(1000)]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / len(kept) < characters + 100


SHORT_OF_MEMORY = """
import os, resource, sys
from turnout.service.domain.payload import decode_json

body = b'["' + b"x" * 2**21 + b'", ' + sys.argv[1].encode() + b"]"
decode_json(b"[1, 12345678901234567890]")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for more in range(0, 96, 2):
    child = os.fork()  # orjson itself may crash
    if not child:
        resource.setrlimit(resource.RLIMIT_AS, (used + more * 2**20, resource.RLIM_INFINITY))
        told = b"decoded "
        try:
            decode_json(body)
        except Exception as error:
            told = type(error).__name__.encode() + b" "
        os.write(1, told)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a bound on the address space")
@pytest.mark.parametrize("number", ["1", "12345678901234567890"])
def test_a_body_for_which_memory_is_short_is_not_called_wrong(number: str) -> None:
    """A sender drops what is refused as wrong."""
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, number], capture_output=True, text=True, check=True
    )
    assert {*done.stdout.split()} == {"MemoryError", "decoded"}
