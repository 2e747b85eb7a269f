"""Windows in a test: listed, fired and dropped, on a clock that jumps."""

from __future__ import annotations

from turnout import Event, absent, all_of, event, flow
from turnout.testing import serve, typed_event

ORDER, PAYMENT = event("order"), event("payment")


@flow(on=all_of(ORDER, PAYMENT, within="10m", per=lambda event: event.data["id"]))
async def ship(events: list[Event]) -> int:
    return len(events)


@flow(on=absent(event("beat"), "2h"))
async def silent() -> str:
    return "silence"


async def test_open_windows_are_listed_fired_and_dropped() -> None:
    async with serve(ship) as service:
        for name in ("7", "8"):
            await service.emit(typed_event(ORDER, {"id": name}))
        first, second = await service.pending(ship)
        assert (first.key, first.events, second.key) == ("7", 1, "8")
        assert first.rule == 'all_of(event:order, event:payment, within="10m")'
        assert first.due_at is not None
        await service.fire(first)
        await service.drop(second)
        assert await service.pending() == []
        assert [run.result for run in await service.runs(ship)] == [1]


async def test_silence_is_told_at_its_deadline() -> None:
    async with serve(silent) as service:
        await service.advance("119m")
        await service.emit(typed_event(silent, {}))
        await service.advance("119m")
        assert await service.runs(silent) == []
        await service.advance("1m")
        assert [run.result for run in await service.runs(silent)] == ["silence"]
        await service.advance("1d")
        assert len(await service.runs(silent)) == 1
