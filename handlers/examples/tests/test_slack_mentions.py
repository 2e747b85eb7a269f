"""Events as Slack sends them; the signature is not asked for in a test, and nobody reads it."""

import unittest
from typing import Any
from unittest.mock import patch

import slack_mentions
from slack_sdk.errors import SlackApiError
from slack_sdk.web import SlackResponse

from turnout import Event
from turnout.testing import Result, serve, webhook_event


def mention(text: str, event_id: str = "Ev1", **thread: str) -> Event:
    said = {"type": "app_mention", "channel": "C1", "ts": "17.1", "text": text} | thread
    body = {"type": "event_callback", "event_id": event_id, "event": said}
    return webhook_event(slack_mentions.mentioned, body)


class Channel:
    """What is written, after so many answers that were none."""

    def __init__(self, *errors: tuple[int, str]) -> None:
        self.errors = list(errors)
        self.written: list[dict[str, str]] = []

    def chat_postMessage(self, **written: str) -> dict[str, str]:  # noqa: N802  as Slack has it
        if self.errors:
            status, error = self.errors.pop(0)
            answer = response(status, error)
            raise SlackApiError("no", answer)
        self.written.append(written)
        return {"ts": "17.2"}


def response(status: int, error: str) -> SlackResponse:
    told: dict[str, Any] = {"ok": False, "error": error}
    return SlackResponse(
        client=None, http_verb="POST", api_url="", req_args={}, data=told, headers={},
        status_code=status,
    )  # fmt: skip


class SlackMentions(unittest.IsolatedAsyncioTestCase):
    async def results(self, channel: Channel, *events: Event) -> list[Result]:
        with patch.object(slack_mentions, "slack", lambda: channel):
            async with serve(slack_mentions.mentioned) as service:
                for event in events:
                    await service.emit(event)
                return await service.runs("mentioned")

    async def test_a_mention_that_comes_again_is_answered_once_in_its_thread(self) -> None:
        channel = Channel((503, "no answer"), (200, "internal_error"))
        (run,) = await self.results(channel, *[mention("<@U1> disk")] * 2)
        self.assertEqual(run.result, "17.2")
        (written,) = channel.written
        self.assertRegex(written.pop("text"), r"^\d+ GB are free$")
        self.assertEqual(written, {"channel": "C1", "thread_ts": "17.1"})

    async def test_within_a_thread_it_answers_there(self) -> None:
        channel = Channel()
        await self.results(channel, mention("hello", thread_ts="16.9"))
        self.assertEqual(channel.written[0]["thread_ts"], "16.9")
        self.assertEqual(channel.written[0]["text"], "Ask me about the disk.")

    async def test_what_slack_refuses_fails_at_once(self) -> None:
        (run,) = await self.results(Channel((200, "invalid_auth")), mention("disk"))
        assert run.error is not None
        self.assertEqual(run.error.message, "Slack refuses: invalid_auth")
        self.assertEqual(run.steps["say#1"].tries, 1)

    async def test_the_address_is_tried_with_a_challenge(self) -> None:
        body = {"type": "url_verification", "challenge": "3eZbrw1a"}
        event = webhook_event(slack_mentions.mentioned, body)
        (run,) = await self.results(Channel(), event)
        self.assertEqual(run.result, "3eZbrw1a")
