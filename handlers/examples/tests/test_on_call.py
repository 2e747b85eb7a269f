"""The agent is real; what the model says is scripted, and what the tools do is replaced.

The alarm comes as if by its webhook; a test needs no signature.
"""

import json
import os
import unittest
from typing import Any
from unittest.mock import AsyncMock, patch

import on_call
from langchain.agents import create_agent

from turnout import Fail, task
from turnout.testing import Result, Service, serve, webhook_event

read: list[Any] = []
"""What the model was given each time, by the test under way."""


@task
async def think(messages: list[dict[str, Any]]) -> dict[str, Any]:
    read.append(messages)
    if messages[-1]["role"] == "tool":
        return {"role": "assistant", "content": f"Scaled: {messages[-1]['content']}."}
    wanted = {"name": "scale", "arguments": json.dumps({"instances": 10})}
    call = {"id": "1", "type": "function", "function": wanted}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


@task
async def breaks_down(messages: list[dict[str, Any]]) -> dict[str, Any]:
    raise Fail("the model has broken down")


class OnCall(unittest.IsolatedAsyncioTestCase):
    def setUp(self) -> None:
        read.clear()
        self.order = AsyncMock(return_value="done")
        nowhere = {"MODEL_URL": "http://127.0.0.1:9", "MODEL_KEY": "unused"}
        for each in (
            patch.dict(os.environ, nowhere),
            patch.multiple(on_call, think=think, order=self.order),
        ):
            each.start()
            self.addCleanup(each.stop)

    async def alarm(self, service: Service) -> Result:
        (run,) = await service.emit(webhook_event(on_call.on_call, {"cpu": 91}))
        return run

    async def test_it_scales_once_a_person_agrees_and_once_only(self) -> None:
        async with serve(on_call.on_call) as service:
            waiting = await self.alarm(service)
            self.assertEqual(waiting.state, "waiting")
            await service.restart()
            result = await service.answer(waiting.id)
        self.assertEqual(result.result, "Scaled: done.")
        self.order.assert_awaited_once_with("scale", instances=10)

    async def test_the_model_is_told_when_nobody_answers(self) -> None:
        async with serve(on_call.on_call) as service:
            waiting = await self.alarm(service)
            await service.advance("1h")
            result = await service.look(waiting.id)
        self.assertEqual(result.result, "Scaled: nobody has answered.")
        self.order.assert_not_awaited()

    async def test_it_knows_why_the_last_time_failed(self) -> None:
        async with serve(on_call.on_call) as service:
            with patch.object(on_call, "think", breaks_down):
                failed = await self.alarm(service)
            await self.alarm(service)
        self.assertEqual(failed.state, "failed")
        (prompt,) = (each["content"] for each in read[0] if each["role"] == "user")
        self.assertIn("['failed: the model has broken down']", prompt)

    async def test_an_agent_needs_no_system_prompt(self) -> None:
        def create(*args: Any, system_prompt: str, **options: Any) -> Any:
            return create_agent(*args, **options)

        with patch.object(on_call, "create_agent", create):
            async with serve(on_call.on_call) as service:
                result = await service.answer((await self.alarm(service)).id)
        self.assertEqual(result.result, "Scaled: done.")
        self.assertEqual([each["role"] for each in read[0]], ["user"])
