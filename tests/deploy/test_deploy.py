"""What is deployed: the wheel, the locks, the container, compose and Prometheus files.

Docker is not needed: the Containerfile's own commands run from a clean virtual environment, as a
user who is not root. promtool judges its files where it is installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from packaging.requirements import Requirement

from tests.support import CHECKOUT
from tests.support.ports import free_port
from tests.support.program import environment, until
from tests.support.prometheus import promtool
from tests.support.stranger import stranger
from turnout.service.settings import Settings
from turnout.service.telemetry.metrics import Counts, Metrics

from .test_monitoring import queries

pytestmark = pytest.mark.slow

DEPLOY = CHECKOUT / "deploy"
LOCKS = sorted((DEPLOY / "requirements").glob("*.txt"))


# ---- the wheel


@pytest.mark.timeout(120)
def test_wheel_holds_every_file_of_the_package_and_no_links(wheel: Path) -> None:
    places = {
        f"turnout/{path.relative_to(CHECKOUT)}": path
        for folder in ("service", "triggers", "handlers")
        for path in (CHECKOUT / folder).rglob("*")
    } | {str(path.relative_to(CHECKOUT)): path for path in (CHECKOUT / "turnout").rglob("*")}
    expected = {
        name for name, path in places.items() if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        links = [info.filename for info in archive.infolist() if info.external_attr >> 28 == 0o12]
    assert inside == expected
    assert links == []
    assert any(name.endswith(".sql") for name in inside)


# ---- the locks


def locked(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==([^\s;\\]+)", lock.read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_lock_pins_by_hash_and_names_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(-i|-f|--(extra-)?index-url|--find-links|-e)\b", text, re.MULTILINE)
    entries = [entry for entry in re.split(r"(?<!\\)\n", text) if entry.strip()]
    assert entries
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]


def test_locks_satisfy_what_the_project_declares() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["test"]
    for name, declared in (
        ("runtime", project["dependencies"]),
        ("test", project["dependencies"] + extra),
        ("build", ["hatchling", "editables"]),
    ):
        pins = locked(DEPLOY / "requirements" / f"{name}.txt")
        for requirement in map(Requirement, declared):
            pin = pins.get(requirement.name)
            assert pin is not None, f"{requirement} is not in {name}.txt; lock again"
            assert requirement.specifier.contains(pin), f"{name}.txt has {requirement.name} {pin}"


# ---- the container's commands, from a clean environment, as nobody


def containerfile(instruction: str) -> list[str]:
    """Return the words of an instruction of the final stage that is written as a JSON list."""
    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ")
    found = re.findall(rf"^{instruction}\b[^\[\n]*(\[.*\])$", text, re.MULTILINE)
    words: list[str] = json.loads(found[-1])
    return words


def run_as_stranger(
    folder: Path, command: Sequence[str | Path], **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder / "home",
        env=stranger_environment(folder, **env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **stranger(),
    )


def stranger_environment(folder: Path, **env: str) -> dict[str, str]:
    path = f"{folder / 'venv' / 'bin'}:{os.environ['PATH']}"
    return environment({"PATH": path, "HOME": str(folder / "home"), **env})


@pytest.mark.full
@pytest.mark.timeout(300)
def test_container_serves_from_a_clean_environment_without_root(installed: Path) -> None:
    flows = installed / "flows"
    shutil.copytree(CHECKOUT / "handlers" / "examples", flows)
    nowhere = "http://127.0.0.1:9/"
    secrets = {"GITHUB_WEBHOOK_SECRET": "not-a-real-secret"}
    secrets |= {"REPORT_URL": nowhere, "SHOP_URL": nowhere}

    helped = run_as_stranger(installed, ["turnout", "--help"])
    assert helped.returncode == 0, helped.stderr
    assert "serve" in helped.stdout
    checked = run_as_stranger(installed, ["turnout", "check", "--env", flows], **secrets)
    assert checked.returncode == 0, checked.stdout + checked.stderr

    port = free_port()
    swap = {"/flows": str(flows), "8080": str(port)}
    words = containerfile("ENTRYPOINT") + containerfile("CMD")
    health = [word.replace("8080", str(port)) for word in containerfile("HEALTHCHECK")]
    with subprocess.Popen(
        [swap.get(word, word) for word in words],
        cwd=installed / "home",
        env=stranger_environment(installed, TURNOUT_DATA="journal", **secrets),
        **stranger(),
    ) as process:
        try:
            until(
                lambda: run_as_stranger(installed, health).returncode == 0, 20, "a healthy service"
            )
        finally:
            process.terminate()
    assert process.returncode == 0
    assert run_as_stranger(installed, health).returncode != 0, "the health check cannot fail"


def test_container_ends_as_a_user_who_is_not_root() -> None:
    final = (DEPLOY / "Containerfile").read_text().rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (\S+)$", final, re.MULTILINE) == ["turnout"]
    for line in re.findall(r"^COPY (?!--from)(.*)$", (DEPLOY / "Containerfile").read_text(), re.M):
        assert (CHECKOUT / line.split()[0]).exists(), line


# ---- compose, settings, Prometheus


def test_compose_refers_to_what_is_there_and_publishes_on_loopback_only() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert set(compose["services"]) == {
        "turnout",
        "kafka",
        "prometheus",
        "alertmanager",
        "grafana",
    }
    for name, service in compose["services"].items():
        if build := service.get("build"):
            context = DEPLOY / build["context"]
            assert (context / build["dockerfile"]).is_file()
        else:
            assert re.search(r":v?\d", service["image"]), f"{name}: pin the image"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = (DEPLOY / source).exists() if source[0] == "." else source in compose["volumes"]
            assert known, f"{name}: {volume}"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: {port}"
        for needed in service.get("depends_on", {}):
            assert needed in compose["services"]


def test_compose_is_what_its_schema_takes() -> None:
    package = distribution("check-jsonschema")  # read, not imported: that takes seconds
    (schema,) = (each for each in package.files or () if each.name == "compose-spec.json")
    compose = Draft202012Validator(json.loads(schema.read_text("utf-8")))
    text = (DEPLOY / "compose.yaml").read_text()
    compose.validate(yaml.safe_load(text))
    with pytest.raises(ValidationError, match="readonly"):
        compose.validate(yaml.safe_load(text.replace("read_only:", "readonly:")))


def test_every_setting_named_in_deploy_exists() -> None:
    known = {f"TURNOUT_{name.upper()}" for name in Settings.model_fields}
    for name in ("Containerfile", "compose.yaml", "turnout.service"):
        named = set(re.findall(r"\bTURNOUT_[A-Z_]+", (DEPLOY / name).read_text()))
        assert named <= known, f"{name}: {named - known}"


def test_compose_waits_longer_than_the_grace_time() -> None:
    grace = Settings.model_fields["grace"].default.total_seconds()
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    unit = (DEPLOY / "turnout.service").read_text()
    waits = [compose["services"]["turnout"]["stop_grace_period"]]
    waits += re.findall(r"^TimeoutStopSec=(.*)$", unit, re.MULTILINE)
    assert len(waits) == 2
    for wait in waits:
        assert int(wait.removesuffix("s")) > grace


def test_prometheus_accepts_the_scrape_config_and_rules() -> None:
    promtool("check", "config", DEPLOY / "prometheus.yml")


def test_rules_and_dashboards_name_only_metrics_that_exist() -> None:
    metrics = Metrics()
    metrics.observe_counts(Counts)
    known = {family.name for family in metrics.registry.collect()}
    rules = yaml.safe_load((DEPLOY / "turnout.rules.yml").read_text())
    all_rules = [rule for group in rules["groups"] for rule in group["rules"]]
    recorded = {rule["record"] for rule in all_rules if "record" in rule}
    for query in [rule["expr"] for rule in all_rules] + queries():
        for name in re.findall(r"\bturnout_[a-z_]+", query):
            assert re.sub("_(bucket|count|total)$", "", name) in known, name
        assert set(re.findall(r"\bturnout:[a-z0-9_:]+", query)) <= recorded
