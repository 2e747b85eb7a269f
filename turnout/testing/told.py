"""What people would have been told in a test: nothing is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from turnout.service.domain.alerts import Channel


@dataclass(frozen=True, slots=True)
class Told:
    """A message about an alert, as `service.alerts` lists those that would have been sent.

    * `channel`: the channel that it would have gone to, equal to the one in `on_failure=`
    * `title`: its first line
    * `text`: all of it
    * `document`: what it is made of: `news` (`"opened"`, `"grown"`, `"repeated"`, `"recovered"` or
      `"summary"`), `flow`, `rule`, `cause`, `count`, `run` and more

    Raises nothing: it is a value.

    ```python
    from turnout import Fail, flow, notify
    from turnout.testing import serve

    chat = notify("https://chat.example/hook")


    @flow(on_failure=chat)
    async def bill(amount: int) -> int:
        if amount < 0:
            raise Fail("it owes us")
        return amount


    async def test_people_are_told_once() -> None:
        async with serve(bill) as service:
            await service.run(bill, -1)
            await service.run(bill, -2)
            (told,) = service.alerts
            assert (told.channel, told.title) == (chat, "bill failed: Fail in bill")
            await service.run(bill, 7)
            await service.advance("10m")
            assert [each.document["news"] for each in service.alerts] == ["opened", "recovered"]
    ```
    """

    channel: Channel
    title: str
    text: str
    document: Mapping[str, Any]
