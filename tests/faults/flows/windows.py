"""Windows of every kind over webhooks; each run returns the numbers of the events it got."""

from turnout import Event, absent, all_of, batch, count, debounce, flow, sequence, webhook


def key(event: Event) -> str:
    return str(event.data["key"])


def numbers(events: list[Event]) -> list[int]:
    return [each.data["n"] for each in events]


@flow(on=debounce(webhook("/debounce"), "400ms", max="2s", per=key, keep="all"))
async def debounced(events: list[Event]) -> list[int]:
    return numbers(events)


@flow(on=debounce(webhook("/last"), "300ms", per=key))
async def last(page: dict) -> list[int]:  # type: ignore[type-arg]  # plain JSON
    return [page["n"]]


@flow(on=batch(webhook("/batch"), 7, "800ms", per=key))
async def batched(events: list[Event]) -> list[int]:
    return numbers(events)


@flow(on=count(webhook("/count"), 5, "3s", per=key))
async def counted(events: list[Event]) -> list[int]:
    return numbers(events)


@flow(on=sequence(webhook("/first"), webhook("/second"), within="3s", per=key))
async def in_order(events: list[Event]) -> list[int]:
    return numbers(events)


@flow(on=all_of(webhook("/left"), webhook("/right"), within="3s", per=key))
async def together(events: list[Event]) -> list[int]:
    return numbers(events)


@flow(on=absent(webhook("/done"), within="1s", after=webhook("/begun"), per=key))
async def missing(begun: Event) -> list[int]:
    return numbers([begun])
