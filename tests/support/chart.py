"""What helm makes of the chart in `deploy/chart`, kept in `tests/snapshots/chart`.

`python -m tests.support.chart` renders the chart again with each set of values in
`deploy/chart/ci`. Helm takes minutes to build, so the quick tests judge what is kept, and refuse it
once the chart has changed; a test with `--full` compares it with what helm makes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from . import CHECKOUT

CHART = CHECKOUT / "deploy" / "chart"
SNAPSHOTS = CHECKOUT / "tests" / "snapshots" / "chart"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))

_VERSION = "v4.3.1"
_CACHE = Path.home() / ".cache" / "turnout" / f"helm-{_VERSION}"
_BUILD_SECONDS = 1800


def helm() -> str:
    """Return the path of helm: the machine's, or one that Go builds once."""
    if found := shutil.which("helm"):
        return found
    built = _CACHE / "helm"
    if not built.exists():
        if shutil.which("go") is None:
            pytest.skip("there is no helm, and no Go to build it")
        source = f"helm.sh/helm/{_VERSION.partition('.')[0]}/cmd/helm@{_VERSION}"
        subprocess.run(
            ["go", "install", source], env={**os.environ, "GOBIN": str(_CACHE)}, check=True,
            timeout=_BUILD_SECONDS,
        )  # fmt: skip
    return str(built)


def run_helm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run helm."""
    return subprocess.run(
        [helm(), *words], capture_output=True, text=True, check=False, timeout=60
    )  # fmt: skip


def defaults() -> dict[str, Any]:
    """Return the chart's own values."""
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return values


def merged(values: Mapping[str, Any], over: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return values laid over others, by default the chart's own, as helm does."""
    result = dict(defaults() if over is None else over)
    for name, value in values.items():
        under = result.get(name)
        both = isinstance(value, dict) and isinstance(under, dict)
        result[name] = merged(value, under) if both else value
    return result


def render(*values: Path) -> subprocess.CompletedProcess[str]:
    """Have helm make what it makes of the chart with these values, for the oldest Kubernetes."""
    files = [f"--values={file}" for file in values]
    oldest = f"--kube-version={oldest_kubernetes()}"
    return run_helm("template", "orders", CHART, "--namespace=flows", oldest, *files)


def oldest_kubernetes() -> str:
    """Return the oldest version of Kubernetes that the chart takes, such as 1.29."""
    wanted: str = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    (version,) = re.findall(r"^>=(\d+\.\d+)\.0-0$", wanted)
    return str(version)


def kept(values: Path) -> Path:
    """Return where it is kept."""
    return SNAPSHOTS / values.name.replace("-values", "")


def is_current(values: Path) -> bool:
    """Whether what is kept was made from the chart and the values as they are."""
    return kept(values).read_text().startswith(_made_from(values) + "\n")


def objects(values: Path) -> list[dict[str, Any]]:
    """Return the objects that are kept."""
    return read(kept(values).read_text())


def read(text: str) -> list[dict[str, Any]]:
    """Return the objects in a text."""
    return [each for each in yaml.safe_load_all(text) if each]


def _made_from(values: Path) -> str:
    digest = hashlib.sha256()
    for file in _sources(values):
        digest.update(f"{file.relative_to(CHART)}\n".encode() + file.read_bytes())
    return f"# Rendered by helm from files with the digest {digest.hexdigest()}"


def _sources(values: Path) -> Iterable[Path]:
    yield from (CHART / "Chart.yaml", CHART / "values.yaml", values)
    yield from sorted((CHART / "templates").iterdir())


if __name__ == "__main__":
    for each in VALUES:
        made = render(each)
        made.check_returncode()
        kept(each).write_text(f"{_made_from(each)}\n{made.stdout.rstrip()}\n")
