"""What an agent may spend: model calls, calls of tools, tokens, money and time.

Each try of a model call is reserved before it is sent, on disk, by the most it may take. What an
answer says it took replaces its reservation; where the process died or no answer came, the
reservation stays spent. Not here: the conversation (`agent_run`), and budgets that flows share
(`budget`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from turnout.service.domain.errors import SetupError
from turnout.service.domain.run import Fail

_MILLION = 1_000_000
USUAL_ANSWER_TOKENS = 4096


class AgentSpent(Fail):
    """Raised when an agent has used up one of its budgets; the run fails, unless it is caught.

    * `agent`: the agent's name
    * `budget`: which budget: `calls`, `tool calls`, `tokens`, `money` or `time`
    * `used`: how much is used of it, as text
    * `limit`: how much there is, as text
    * `needed`: how much the next call may take, as text

    Raises nothing by itself. It is a `Fail`. With a larger budget, `turnout retry RUN` goes on
    where the agent stopped.

    ```python
    from turnout import AgentSpent, agent, flow

    clerk = agent("clerk", "openai-chat:gpt-5", max_calls=5)


    @flow
    async def answer(question: str) -> str:
        try:
            return (await clerk(question)).output
        except AgentSpent as spent:
            return f"no answer: {spent.used} of {spent.limit} {spent.budget} used"
    ```
    """

    def __init__(self, agent: str, budget: str, used: str, limit: str, needed: str) -> None:
        super().__init__(f"agent {agent!r} has spent its {budget}")
        self.args = (agent, budget, used, limit, needed)
        self.agent = agent
        self.budget = budget
        self.used = used
        self.limit = limit
        self.needed = needed

    def __str__(self) -> str:
        """Return what is spent, and what the next call would have needed."""
        return (
            f"agent {self.agent!r} has spent its {self.budget}: {self.used} of {self.limit} used, "
            f"and the next call may take {self.needed}"
        )


@dataclass(frozen=True, slots=True)
class Spent:
    """What model calls have taken, or may take."""

    calls: int = 0
    input: int = 0
    output: int = 0
    seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.calls + other.calls,
            self.input + other.input,
            self.output + other.output,
            self.seconds + other.seconds,
        )

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.input + self.output

    def plain(self) -> dict[str, Any]:
        """Return it as it is recorded."""
        return {
            "calls": self.calls,
            "input": self.input,
            "output": self.output,
            "seconds": round(self.seconds, 3),
        }

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> Spent:
        """Return what was recorded."""
        return cls(
            recorded["calls"], recorded["input"], recorded["output"], float(recorded["seconds"])
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The budgets of one call of an agent; None is no bound."""

    calls: int
    tool_calls: int
    tokens: int | None = None
    money: Decimal | None = None
    input_price: Decimal = Decimal(0)
    output_price: Decimal = Decimal(0)
    seconds: float | None = None
    answer_tokens: int | None = None
    call_seconds: float | None = None

    def cost(self, spent: Spent) -> Decimal:
        """Return what tokens cost by the prices, which are for a million of them."""
        exact = spent.input * self.input_price + spent.output * self.output_price
        return exact / _MILLION

    def reserve(self, agent: str, used: Spent, input_tokens: int) -> Spent:
        """Return what the next model call may take; raises `AgentSpent` if that is not left."""
        if used.calls >= self.calls:
            raise AgentSpent(agent, "calls", str(used.calls), str(self.calls), "1")
        left = None if self.seconds is None else self.seconds - used.seconds
        if left is not None and left <= 0:
            raise AgentSpent(
                agent, "time", f"{used.seconds:.1f} s", f"{self.seconds:g} s", "some time"
            )
        bounds = [each for each in (left, self.call_seconds) if each is not None]
        reserved = Spent(1, input_tokens, self.answer_tokens or 0, min(bounds, default=0.0))
        if self.tokens is not None and used.tokens + reserved.tokens > self.tokens:
            raise AgentSpent(
                agent, "tokens", str(used.tokens), str(self.tokens), str(reserved.tokens)
            )
        if self.money is not None and self.cost(used + reserved) > self.money:
            raise AgentSpent(
                agent, "money", _shown(self.cost(used)), _shown(self.money),
                _shown(self.cost(reserved)),
            )  # fmt: skip
        return reserved


def _shown(money: Decimal) -> str:
    return f"{money.normalize():f}"


def read_money(value: object, words: str) -> Decimal:
    """Return an amount of money exactly; raises `SetupError` for a float or what is none."""
    if isinstance(value, str | int | Decimal) and not isinstance(value, bool):
        try:
            amount = Decimal(value)
        except InvalidOperation:
            amount = Decimal("NaN")
        if amount.is_finite() and amount >= 0:
            return amount
    raise SetupError(f'{words}={value!r:.40}: write an amount as text, such as "0.50"')
