"""The agent is real; what the model says is scripted, and what the tools do is replaced.

The alarm comes as if by its webhook; a test needs no signature.
"""

import json
import os
import unittest
from typing import Any
from unittest.mock import AsyncMock, patch

import on_call

from turnout import task
from turnout.testing import serve, webhook_event


@task
async def think(messages: list[dict[str, Any]]) -> dict[str, Any]:
    if messages[-1]["role"] == "tool":
        return {"role": "assistant", "content": "Scaled."}
    wanted = {"name": "scale", "arguments": json.dumps({"instances": 10})}
    call = {"id": "1", "type": "function", "function": wanted}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


class OnCall(unittest.IsolatedAsyncioTestCase):
    async def test_it_scales_once_a_person_agrees_and_once_only(self) -> None:
        order = AsyncMock(return_value="done")
        nowhere = {"MODEL_URL": "http://127.0.0.1:9", "MODEL_KEY": "unused"}
        with (
            patch.dict(os.environ, nowhere),
            patch.multiple(on_call, think=think, order=order),
        ):
            async with serve(on_call.on_call) as service:
                (waiting,) = await service.emit(webhook_event(on_call.on_call, {"cpu": 91}))
                self.assertEqual(waiting.state, "waiting")
                await service.restart()
                result = await service.answer(waiting.id)
        self.assertEqual(result.result, "Scaled.")
        order.assert_awaited_once_with("scale", instances=10)
