"""One call of an agent in a run: its conversation, each model call and each tool call a step.

The framework talks in an asyncio task of its own and does nothing else: what it wants comes here,
into the flow's own task. So keys of steps depend on the conversation alone: `agent#1[3]/model#1` is
the third model call, `agent#1[3]/gather#1[0]/refund#1` the first call of a tool it asks for. Not
here: how models are spoken with (`agent_framework`) and what may be spent (`agent_budget`).
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from turnout.handlers.gather import gather
from turnout.service.domain.errors import FOREIGN, CodeChanged, MisplacedTask, as_exception
from turnout.service.domain.payload import write_json
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.run import Rejected
from turnout.service.domain.task import Task
from turnout.service.governance import secrets
from turnout.service.journal.records import AGENT, StepRecord
from turnout.service.steps import failures, step
from turnout.service.steps.approval import MOST_DATA_BYTES, approval
from turnout.service.steps.branches import Branches
from turnout.service.steps.context import current
from turnout.service.steps.durable_marks import mark_record
from turnout.service.steps.recording import store
from turnout.service.steps.scope import Scope
from turnout.service.steps.step import StepCall, call_task
from turnout.service.steps.suspension import Suspend
from turnout.service.telemetry.logs import get_logger

from .agent_budget import AgentSpent, Spent

if TYPE_CHECKING:
    from .agent import Agent, AgentAnswer
    from .agent_framework import Call, HandedOver

log = get_logger("turnout")

O = TypeVar("O")  # noqa: E741  the output


async def run(agent: Agent[O], prompt: str, scope: Scope | None) -> AgentAnswer[O]:
    """Return what the agent came to, or what it came to in an earlier attempt."""
    if scope is None:
        return await _Conversation(agent, prompt, None).held()
    places = Branches(scope, "agent")
    ended = scope.context.claimed.recorded.get(places.key)
    if ended is not None and ended.state == "failed":
        places.raise_again()
    task: Task[Any] = Task(function=_typed(agent.returns), name="agent", retry=RetryPolicy())
    call = StepCall(task, scope, places.key, (agent.name, prompt), {})
    answer: AgentAnswer[O]
    if call.services.dry_run is not None:
        answer = call.services.dry_run.instead(call, "call")
        return answer
    try:
        known = call.recorded()
        if known is not None and known.state == "succeeded":
            answer = call.recall(known) if known.blob is None else await call.recall_blob(known)
            return answer
        answer = await _Conversation(agent, prompt, call).opened()
    except Suspend as suspended:
        scope.suspended = suspended  # the flow waits, not only the turn of the conversation
        raise
    except FOREIGN as error:
        failure = as_exception(error)
        if failures.step_of(failure) is None:
            failures.set_step(failure, call.key)
        raise places.failed([failure]) from None
    call.done = await store(call.context, call.succeeded(answer))
    return answer


class _Conversation:
    """One conversation: what was said so far, and what it has spent."""

    def __init__(self, agent: Agent[Any], prompt: str, call: StepCall | None) -> None:
        self._agent = agent
        self._prompt = secrets.mask(prompt)
        self._call = call
        self._spent = Spent()
        self._turns = 0
        self._tool_calls = 0
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._turn: Scope | None = None

    async def opened(self) -> AgentAnswer[Any]:
        """Record what the agent goes by, or compare it with what it went by; then go on."""
        call = self._call
        assert call is not None
        before = call.context.claimed.recorded.get(call.key)
        goes_on = before is not None and before.state == "waiting"
        begun_at = call.begin(before.started_at if before is not None and goes_on else None)
        key = f"{call.key}[0]/asked#1"
        seen = _digests(self._agent, self._prompt)
        known = call.context.claimed.recorded.get(key)
        if known is not None:
            self._compare(orjson.loads(known.result or b"{}"), seen)
        begun = StepRecord(
            key=call.key,
            task=call.task.name,
            state="waiting",
            tries=1,
            started_at=begun_at,
            in_error_handler=call.in_error_handler,
            arguments=call.arguments,
        )
        await store(call.context, begun)
        if known is None:
            await store(call.context, mark_record(key, AGENT, write_json(seen), begun_at))
        return await self.held()

    def _compare(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """Raise `CodeChanged` if the code has changed, and with it what the model goes by."""
        call = self._call
        assert call is not None
        changed = _changes(before, now)
        if not changed or call.context.sequence is None:
            return
        if call.context.sequence.enforced:
            raise CodeChanged(
                f"the code changed under this run: agent {self._agent.name!r} has begun, and "
                f"{' and '.join(changed)}; put that back, or begin anew: turnout retry RUN --from "
                f"{call.key}"
            )
        log.warning("agent.changed", agent=self._agent.name, step=call.key, changes=changed)

    async def held(self) -> AgentAnswer[Any]:
        """Hold the conversation to its end."""
        from . import agent_framework as framework
        from .agent import AgentAnswer
        from .agent_transcript import transcript

        agent, prepared = self._agent, self._agent.prepared
        history: Any = None
        results: Any = None
        prompt: str | None = self._prompt
        async with await asyncio.to_thread(framework.connected, agent) as model:
            while True:
                with_the_model = framework.Handing(model, self._queue)
                talk = partial(
                    prepared.talk, with_the_model, secrets.mask(agent.instructions), prompt,
                    history, results,
                )  # fmt: skip
                try:
                    result = await self._serving(talk(), model)
                except FOREIGN as error:
                    raise framework.as_failure(agent.name, as_exception(error)) from None
                history, prompt = result.all_messages(), None
                if not prepared.wants_tools(result.output):
                    return AgentAnswer(
                        output=result.output,
                        transcript=transcript(history),
                        calls=self._spent.calls,
                        tool_calls=self._tool_calls,
                        tokens=self._spent.tokens,
                        money=agent.limits.cost(self._spent),
                    )
                calls = framework.calls_of(prepared, result.output, result.response)
                results = framework.results_of(calls, await self._use_tools(calls))

    async def _serving(self, talk: Coroutine[Any, Any, Any], model: Any) -> Any:
        """Let the framework talk until it has an answer or needs tools; serve its requests."""
        talking = asyncio.get_running_loop().create_task(talk)
        talking.add_done_callback(self._queue.put_nowait)
        try:
            while True:
                asked = await self._queue.get()
                if asked is talking:
                    return talking.result()
                response = await self._ask(model, asked)
                if not asked.answer.done():
                    asked.answer.set_result(response)
        finally:
            if not talking.done():
                talking.cancel()
                await asyncio.wait([talking])
            if not talking.cancelled():
                talking.exception()  # mark it as retrieved

    # ------------------------------------------------------------ model calls

    async def _ask(self, model: Any, asked: HandedOver) -> Any:
        """Return the answer to a model call, a recorded step."""
        from . import agent_framework as framework

        self._turns += 1
        call = self._call
        if call is None:
            limits = self._agent.limits
            reserved = limits.reserve(self._agent.name, self._spent, asked.most_tokens)
            recorded = await self._try(model, asked, reserved, key=uuid.uuid4().hex)
        else:
            self._turn = Scope(call.context, f"{call.key}[{self._turns}]/")
            recorded = await self._ask_in_turn(model, asked, self._turn)
        self._spent += Spent.of(recorded["spent"])
        return framework.unpacked(recorded["answer"])

    async def _ask_in_turn(self, model: Any, asked: HandedOver, turn: Scope) -> Any:
        from . import agent_framework as framework

        tries = _Tries(turn)

        async def ask() -> Any:
            before = self._spent + tries.before  # with what was cut off, and what failed
            reserved = self._agent.limits.reserve(self._agent.name, before, asked.most_tokens)
            await tries.reserve(reserved)
            begun = time.perf_counter()
            try:
                return await self._try(model, asked, reserved, current().key())
            except FOREIGN as error:
                if framework.is_unpaid(error):
                    await tries.take_back(Spent(seconds=time.perf_counter() - begun))
                raise

        task: Task[Any] = Task(function=ask, name="model", retry=self._agent.retry)
        with turn:
            recorded = await step.run(StepCall(task, turn, turn.next_key("model"), (), {}))
        self._spent += tries.lost
        return recorded

    async def _try(self, model: Any, asked: HandedOver, reserved: Spent, key: str) -> Any:
        """Send a request once, and return the answer with what it took, as they are recorded."""
        from . import agent_framework as framework

        begun = time.perf_counter()
        response = await framework.sent(
            model,
            asked,
            key=key,
            seconds=reserved.seconds or None,
            answer_tokens=self._agent.limits.answer_tokens,
        )
        refused = framework.unknown_tools(self._agent.prepared, asked, response)
        if refused:
            log.warning("agent.tool_refused", agent=self._agent.name, tools=refused)
        spent = framework.taken(response, reserved, time.perf_counter() - begun)
        return {"answer": framework.packed(response), "spent": spent.plain()}

    # ------------------------------------------------------------ tools

    async def _use_tools(self, calls: Sequence[Call | None]) -> Sequence[Any]:
        """Return what calls of tools came to, each a step of the turn that asks for it."""
        limit = self._agent.limits.tool_calls
        wanted = sum(each is not None and each.problem is None for each in calls)
        if self._tool_calls + wanted > limit:
            raise AgentSpent(
                self._agent.name, "tool calls", str(self._tool_calls), str(limit), str(wanted)
            )
        self._tool_calls += wanted
        if self._turn is None:
            return await asyncio.gather(*(self._use(each) for each in calls))
        with self._turn:
            return await gather(*(self._use(each) for each in calls))

    async def _use(self, call: Call | None) -> Any:
        if call is None or call.problem is not None:
            return None
        task = next(each for each in self._agent.tools if each.name == call.tool)
        if task.name in self._agent.approve:
            refused = await self._refusal(task, call)
            if refused is not None:
                return refused
        done = call_task(task, (), call.arguments)
        if done is not None:
            return await done
        value = task.function(**call.arguments)
        return await value if task.is_async else value

    async def _refusal(self, task: Task[Any], call: Call) -> str | None:
        """Return what the model is told if a person does not approve a call; None for a yes."""
        if self._call is None:
            raise MisplacedTask(f"tool {task.name!r} needs approval, which there is in a run only")
        if len(orjson.dumps(call.arguments, default=str)) > MOST_DATA_BYTES:
            return "refused: the arguments are too long to be approved by a person"
        try:
            await approval(
                task.name,
                text=f"Agent {self._agent.name} asks to call {task.name}.",
                data=call.arguments,
                timeout=self._agent.approve_timeout,
            )
        except Rejected as error:
            return f"rejected: {str(error).removeprefix(f'{task.name} said no: ')}"
        except TimeoutError:
            return "rejected: nobody has approved it in time"
        return None


class _Tries:
    """What is recorded of the tries of one model call, before each is sent.

    A try is spent as it was reserved until the answer says what it took, or it is sure that there
    was nothing to pay.
    """

    def __init__(self, turn: Scope) -> None:
        self._turn = turn
        self._spent: list[Spent] = []
        recorded = turn.context.claimed.recorded
        while (mark := recorded.get(self._key("reserved", len(self._spent) + 1))) is not None:
            back = recorded.get(self._key("returned", len(self._spent) + 1))
            self._spent.append(Spent.of(orjson.loads((back or mark).result or b"{}")))

    def _key(self, name: str, number: int) -> str:
        return f"{self._turn.path}{name}#{number}"

    @property
    def before(self) -> Spent:
        """What all tries so far have spent, without an answer."""
        return sum(self._spent, Spent())

    @property
    def lost(self) -> Spent:
        """What all but the last have spent, which has brought the answer."""
        return sum(self._spent[:-1], Spent())

    async def reserve(self, reserved: Spent) -> None:
        """Record that a try is about to be made."""
        self._spent.append(reserved)
        await self._record("reserved", reserved)

    async def take_back(self, spent: Spent) -> None:
        """Record that the last try has spent no more than this."""
        self._spent[-1] = spent
        await self._record("returned", spent)

    async def _record(self, name: str, spent: Spent) -> None:
        context = self._turn.context
        assert context.services is not None  # there are scopes only where steps can be recorded
        key, note = self._key(name, len(self._spent)), write_json(spent.plain())
        await store(context, mark_record(key, AGENT, note, context.services.now()))


def _digests(agent: Agent[Any], prompt: str) -> dict[str, Any]:
    """Return what a model goes by, as digests: prompt, instructions, tools and output."""
    signatures = agent.prepared.signatures
    return {
        "prompt": _digest(prompt),
        "instructions": _digest(secrets.mask(agent.instructions)),
        "output": _digest(agent.prepared.output),
        "tools": {name: _digest(signatures[name]) for name in sorted(signatures)},
    }


def _digest(value: Any) -> str:
    return hashlib.blake2b(orjson.dumps(value, default=str), digest_size=8).hexdigest()


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return in words what has changed."""
    whole = ("prompt", "instructions", "output")
    changed = [f"its {what} changed" for what in whole if before[what] != now[what]]
    was, are = before["tools"], now["tools"]
    for name in sorted({*was, *are}):
        if name not in are:
            changed.append(f"its tool {name!r} is gone")
        elif name not in was:
            changed.append(f"its tool {name!r} is new")
        elif was[name] != are[name]:
            changed.append(f"its tool {name!r} changed")
    return changed


def _typed(returns: Any) -> Any:
    """Return a function by whose annotation the answer is recorded."""

    def answer(agent: str, prompt: str) -> None: ...

    answer.__annotations__["return"] = returns
    return answer
