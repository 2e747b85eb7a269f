"""Where a partition is read on, and what a seek comes to: the decisions, without a broker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.service.domain.errors import Refused, TriggerError
from turnout.triggers.kafka.positions import (
    Bounds,
    Place,
    Settled,
    Topic,
    read_place,
    read_topic,
    settle,
)
from turnout.triggers.kafka.seek import decide

OLD, NEW = "AAAAAAAAAAAAAAAAAAAAAA", "BBBBBBBBBBBBBBBBBBBBBB"

offsets = st.integers(0, 1000)
ids = st.sampled_from(["", OLD, NEW])


@st.composite
def bounds(draw: st.DrawFn) -> Bounds:
    first, end = sorted([draw(offsets), draw(offsets)])
    committed = draw(st.none() | offsets)
    topic = draw(ids)
    return Bounds(
        first,
        end,
        committed,
        topic,
        vouched=bool(topic and draw(st.booleans())),
        stable=draw(st.none() | offsets),
        cut=draw(st.none() | offsets),
    )


@given(st.builds(Place, offsets, st.integers(1, 9), st.booleans(), ids))
def test_a_place_reads_as_it_was_written(place: Place) -> None:
    assert read_place(place.text()) == place


def test_positions_of_before_topics_had_ids_are_read() -> None:
    assert read_place('{"next": 7, "epoch": 2}') == Place(7, 2)
    assert read_topic('{"cluster":"c","partitions":3}') == Topic("c", 3)
    assert read_topic(Topic("c", 3, OLD).text()) == Topic("c", 3, OLD)
    with pytest.raises(TriggerError, match="no place"):
        read_place('{"next": "x"}')


CASES: dict[str, tuple[Place | None, Bounds, Settled]] = {
    "never read": (None, Bounds(0, 9, None), Settled(Place(4))),
    "read by others": (None, Bounds(0, 9, 6), Settled(Place(6))),
    "a lost commit": (Place(6), Bounds(0, 9, 2), Settled(Place(6))),
    "read on by others": (Place(2), Bounds(0, 9, 6), Settled(Place(6))),
    "sought back": (Place(2, 2, sought=True), Bounds(0, 9, 6), Settled(Place(2, 2, sought=True))),
    "expired": (Place(2), Bounds(5, 9, 2), Settled(Place(5), "kafka.records_expired", 3)),
    "another topic's offset": (
        None,
        Bounds(0, 3, 6, NEW),
        Settled(Place(0, sought=True, topic=NEW), "kafka.offset_past_end"),
    ),
    "ends too early": (
        Place(8, topic=OLD),
        Bounds(1, 3, 8, OLD),
        Settled(Place(3, 2, sought=True, topic=OLD), "kafka.log_cut"),
    ),
    "ends too early, and the group's offset may be older than that": (
        Place(8, topic=OLD),
        Bounds(1, 3, 2, OLD, vouched=True),
        Settled(Place(3, 2, sought=True, topic=OLD), "kafka.log_cut"),
    ),
    "ends too early, and others are behind the cut": (
        Place(8, topic=OLD),
        Bounds(1, 7, 6, OLD, vouched=True, epoch=2),
        Settled(Place(6, 2, topic=OLD), "kafka.log_cut"),
    ),
    "all of it lost": (
        Place(8, topic=OLD),
        Bounds(0, 0, 8, OLD, vouched=True),
        Settled(Place(0, 2, sought=True, topic=OLD), "kafka.log_cut"),
    ),
    "cut, and written on since": (
        Place(8, topic=OLD),
        Bounds(1, 30, 8, OLD, vouched=True, cut=5),
        Settled(Place(5, 2, sought=True, topic=OLD), "kafka.log_cut"),
    ),
    "cut behind what was read": (
        Place(4, topic=OLD),
        Bounds(1, 30, 4, OLD, vouched=True, cut=5),
        Settled(Place(4, topic=OLD)),
    ),
    "cut, and expired since": (
        Place(8, topic=OLD),
        Bounds(6, 30, 8, OLD, vouched=True, cut=5),
        Settled(Place(6, 2, sought=True, topic=OLD), "kafka.log_cut"),
    ),
    "cut under a group whose journal is not here": (
        None,
        Bounds(0, 3, 6, OLD, vouched=True),
        Settled(Place(3, 2, sought=True, topic=OLD), "kafka.log_cut"),
    ),
    "read on by others behind a cut": (
        Place(2, topic=OLD),
        Bounds(0, 9, 6, OLD, vouched=True, epoch=2),
        Settled(Place(6, 2, topic=OLD)),
    ),
    "behind the last stable offset": (
        None,
        Bounds(0, 15, 14, stable=10),
        Settled(Place(14)),
    ),
    "ends too early, and has no id": (
        Place(8),
        Bounds(1, 3, 8),
        Settled(Place(1, 2, sought=True), "kafka.topic_recreated"),
    ),
    "another id": (
        Place(2, 3, topic=OLD),
        Bounds(1, 9, 6, NEW),
        Settled(Place(1, 4, sought=True, topic=NEW), "kafka.topic_recreated"),
    ),
    "another id, read by others": (
        Place(2, 3, topic=OLD),
        Bounds(1, 9, 6, NEW, vouched=True),
        Settled(Place(6, 4, topic=NEW), "kafka.topic_recreated"),
    ),
    "its id is learnt": (Place(2), Bounds(0, 9, None, NEW), Settled(Place(2, topic=NEW))),
    "its id is not told any more": (
        Place(2, topic=OLD),
        Bounds(0, 9, None),
        Settled(Place(2, topic=OLD)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_where_a_partition_is_read_on(case: str) -> None:
    stored, limits, expected = CASES[case]
    assert settle(stored, limits, first_place=4) == expected


@given(st.builds(Place, offsets, st.integers(1, 9), st.booleans(), ids), bounds())
def test_nothing_is_skipped_or_doubled_without_a_word(stored: Place, limits: Bounds) -> None:
    settled = settle(stored, limits, first_place=limits.end)
    place = settled.place
    assert limits.first <= place.next <= limits.end
    if place.epoch == stored.epoch:
        assert place.next >= stored.next, "what was accepted runs again"
        if place.next > stored.next:
            assert settled.alarm == "kafka.records_expired" or place.next == limits.committed
    else:
        assert place.epoch == stored.epoch + 1
        assert settled.alarm in ("kafka.topic_recreated", "kafka.log_cut")
        assert limits.vouched or place.next in (limits.first, limits.end, limits.cut)
        if stored.topic and stored.topic == limits.topic:
            assert place.next >= min(stored.next, limits.kept), "what was read runs again"
    if settled.alarm is None and limits.cut is None:
        again = settle(place, limits, first_place=limits.end)
        assert again == Settled(place), "and it stays so"


@pytest.mark.parametrize(
    ("stored", "limits", "target", "place", "said"),
    [
        (None, Bounds(0, 9, None, NEW), 3, Place(3, topic=NEW), "it was not read before"),
        (None, Bounds(0, 9, 3), 3, Place(3), "stays at 3"),
        (Place(2), Bounds(0, 9, 5), 9, Place(9), "from 5 to 9: 4 records will never be read"),
        # A place somebody sought before counts, and the offset Kafka has not forgotten does not.
        (Place(2, sought=True), Bounds(0, 9, 5), 4, Place(4), "from 2 to 4: 2 records will never"),
        # Nothing was read of a topic made anew: no --rerun is needed, and the epoch is its own.
        (Place(8, 2, topic=OLD), Bounds(0, 9, 5, NEW), 0, Place(0, 3, topic=NEW), "not read"),
        (Place(8), Bounds(0, 3, None), 3, Place(3, 2), "reads from 3; it was not read before"),
        (Place(8, topic=OLD), Bounds(0, 9, 5, NEW, True), 7, Place(7, 2, topic=NEW), "from 5 to 7"),
        # Behind the last stable offset there are records all the same.
        (Place(2), Bounds(0, 14, 2, stable=5), 12, Place(12), "from 2 to 12"),
        # What was read of a log that was cut since is read up to the cut.
        (Place(8, topic=OLD), Bounds(0, 5, 8, OLD), 5, Place(5, 2, topic=OLD), "stays at 5"),
    ],
)
def test_what_a_seek_comes_to(
    stored: Place | None, limits: Bounds, target: int, place: Place, said: str
) -> None:
    found, sentence = decide(stored, limits, target, rerun=False)
    assert found == Place(place.next, place.epoch, sought=True, topic=place.topic)
    assert said in sentence


def test_a_seek_back_has_to_be_asked_for() -> None:
    with pytest.raises(Refused, match="runs 2 records again"):
        decide(Place(5, topic=NEW), Bounds(0, 9, 5, NEW), 3, rerun=False)
    found, sentence = decide(Place(5, topic=NEW), Bounds(0, 9, 5, NEW), 3, rerun=True)
    assert found == Place(3, 2, sought=True, topic=NEW)
    assert "2 records will run again, as new events of epoch 2" in sentence
    with pytest.raises(Refused, match="no offset 10"):
        decide(None, Bounds(0, 9, None), 10, rerun=True)
