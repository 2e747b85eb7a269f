"""Where a partition is read on, and what a seek does: the decisions, without a broker."""

from __future__ import annotations

from dataclasses import replace

import pytest
from aiokafka.structs import OffsetAndMetadata  # type: ignore[import-untyped]  # no types
from hypothesis import given
from hypothesis import strategies as st

from turnout.service.domain.errors import Refused, TriggerError
from turnout.triggers.kafka.commit_metadata import offset_and_metadata, with_committed
from turnout.triggers.kafka.positions import (
    Bounds,
    KnownTopic,
    Position,
    Start,
    choose_start,
    read_known_topic,
    read_position,
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
        topic_confirmed=bool(topic and draw(st.booleans())),
        stable=draw(st.none() | offsets),
        cut=draw(st.none() | offsets),
    )


@given(st.builds(Position, offsets, st.integers(1, 9), st.booleans(), ids))
def test_a_position_reads_as_it_was_written(position: Position) -> None:
    assert read_position(position.text()) == position


def test_positions_of_before_topics_had_ids_are_read() -> None:
    assert read_position('{"next": 7, "epoch": 2}') == Position(7, 2)
    assert read_known_topic('{"cluster":"c","partitions":3}') == KnownTopic("c", 3)
    assert read_known_topic(KnownTopic("c", 3, OLD).text()) == KnownTopic("c", 3, OLD)
    with pytest.raises(TriggerError, match="no position"):
        read_position('{"next": "x"}')


def test_a_journal_knows_the_offsets_that_it_has_committed_itself() -> None:
    offset, words = offset_and_metadata(Position(2, topic=OLD, done=((4, 5),)), "ab12")
    limits = with_committed(Bounds(0, 9, None, OLD), OffsetAndMetadata(offset, words))
    assert limits.by == "ab12" and limits.done == ((4, 5),) and limits.topic_confirmed
    assert limits.seen_by("ab12").is_own
    assert not limits.seen_by("other").is_own and not limits.seen_by(None).is_own
    assert not with_committed(limits, OffsetAndMetadata(2, "")).seen_by("").is_own


@pytest.mark.parametrize("number", ["9" * 4000, "9" * 20, "-1", "x", "\u0663", ""])
def test_what_others_commit_with_an_offset_never_makes_a_position_unreadable(number: str) -> None:
    """Anybody who may read the topic may commit for the group, with any metadata."""
    for words in (f"epoch:{number}", f"done:{number}+1", f"done:0+{number}", f"epoch:1 {number}"):
        committed = OffsetAndMetadata(2, words)
        limits = with_committed(Bounds(0, 9, None), committed)
        assert limits == replace(limits, committed=2, epoch=1, done=())
        position = choose_start(None, limits, default_start=0).position
        assert read_position(position.text()) == position


