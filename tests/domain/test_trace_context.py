"""The trace context is read as W3C says, and everything else of a trace is derived from ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.service.domain import trace_context
from turnout.service.domain.event import mint_id
from turnout.service.domain.trace_context import Sampler, SpanContext

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
PARENT = SpanContext(TRACE, SPAN, sampled=True)


@pytest.mark.parametrize(
    ("text", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f" 00-{TRACE}-{SPAN}-00\t", False),
        (f"00-{TRACE}-{SPAN}-03", True),  # with the flag of random ids
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", True),
    ],
)
def test_a_valid_context_is_read(text: str, sampled: bool) -> None:
    assert trace_context.read({"traceparent": text}) == (TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "text",
    [
        "", "00-1-2-03", f"00-{TRACE}-{SPAN}", f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more", f"cc-{TRACE}-{SPAN}-01more", f"00-{TRACE}-{SPAN}-0\u0661",
    ],
)  # fmt: skip
def test_an_invalid_context_is_none(text: str) -> None:
    assert trace_context.read({"traceparent": text}) is None


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    found = trace_context.read({"traceparent": text})
    if found is not None:
        assert trace_context.read(trace_context.written(found, None)) == found


def test_the_state_goes_along_as_it_came() -> None:
    assert trace_context.written(PARENT, "a=1") == {
        "traceparent": f"00-{TRACE}-{SPAN}-01",
        "tracestate": "a=1",
    }


def test_ids_are_the_same_for_the_same_and_differ_for_others() -> None:
    run = mint_id()
    places = [("attempt", 1), ("attempt", 2), ("step", 1, "a#1", 1), ("step", 1, "a#1", 2)]
    ids = [trace_context.id_within(run, *place) for place in places]
    assert ids == [trace_context.id_within(run, *place) for place in places]
    trace_id, own = trace_context.ids_of_run(run)
    assert len({*ids, own}) == 5 and len(trace_id) == 32
    assert trace_context.id_within(run, "step", "\udc80")  # a key may have a file name


@pytest.mark.parametrize(("follows_parent", "of_called"), [(True, 1000), (False, 100)])
def test_a_share_of_traces_is_sampled_by_their_ids_alone(
    follows_parent: bool, of_called: int
) -> None:
    sampler = Sampler(0.1, follows_parent=follows_parent)
    traces = [trace_context.ids_of_run(f"run-{n}")[0] for n in range(1000)]
    taken = [each for each in traces if sampler.samples(each, None)]
    assert 70 <= len(taken) <= 130
    assert taken == [each for each in traces if sampler.samples(each, None)]
    called = [each for each in traces if sampler.samples(each, PARENT._replace(trace_id=each))]
    assert len(called) == (of_called if follows_parent else len(taken))


@pytest.mark.parametrize(("share", "taken"), [(0.0, False), (1.0, True)])
def test_none_and_all(share: float, taken: bool) -> None:
    edges = ("0" * 32, "0" * 16 + "f" * 16, TRACE)
    assert [Sampler(share).samples(each, None) for each in edges] == [taken] * 3
