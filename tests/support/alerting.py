"""A real Prometheus and Alertmanager with the files of `deploy/`, and who is told by them.

Only durations differ from what an operator has: each is a sixtieth, so that what takes an hour
takes a minute. What is measured in seconds (a run that waits for 60 s) takes as long as ever.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from . import CHECKOUT
from .ports import free_port
from .program import until
from .prometheus import Prometheus, tool
from .stub_http import Asked, Reply, Stub, stubbed

DEPLOY = CHECKOUT / "deploy"
FACTOR = 60
SHORTEST_SECONDS = 3
"""A scrape and an evaluation a second are seen in so many of them."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\[|offset |for: )(\d+)([smhd])\b")
_PRODUCT = re.compile(r"\b(\d+) \* (60|3600)\b")


def faster(rules: str) -> str:
    """Return rules whose ranges, offsets, predictions and `for` are a sixtieth."""

    def shortened(found: re.Match[str]) -> str:
        return f"{found[1]}{_sixtieth(found[2] + found[3], SHORTEST_SECONDS)}"

    return _PRODUCT.sub(
        lambda found: f"{found[1]} * {int(found[2]) // FACTOR}", _DURATION.sub(shortened, rules)
    )


def _sixtieth(duration: str, least: int) -> str:
    seconds = int(duration[:-1]) * _SECONDS[duration[-1]]
    return f"{max(seconds // FACTOR, least)}s"


@dataclass
class Episode:
    """A cause that is there until `end`, and an alert with labels of its own that tells of it."""

    alert: str
    cause: str
    labels: Mapping[str, str]
    pager: Pager
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    fired_after: float | None = None
    resolved_after: float | None = None

    def fires(self, within: float = 40) -> None:
        """Wait until somebody is told, and is told the right labels."""
        at = self._until(self._first, "firing", within)
        self.fired_after = at - self.began

    def end(self) -> None:
        """Note that the cause is gone."""
        self.ended = time.monotonic()

    def resolves(self, within: float = 60) -> None:
        """Wait until the last that somebody is told is that it is over.

        A cause that comes and goes may be over for a moment before its end.
        """
        assert self.ended is not None, "the cause is still there"
        at = self._until(self._over, "resolved", within)
        self.resolved_after = max(at - self.ended, 0)

    def _mine(self) -> list[Told]:
        told = list(self.pager.told)
        return [each for each in told if each.name == self.alert and each.own == self.labels]

    def _first(self) -> float | None:
        mine = self._mine()
        fired = (each.at for each in mine if each.status == "firing" and each.at >= self.began)
        return next(fired, None)

    def _over(self) -> float | None:
        last = self._mine()[-1:]
        return last[0].at if last and last[0].status == "resolved" else None

    def _until(self, found: Callable[[], float | None], status: str, within: float) -> float:
        what = f"{status} {self.alert}{dict(self.labels)} after {self.cause}"
        try:
            return until(found, within, what)
        except AssertionError as error:
            told = "\n".join(f"{each.at - self.began:+.1f} s {each}" for each in self.pager.told)
            raise AssertionError(f"{error}; told were\n{told or 'none'}") from None


@dataclass(frozen=True)
class Told:
    """What a person is told once of an alert; `own` are the labels that say what it is about."""

    at: float
    status: str
    name: str
    own: Mapping[str, str]
    severity: str
    summary: str
    runbook: str

    def __str__(self) -> str:
        return f"{self.status} {self.name}{dict(self.own)}: {self.summary}"


class Pager:
    """Who Alertmanager tells, each change of each alert once."""

    def __init__(self, prometheus: Prometheus) -> None:
        self.prometheus = prometheus
        self.told: list[Told] = []
        self.episodes: list[Episode] = []
        self._states: dict[str, str] = {}

    def hear(self, asked: Asked) -> None:
        """Note what a document of Alertmanager says."""
        at = time.monotonic()
        for each in json.loads(asked.body)["alerts"]:
            labels: dict[str, str] = dict(each["labels"])
            key = json.dumps(labels, sort_keys=True)
            if self._states.get(key) == each["status"]:
                continue
            self._states[key] = each["status"]
            name, severity = labels.pop("alertname"), labels.pop("severity")
            own = {key: value for key, value in labels.items() if key not in ("job", "instance")}
            said = each["annotations"]
            self.told.append(
                Told(at, each["status"], name, own, severity, said["summary"], said["runbook"])
            )

    def episode(self, alert: str, cause: str, **labels: str) -> Episode:
        """Begin an episode: its cause is there from now on."""
        made = Episode(alert, cause, labels, self)
        self.episodes.append(made)
        return made

    def fired(self) -> set[str]:
        """Return the names of the alerts that were told."""
        return {told.name for told in list(self.told)}


@contextmanager
def operator(folder: Path, *, scrapes: int) -> Iterator[Pager]:
    """Run both as the page says, for a program at a port; yields who is told."""
    folder.mkdir()
    rules = folder / "turnout.rules.yml"
    rules.write_text(faster((DEPLOY / rules.name).read_text("utf-8")), "utf-8")
    ports = {"prometheus": free_port(), "alertmanager": free_port()}
    pager = Pager(Prometheus(ports["prometheus"]))
    with stubbed() as stub:
        _write_alertmanager(folder, stub)
        stub.when_asked = pager.hear
        _write_prometheus(folder, rules, scrapes, ports["alertmanager"])
        with (
            _running(
                folder, "prometheus-alertmanager", "--config.file=alertmanager.yml",
                "--storage.path=alertmanager", "--cluster.listen-address=",
                f"--web.listen-address=127.0.0.1:{ports['alertmanager']}",
            ),
            _running(
                folder, "prometheus", "--config.file=prometheus.yml",
                "--storage.tsdb.path=prometheus",
                f"--query.lookback-delta={300 // FACTOR}s",
                f"--web.listen-address=127.0.0.1:{ports['prometheus']}",
            ),
        ):  # fmt: skip
            yield pager


def _write_alertmanager(folder: Path, stub: Stub) -> None:
    config = yaml.safe_load((DEPLOY / "alertmanager.yml").read_text("utf-8"))
    for route in (config["route"], *config["route"]["routes"]):
        for key in ("group_wait", "group_interval", "repeat_interval"):
            if key in route:
                route[key] = _sixtieth(route[key], 1)
    ((receiver),) = config["receivers"]
    (webhook,) = receiver["webhook_configs"]
    webhook["url"] = stub.says("/alerts", Reply())
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))


def _write_prometheus(folder: Path, rules: Path, scrapes: int, alertmanager: int) -> None:
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))
    config["global"] = dict.fromkeys(config["global"], "1s")
    config["rule_files"] = [str(rules)]
    (told,) = config["alerting"]["alertmanagers"]
    told["static_configs"] = [{"targets": [f"127.0.0.1:{alertmanager}"]}]
    (scraped,) = config["scrape_configs"]
    scraped["static_configs"] = [{"targets": [f"127.0.0.1:{scrapes}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))


@contextmanager
def _running(folder: Path, program: str, *options: str) -> Iterator[None]:
    with (folder / f"{program}.log").open("wb") as log:
        child = subprocess.Popen([tool(program), *options], cwd=folder, stdout=log, stderr=log)
    try:
        yield
    finally:
        child.kill()
        child.wait(10)
