"""Deliveries as GitHub sends them; the signature is not asked for in a test."""

import unittest

from github import activity, pushed

from turnout.testing import serve, webhook_event

REPOSITORY = {"sender": {"login": "ada"}, "repository": {"full_name": "ada/engine"}}


class GitHub(unittest.IsolatedAsyncioTestCase):
    async def test_a_push_starts_both_flows_and_a_star_one(self) -> None:
        push = REPOSITORY | {"ref": "refs/heads/main", "deleted": False, "commits": [{}, {}]}
        star = REPOSITORY | {"action": "created"}
        async with serve(activity, pushed) as service:
            for number, (kind, body) in enumerate((("push", push), ("star", star))):
                headers = {"X-GitHub-Event": kind, "X-GitHub-Delivery": str(number)}
                await service.emit(webhook_event(activity, body, headers=headers))
            lines = [run.result for run in await service.runs(activity)]
            (change,) = await service.runs(pushed)
        self.assertEqual(
            sorted(lines), ["ada/engine: push by ada", "ada/engine: star created by ada"]
        )
        self.assertEqual(
            change.result, {"ref": "refs/heads/main", "change": "pushed", "commits": 2}
        )
