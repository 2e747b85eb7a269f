"""What is deployed, made once for all tests: the wheel, and an environment with it installed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import CHECKOUT
from tests.support.stranger import interpreter

DEPLOY = CHECKOUT / "deploy"


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the container's build may see of the checkout, in a folder of its own."""
    context = tmp_path_factory.mktemp("context")
    unwanted = shutil.ignore_patterns("__pycache__")
    for kept in context_paths():
        target = context / kept
        target.parent.mkdir(exist_ok=True)
        if (CHECKOUT / kept).is_dir():
            shutil.copytree(CHECKOUT / kept, target, symlinks=True, ignore=unwanted)
        else:
            shutil.copy(CHECKOUT / kept, target)
    return context


@pytest.fixture(scope="session")
def wheel(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as the Containerfile does, from what its build may see."""
    return build_wheel(context, tmp_path_factory.mktemp("wheels"))


def build_wheel(context: Path, folder: Path) -> Path:
    """Build the wheel with the Containerfile's pip options."""
    options = ["--no-cache-dir", "--no-deps", "--no-build-isolation"]
    assert f"pip wheel {shlex.join(options)} " in (DEPLOY / "Containerfile").read_text()
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", *options]
    subprocess.run([*pip, "--wheel-dir", folder, context], check=True)
    (built,) = folder.glob("turnout-*.whl")
    return built


def context_paths() -> list[str]:
    """Return what the container's build may see of the checkout."""
    ignore = (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    return [line.removeprefix("!") for line in ignore if line.startswith("!")]


@pytest.fixture(scope="session")
def installed(wheel: Path) -> Iterator[Path]:
    """Install the runtime lock and the wheel into a clean environment others may read."""
    python = interpreter()
    folder = Path(tempfile.mkdtemp(prefix="turnout-installed-"))
    try:
        folder.chmod(0o755)
        venv = folder / "venv"
        subprocess.run([python, "-m", "venv", "--without-pip", venv], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "install"]
        lock = DEPLOY / "requirements" / "runtime.txt"
        subprocess.run([*pip, "--quiet", "--require-hashes", "-r", lock], check=True)
        subprocess.run([*pip, "--quiet", "--no-deps", "--no-index", wheel], check=True)
        home = folder / "home"
        home.mkdir()
        if os.getuid() == 0:
            shutil.chown(home, "nobody", "nogroup")
        yield folder
    finally:
        shutil.rmtree(folder)
