"""Answer in Slack: who mentions the app in a channel gets an answer in the thread.

Give Slack the address `https://YOUR-HOST/hooks/slack` for events, and let it send `app_mention`.
`SLACK_SIGNING_SECRET` is how Slack signs, `SLACK_BOT_TOKEN` the token with which the app writes
(`xoxb-…`). Slack sends an event again that was not answered within three seconds; its id makes one
run of all of them. A crash just after the answer was sent sends it once more.
"""

# /// script
# dependencies = ["slack-sdk>=3.35"]
# ///

import shutil
from functools import cache
from typing import Any

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError
from slack_sdk.http_retry.builtin_handlers import RateLimitErrorRetryHandler

from turnout import Fail, flow, retry, secret, task, webhook

events = webhook(
    "/slack",
    verify="slack",
    secret=secret("SLACK_SIGNING_SECRET"),
    id=lambda event: event.data.get("event_id"),
    respond="2s",  # it takes longer: Slack is content with a 202
)


PASSES = {"fatal_error", "internal_error", "request_timeout", "service_unavailable"}
"""What Slack says when it is Slack that failed."""


@cache
def slack() -> WebClient:
    """Return Slack's own client, which waits where it is told that it asks too often."""
    waits = RateLimitErrorRetryHandler(max_retry_count=3)
    return WebClient(secret("SLACK_BOT_TOKEN").reveal(), retry_handlers=[waits])


@task(retry=retry(5, delay="1s", max="1m"), timeout="5m")
def say(channel: str, thread: str, text: str) -> str:
    """Write into a thread; what Slack refuses, such as a wrong token, is not asked again."""
    try:
        answer = slack().chat_postMessage(channel=channel, thread_ts=thread, text=text)
    except SlackApiError as error:
        if error.response.status_code == 200 and error.response["error"] not in PASSES:
            raise Fail(f"Slack refuses: {error.response['error']}") from None
        raise
    return str(answer["ts"])


@task
def free_space() -> str:
    """Look at what is asked for."""
    return f"{shutil.disk_usage('/').free / 1e9:.0f} GB are free"


@flow(on=events)
async def mentioned(said: dict[str, Any]) -> str:
    """Answer one mention, and the question with which Slack tries the address."""
    if said["type"] == "url_verification":
        return str(said["challenge"])
    mention = said["event"]
    text = await free_space.run() if "disk" in mention["text"] else "Ask me about the disk."
    return await say.run(mention["channel"], mention.get("thread_ts") or mention["ts"], text)