CASES: dict[str, tuple[Position | None, Bounds, Start]] = {
    "never read": (None, Bounds(0, 9, None), Start(Position(4))),
    "read by others": (None, Bounds(0, 9, 6), Start(Position(6))),
    "a lost commit": (Position(6), Bounds(0, 9, 2), Start(Position(6))),
    "read on by others": (Position(2), Bounds(0, 9, 6), Start(Position(6))),
    "sought back": (
        Position(2, 2, sought=True),
        Bounds(0, 9, 6),
        Start(Position(2, 2, sought=True)),
    ),
    "expired": (Position(2), Bounds(5, 9, 2), Start(Position(5), "kafka.records_expired", 3)),
    "another topic's offset": (
        None,
        Bounds(0, 3, 6, NEW),
        Start(Position(0, sought=True, topic=NEW), "kafka.offset_past_end"),
    ),
    "ends too early": (
        Position(8, topic=OLD),
        Bounds(1, 3, 8, OLD),
        Start(Position(3, 2, sought=True, topic=OLD), "kafka.log_cut"),
    ),
    "ends too early, and the group's offset may be older than that": (
        Position(8, topic=OLD),
        Bounds(1, 3, 2, OLD, topic_confirmed=True),
        Start(Position(3, 2, sought=True, topic=OLD), "kafka.log_cut"),
    ),
    "ends too early, and others are behind the cut": (
        Position(8, topic=OLD),
        Bounds(1, 7, 6, OLD, topic_confirmed=True, epoch=2),
        Start(Position(6, 2, topic=OLD), "kafka.log_cut"),
    ),
    "all of it lost": (
        Position(8, topic=OLD),
        Bounds(0, 0, 8, OLD, topic_confirmed=True),
        Start(Position(0, 2, sought=True, topic=OLD), "kafka.log_cut"),
    ),
    "cut, and written on since": (
        Position(8, topic=OLD),
        Bounds(1, 30, 8, OLD, topic_confirmed=True, cut=5),
        Start(Position(5, 2, sought=True, topic=OLD), "kafka.log_cut"),
    ),
    "cut behind what was read": (
        Position(4, topic=OLD),
        Bounds(1, 30, 4, OLD, topic_confirmed=True, cut=5),
        Start(Position(4, topic=OLD)),
    ),
    "cut, and expired since": (
        Position(8, topic=OLD),
        Bounds(6, 30, 8, OLD, topic_confirmed=True, cut=5),
        Start(Position(6, 2, sought=True, topic=OLD), "kafka.log_cut"),
    ),
    "cut under a group whose journal is not here": (
        None,
        Bounds(0, 3, 6, OLD, topic_confirmed=True),
        Start(Position(3, 2, sought=True, topic=OLD), "kafka.log_cut"),
    ),
    "read on by others behind a cut": (
        Position(2, topic=OLD),
        Bounds(0, 9, 6, OLD, topic_confirmed=True, epoch=2),
        Start(Position(6, 2, topic=OLD)),
    ),
    "behind the last stable offset": (
        None,
        Bounds(0, 15, 14, stable=10),
        Start(Position(14)),
    ),
    "ends too early, and has no id": (
        Position(8),
        Bounds(1, 3, 8),
        Start(Position(1, 2, sought=True), "kafka.topic_recreated"),
    ),
    "another id": (
        Position(2, 3, topic=OLD),
        Bounds(1, 9, 6, NEW),
        Start(Position(1, 4, sought=True, topic=NEW), "kafka.topic_recreated"),
    ),
    "another id, read by others": (
        Position(2, 3, topic=OLD),
        Bounds(1, 9, 6, NEW, topic_confirmed=True),
        Start(Position(6, 4, topic=NEW), "kafka.topic_recreated"),
    ),
    "restored: its own offset is of a lost time": (
        Position(2),
        Bounds(0, 9, 6, is_own=True, done=((7, 7),)),
        Start(Position(2, sought=True), "kafka.reads_again"),
    ),
    "its own offset, and nothing was lost": (
        Position(6),
        Bounds(0, 9, 6, is_own=True),
        Start(Position(6)),
    ),
    "restored: first read in a lost time": (
        None,
        Bounds(0, 9, 6, is_own=True),
        Start(Position(4, sought=True), "kafka.reads_again"),
    ),
    "restored: first read in a lost time, behind where it would start now": (
        None,
        Bounds(0, 9, 3, is_own=True),
        Start(Position(3)),
    ),
    "restored: cut in a lost time": (
        Position(8, topic=OLD),
        Bounds(1, 7, 6, OLD, topic_confirmed=True, epoch=2, is_own=True),
        Start(Position(7, 2, sought=True, topic=OLD), "kafka.log_cut"),
    ),
    "its id is learnt": (Position(2), Bounds(0, 9, None, NEW), Start(Position(2, topic=NEW))),
    "its id is no longer known": (
        Position(2, topic=OLD),
        Bounds(0, 9, None),
        Start(Position(2, topic=OLD)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_where_a_partition_is_read_on(case: str) -> None:
    stored, limits, expected = CASES[case]
    assert choose_start(stored, limits, default_start=4) == expected


@given(st.builds(Position, offsets, st.integers(1, 9), st.booleans(), ids), bounds())
def test_nothing_is_skipped_or_doubled_without_a_word(stored: Position, limits: Bounds) -> None:
    start = choose_start(stored, limits, default_start=limits.end)
    position = start.position
    assert limits.first <= position.next <= limits.end
    if position.epoch == stored.epoch:
        assert position.next >= stored.next, "what was accepted runs again"
        if position.next > stored.next:
            assert start.alarm == "kafka.records_expired" or position.next == limits.committed
    else:
        assert position.epoch == stored.epoch + 1
        assert start.alarm in ("kafka.topic_recreated", "kafka.log_cut")
        assert limits.topic_confirmed or position.next in (limits.first, limits.end, limits.cut)
        if stored.topic and stored.topic == limits.topic:
            assert position.next >= min(stored.next, limits.intact_end), "what was read runs again"
    if start.alarm is None and limits.cut is None:
        again = choose_start(position, limits, default_start=limits.end)
        assert again == Start(position), "and it stays so"


@pytest.mark.parametrize(
    ("stored", "limits", "target", "position", "said"),
    [
        (None, Bounds(0, 9, None, NEW), 3, Position(3, topic=NEW), "it was not read before"),
        (None, Bounds(0, 9, 3), 3, Position(3), "stays at 3"),
        (Position(2), Bounds(0, 9, 5), 9, Position(9), "from 5 to 9: 4 records will never be read"),
        # A position somebody sought before counts, and the offset Kafka has not forgotten does not.
        (
            Position(2, sought=True),
            Bounds(0, 9, 5),
            4,
            Position(4),
            "from 2 to 4: 2 records will never",
        ),
        # Nothing was read of a recreated topic: no --rerun is needed, and the epoch is its own.
        (Position(8, 2, topic=OLD), Bounds(0, 9, 5, NEW), 0, Position(0, 3, topic=NEW), "not read"),
        (
            Position(8),
            Bounds(0, 3, None),
            3,
            Position(3, 2),
            "reads from 3; it was not read before",
        ),
        (
            Position(8, topic=OLD),
            Bounds(0, 9, 5, NEW, True),
            7,
            Position(7, 2, topic=NEW),
            "from 5 to 7",
        ),
        # Behind the last stable offset there are records all the same.
        (Position(2), Bounds(0, 14, 2, stable=5), 12, Position(12), "from 2 to 12"),
        # What was read of a log that was cut since is read up to the cut.
        (Position(8, topic=OLD), Bounds(0, 5, 8, OLD), 5, Position(5, 2, topic=OLD), "stays at 5"),
    ],
)
def test_what_a_seek_comes_to(
    stored: Position | None, limits: Bounds, target: int, position: Position, said: str
) -> None:
    found, sentence = decide(stored, limits, target, rerun=False)
    assert found == Position(position.next, position.epoch, sought=True, topic=position.topic)
    assert said in sentence


def test_a_seek_back_has_to_be_asked_for() -> None:
    with pytest.raises(Refused, match="runs 2 records again"):
        decide(Position(5, topic=NEW), Bounds(0, 9, 5, NEW), 3, rerun=False)
    found, sentence = decide(Position(5, topic=NEW), Bounds(0, 9, 5, NEW), 3, rerun=True)
    assert found == Position(3, 2, sought=True, topic=NEW)
    assert "2 records will run again, as new events of epoch 2" in sentence
    with pytest.raises(Refused, match="no offset 10"):
        decide(None, Bounds(0, 9, None), 10, rerun=True)
