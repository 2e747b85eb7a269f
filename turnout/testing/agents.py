"""Models for tests of agents, which ask nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def replayed(transcript: Sequence[Mapping[str, Any]]) -> Any:
    """Return a model that says again what it said in a transcript.

    `clerk.model = replayed(answer.transcript)`. The tools are called, and approvals are asked for,
    as they were then.

    * `transcript`: that of an `AgentAnswer`, or the same read from JSON

    Raises `ImportError` where the extra `ai` is not installed. A model call that the transcript
    does not have fails the run.

    ```python
    from turnout import agent, flow
    from turnout.testing import replayed, run

    clerk = agent("clerk", "openai-chat:gpt-5")


    @flow
    async def answer(question: str) -> str:
        return (await clerk(question)).output


    def test_answer() -> None:
        clerk.model = replayed([{"role": "model", "text": "42", "asks": [], "tokens": [9, 1]}])
        assert run(answer, "How many?").result == "42"
    ```
    """
    from turnout.handlers.actions import agent_transcript

    return agent_transcript.replayed(transcript)
