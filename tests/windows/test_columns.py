"""Events that come as columns run by batches as they do one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson
import pytest
from pydantic import BaseModel

from turnout import (
    Event,
    Fail,
    Retry,
    batch,
    current,
    flow,
    kafka,
    limit,
    rate_limit,
    retry,
    wait_for,
)
from turnout.service.domain.errors import JournalError
from turnout.service.domain.event_columns import EventColumns
from turnout.service.domain.run import RunState
from turnout.service.journal.records import Filter
from turnout.service.journal.sqlite.events import ColumnRows
from turnout.testing import START, kafka_event, serve
from turnout.testing.service import Service

TOPIC = kafka("readings", group="g")
seen: list[Any] = []
made: list[int] = []
"""How many rows each write of columns had."""


class Reading(BaseModel):
    """What a sensor sends."""

    n: int


class FromClient(NamedTuple):
    """A record as the client has it."""

    offset: int
    value: bytes
    key: bytes | None = None
    timestamp: int = 1_700_000_000_000
    headers: tuple[tuple[str, bytes], ...] = ()


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    seen.clear()
    made.clear()
    honest = ColumnRows.numbered

    def numbered(self: ColumnRows, seqs: range) -> list[Any]:
        made.append(len(seqs))
        return honest(self, seqs)

    monkeypatch.setattr(ColumnRows, "numbered", numbered)
    yield


def columns(*data: object, **fields: Any) -> EventColumns:
    decoder = TOPIC.decoder("c", "readings", 0, 1)
    found = EventColumns()
    records = [FromClient(n, orjson.dumps(each), **fields) for n, each in enumerate(data)]
    assert decoder.add_to(found, records, START)
    return found


async def send(service: Service, *data: object, **fields: Any) -> Any:
    receipts = await service.process.emitters[TOPIC.name](columns(*data, **fields))
    await service.advance("1ms")
    return receipts


def numbers(*given: int) -> list[dict[str, int]]:
    return [{"n": number} for number in given]


@flow(on=batch(TOPIC, 3, "10s"))
async def store(readings: list[Reading]) -> int:
    seen.append([each.n for each in readings])
    return len(readings)


@pytest.mark.anyio
async def test_each_full_batch_runs_at_once_and_the_rest_at_its_deadline() -> None:
    async with serve(store) as service:
        (receipt,) = await send(service, *numbers(*range(8)), key=b"k")
        assert sorted(seen) == [[0, 1, 2], [3, 4, 5]] and made == [8]
        assert len(receipt.runs) == 2 and receipt.event.endswith("/readings/1/0/0")
        await service.advance("10s")
        assert seen[2:] == [[6, 7]]
        runs = await service.journal.runs(Filter())
        assert sorted(run.events for run in runs) == [2, 3, 3]
        [stored] = await service.journal.event("c/readings/1/0/7")
        assert (stored.event.subject, stored.event.data) == ("k", {"n": 7})
        assert stored.runs and stored.event.extensions["partitionkey"] == "k"


@pytest.mark.anyio
async def test_an_open_batch_is_filled_first_and_its_run_reads_what_is_stored() -> None:
    @flow(on=batch(TOPIC, 3, "10s"), concurrency=limit(1))
    async def in_turn(readings: list[Reading]) -> None:
        seen.append([each.n for each in readings])

    async with serve(in_turn) as service:
        await send(service, *numbers(0, 1))
        await service.process.emitters[TOPIC.name]([kafka_event(TOPIC, {"n": 2})])
        await service.advance("1ms")
        assert seen == [[0, 1, 2]]
        await service.process.emitters[TOPIC.name]([kafka_event(TOPIC, {"n": 3})])
        await send(service, *numbers(4, 5, 6, 7, 8))
        assert seen[1:] == [[3, 4, 5], [6, 7, 8]] and made == [2, 5]


@pytest.mark.anyio
async def test_a_rule_of_the_flow_decides_about_each_batch_in_its_turn() -> None:
    @flow(on=batch(TOPIC, 2, "10s"), rate=rate_limit("1/m"))
    async def rated(readings: list[Reading]) -> None:
        seen.append([each.n for each in readings])

    async with serve(rated) as service:
        await send(service, *numbers(0, 1, 2, 3, 4))
        await service.advance("10s")
        assert seen == [[0, 1]] and made == [5]
        skipped = await service.journal.runs(Filter(state=RunState.SKIPPED))
        assert sorted(run.events for run in skipped) == [1, 2]
        [stored] = await service.journal.event("c/readings/1/0/2")
        assert [made["reason"] for made in stored.decisions] == ["rate_limit"]


@pytest.mark.anyio
async def test_nothing_is_kept_of_columns_whose_write_is_refused() -> None:
    async with serve(store) as service:
        emit = service.process.emitters[TOPIC.name]
        bad = columns(*numbers(*range(6)))
        bad.ids[4] = "\ud800"  # no row can hold it
        with pytest.raises(JournalError):
            await emit(bad)
        await send(service, *numbers(7, 8, 9))
        assert seen == [[7, 8, 9]], "the slots that were taken for it are free again"
        assert await service.journal.event("c/readings/1/0/5") == []


@pytest.mark.anyio
async def test_columns_that_were_refused_may_be_submitted_again() -> None:
    async with serve(store) as service:
        emit = service.process.emitters[TOPIC.name]
        again = columns(*numbers(1, 2, 3))
        name, again.ids[1] = again.ids[1], "\ud800"  # no row can hold it
        with pytest.raises(JournalError):
            await emit(again)
        again.ids[1] = name
        await emit(again)
        await service.advance("1ms")
        assert seen == [[1, 2, 3]]


@pytest.mark.anyio
async def test_what_a_flow_changes_in_an_event_no_other_event_has() -> None:
    @flow(on=batch(TOPIC, 2, "10s"))
    async def change(events: list[Event]) -> None:
        for each in events:
            mappings: Any = (each.headers, each.params, each.query, each.extensions)
            seen.append([dict(mapping) for mapping in mappings])
            for mapping in mappings:
                mapping["mine"] = each.id

    decoder = TOPIC.decoder("c", "readings", 0, 1)
    async with serve(change) as service:
        for first in (0, 2, 4, 6):
            records = [FromClient(first + n, b"1") for n in range(2)]
            events: Sequence[Event] = [decoder.event(each, START) for each in records]
            if first < 4:
                events = EventColumns()
                assert decoder.add_to(events, records, START)
            await service.process.emitters[TOPIC.name](events)
            await service.advance("1ms")
        assert made == [2, 2] and len(seen) == 8
        assert all(each == [{}, {}, {}, {"partition": "readings/0"}] for each in seen)
        [stored] = await service.journal.event("c/readings/1/0/7")
        assert stored.event.extensions == {"partition": "readings/0"}


@pytest.mark.anyio
async def test_one_that_does_not_fit_is_a_dead_letter_of_its_own() -> None:
    async with serve(store) as service:
        receipts = await send(service, {"n": 0}, {"n": "x"}, {"n": 2}, {"n": 3})
        assert len(receipts) == 4 and made == []
        assert seen == [[0, 2, 3]]
        (dead,) = await service.journal.runs(Filter(state=RunState.FAILED))
        assert dead.dead and dead.event_id == "c/readings/1/0/1"


@pytest.mark.anyio
async def test_items_that_fail_are_run_again_with_their_own_data() -> None:
    @flow(on=batch(TOPIC, 4, "10s"), retry=retry(3, delay="1s"))
    async def load(readings: list[dict[str, int]]) -> None:
        seen.append([each["n"] for each in readings])
        for each in readings:
            each["n"] = -1  # it is the flow's own
        if len(readings) > 1:
            raise Retry(items=[1, 3])
        raise Fail("never", items=[0])

    async with serve(load) as service:
        await send(service, *numbers(5, 6, 7, 8))
        await service.advance("5s")
        assert made == [4]
        assert seen[:2] == [[5, 6, 7, 8], [6, 8]]


@pytest.mark.anyio
async def test_a_flow_may_take_the_events_themselves() -> None:
    @flow(on=batch(TOPIC, 2, "10s"))
    async def look(events: list[Event], data: list[Any], raw: list[bytes]) -> None:
        data[0]["n"] = "changed"
        seen.append([each.id for each in events])
        seen.append([each.data for each in events][1])
        seen.append(raw)
        seen.append((current().event.id, current().event.data))

    async with serve(look) as service:
        await send(service, *numbers(1, 2))
    assert made == [2]
    assert seen == [
        ["c/readings/1/0/0", "c/readings/1/0/1"],
        {"n": 2},
        [b'{"n":1}', b'{"n":2}'],
        ("c/readings/1/0/0", {"n": 1}),
    ]


@flow(on=batch(TOPIC, 2, "10s"), when=lambda event: event.data["n"] != 1)
async def filtered(readings: list[Reading]) -> None:
    seen.append([each.n for each in readings])


@flow(on=batch(TOPIC, 2, "10s", per=lambda event: event.data["n"] % 2))
async def of_key(readings: list[Reading]) -> None:
    seen.append([each.n for each in readings])


@flow(on=kafka("other", group="g"), awaits=[TOPIC])
async def waiting(reading: Reading) -> None:
    await wait_for(TOPIC)


@flow(on=TOPIC)
async def single(reading: Reading) -> None:
    seen.append(reading.n)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("flows", "expected"),
    [
        ((filtered,), [[0, 2]]),
        ((of_key,), [[0, 2], [1, 3]]),
        ((store, waiting), [[0, 1, 2]]),
        ((store, single), [0, 1, 2, 3, [0, 1, 2]]),
        ((single,), [0, 1, 2, 3]),
    ],
)
async def test_where_a_flow_asks_or_another_listens_each_is_routed_by_itself(
    flows: tuple[Any, ...], expected: list[Any]
) -> None:
    async with serve(*flows) as service:
        receipts = await send(service, *numbers(0, 1, 2, 3))
        assert len(receipts) == 4 and made == []
        assert sorted(seen, key=str) == sorted(expected, key=str)
