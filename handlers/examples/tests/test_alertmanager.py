"""Alerts as Alertmanager tells of them; the token is not asked for in a test."""

import unittest
from typing import Any
from unittest.mock import patch

import alertmanager

from turnout import Event, task
from turnout.testing import serve, webhook_event


def told(*alerts: tuple[str, str], began: str = "2026-01-05T09:00:00Z") -> Event:
    """Return a message about alerts, each with its status and name."""
    group: list[dict[str, Any]] = [
        {
            "status": status, "fingerprint": f"of-{name}", "startsAt": began,
            "labels": {"alertname": name}, "annotations": {"summary": "other words each time"},
        }
        for status, name in alerts
    ]  # fmt: skip
    return webhook_event(alertmanager.heard, {"version": "4", "alerts": group})


FULL, SLOW = ("firing", "DiskFull"), ("firing", "Slow")


class Alertmanager(unittest.IsolatedAsyncioTestCase):
    async def results(self, *messages: Event) -> tuple[list[str], list[str]]:
        """Have messages come, and ten minutes pass; returns the results, and what people read."""
        people: list[str] = []

        async def notify(url: object, text: str) -> None:
            people.append(text)

        with patch.object(alertmanager, "notify", task(notify)):
            async with serve(alertmanager.heard, alertmanager.outlast) as service:
                for message in messages:
                    await service.emit(message)
                await service.advance("11m")
                ended = await service.runs("outlast")
        return sorted(run.result for run in ended), people

    async def test_people_are_told_once_of_an_alert_that_lasts_however_often_it_is_told(
        self,
    ) -> None:
        results, people = await self.results(told(FULL), told(FULL), told(SLOW, FULL))
        self.assertEqual(results, ["told", "told"])
        self.assertEqual(
            sorted(text.split(":")[0] for text in people),
            ["DiskFull has lasted for ten minutes", "Slow has lasted for ten minutes"],
        )

    async def test_an_alert_that_is_over_in_time_tells_nobody(self) -> None:
        over = ("resolved", "DiskFull")
        results, people = await self.results(told(FULL), told(over, SLOW), told(over))
        self.assertEqual(results, ["over", "told"])
        self.assertEqual(len(people), 1)

    async def test_an_alert_that_comes_back_is_another_one(self) -> None:
        again = told(FULL, began="2026-01-05T09:05:00Z")
        results, people = await self.results(told(FULL), told(("resolved", "DiskFull")), again)
        self.assertEqual(results, ["over", "told"])
        self.assertEqual(len(people), 1)
