"""Models for tests of agents, which ask nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def replayed(transcript: Sequence[Mapping[str, Any]]) -> Any:
    """Return a model that says again what it said in a transcript.

    `clerk.model = replayed(answer.transcript)`. `transcript` is that of an `AgentAnswer`, or the
    same read from JSON. The tools are called, and approvals are asked for, as they were then. A
    model call that the transcript does not have fails the run. Raises `ImportError` where the extra
    `ai` is not installed.
    """
    from turnout.handlers.actions import agent_framework

    return agent_framework.replayed(transcript)
