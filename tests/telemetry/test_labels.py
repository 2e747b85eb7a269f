"""Labels of a flow's own: declared values only, whatever events bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.prometheus import promtool
from tests.support.running import Running, running
from turnout import Event, Fail, flow, label
from turnout.service.domain.errors import SetupError
from turnout.service.domain.labels import Label


def region(event: Event) -> object:
    return event.data["region"]


REGION = label(region, values=["eu", "us"])


@flow(metrics={"region": REGION, "tier": label(lambda _: "gold", values=["gold"])})
async def ships(order: dict[str, Any]) -> None:
    order["region"] = "changed by the flow"
    if order.get("lost"):
        raise Fail("lost")


@flow(metrics={"region": REGION}, name="takes-a-number")
async def takes_a_number(order: dict[str, int]) -> None: ...


@flow
async def plain(order: dict[str, Any]) -> None: ...


def counted(service: Running) -> set[str]:
    """Return the samples of the runs that ended."""
    lines = service.process.metrics.render().decode().splitlines()
    return {line for line in lines if line.startswith("turnout_runs_total{")}


async def test_runs_are_told_apart_by_declared_values_only(tmp_path: Path) -> None:
    async with running(tmp_path, [ships, plain]) as service:
        for data in (
            {"region": "eu"}, {"region": "us"}, {"region": "us", "lost": True}, {"region": 7}, {},
        ):  # fmt: skip
            await service.send(data)
        for number in range(300):
            await service.send({"region": f"value-{number}"})
        await service.all_finished()
        found = counted(service)
        promtool("check", "metrics", given=service.process.metrics.render())
    own = 'flow="ships",outcome="{}",region="{}",tier="gold"'
    assert found == {
        f"turnout_runs_total{{{own.format('succeeded', 'eu')}}} 1.0",
        f"turnout_runs_total{{{own.format('succeeded', 'us')}}} 1.0",
        f"turnout_runs_total{{{own.format('failed', 'us')}}} 1.0",
        f"turnout_runs_total{{{own.format('succeeded', 'other')}}} 302.0",
        'turnout_runs_total{flow="plain",outcome="succeeded"} 305.0',
    }


async def test_a_function_that_raises_counts_as_other_and_is_logged_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(tmp_path, [ships]) as service:
        for _ in range(3):
            await service.send({})
        await service.all_finished()
        (found,) = counted(service)
    assert 'region="other",tier="gold"} 3.0' in found
    out = capsys.readouterr()
    assert (out.out + out.err).count("label.failed") == 1


async def test_a_run_that_is_refused_as_it_is_stored_has_its_label(tmp_path: Path) -> None:
    async with running(tmp_path, [takes_a_number]) as service:
        await service.send({"region": "eu"})
        await service.all_finished()
        assert counted(service) == {
            'turnout_runs_total{flow="takes-a-number",outcome="failed",region="eu"} 1.0'
        }


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (REGION, "write metrics={"),
        ({"flow": REGION}, "names a label 'flow', which turnout or Prometheus sets"),
        ({"le": REGION}, "choose another name"),
        ({"Region": REGION}, "write small letters"),
        ({"region": region}, "write 'region': label(lambda event: …, values=[…])"),
        ({"region": "eu"}, "write 'region': label("),
        (dict.fromkeys("abcd", REGION), "4 labels, a, b, c, d: 3 at most"),
        (
            {name: label(region, values=[str(n) for n in range(20)]) for name in "ab"},
            "the values of a, b make 441 series, 'other' included: 100 at most",
        ),
    ],
)
def test_what_cannot_be_labels_is_refused(metrics: Any, message: str) -> None:
    with pytest.raises(SetupError, match="flow 'made'") as refused:

        @flow(metrics=metrics)
        def made() -> None: ...

    assert message in str(refused.value)


async def asks_later(event: Event) -> str:
    return "eu"


@pytest.mark.parametrize(
    ("function", "values", "message"),
    [
        ("region", ["eu"], "write a function"),
        (asks_later, ["eu"], "`def`, not `async def`"),
        (lambda: "eu", ["eu"], "takes one argument"),
        (region, "eu", 'list what it may be, such as ["eu", "us"], not \'eu\''),
        (region, [], "list what it may be"),
        (region, None, "list what it may be"),
        (region, [1], "text that can be printed, not 1"),
        (region, ["e\nu"], "text that can be printed"),
        (region, ["e" * 101], "has 101"),
        (region, [""], "1 to 100 characters"),
        (region, ["eu", "eu"], "'eu' is listed twice"),
        (region, ["eu", "other"], "leave it out"),
    ],
)
def test_what_cannot_be_a_label_is_refused(function: Any, values: Any, message: str) -> None:
    with pytest.raises(SetupError) as refused:
        label(function, values=values)
    assert message in str(refused.value)


def test_a_label_is_a_value() -> None:
    assert label(region, values=("eu", "us")) == Label(region, ("eu", "us")) == REGION
