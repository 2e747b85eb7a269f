"""The image, built by its Containerfile's own instructions, and run as a restricted container."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support import CHECKOUT
from tests.support.containerfile import Image, build, run
from tests.support.program import until

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.timeout(600)]

MOST_BYTES = 45_000_000
"""What a node downloads beyond the base image, at most: as much as the base image itself."""

FLOW = """
import os
from pathlib import Path

from turnout import flow, task, webhook


def answer(attempt):
    try:
        attempt()
    except OSError as error:
        return error.strerror
    return "allowed"


@task
def look():
    return {
        "user": os.getuid(),
        "capabilities": [line for line in Path("/proc/self/status").read_text().splitlines()
                         if line.startswith(("CapBnd", "CapEff"))],
        "write the program": answer(lambda: Path("/opt/turnout/new").touch()),
        "write the root": answer(lambda: Path("/var/new").touch()),
        "write its folder": answer(lambda: Path("new").touch()),
        "write /tmp": answer(lambda: Path("/tmp/new").touch()),
    }


@task(pool="process")
def square(number):
    return number * number


@flow(on=webhook("/look", verify="none", respond=True))
async def looked(data: dict):
    return {**await look.run(), "square": await square.run(data["number"])}
"""


@pytest.fixture(scope="module")
def image(context: Path) -> Iterator[Image]:
    with build(CHECKOUT / "deploy" / "Containerfile", context) as built:
        yield built


def config_map(folder: Path) -> Path:
    """Return a folder laid out as the kubelet lays out a ConfigMap: links to what is replaced."""
    version = folder / "..2026_11_30"
    version.mkdir(parents=True)
    (version / "look.py").write_text(FLOW)
    (folder / "..data").symlink_to(version.name)
    (folder / "look.py").symlink_to("..data/look.py")
    for each in (folder, version):
        each.chmod(0o755)
    return folder


def test_its_layers_are_small(image: Image, say: Say) -> None:
    size = image.layer_bytes()
    say(f"{size / 1e6:.1f} MB compressed beyond the base image")
    assert 10_000_000 < size <= MOST_BYTES


def test_it_has_no_installer(image: Image) -> None:
    assert not list(image.files.glob("opt/turnout/bin/pip*"))
    assert not list(image.files.glob("opt/turnout/lib/*/site-packages/pip"))


def test_it_serves_without_rights_on_a_read_only_root(image: Image, tmp_path: Path) -> None:
    flows = config_map(tmp_path / "flows")
    with run(image, mounts={flows: "/flows"}) as container:
        until(container.is_healthy, 60, "a healthy container")
        sent = container.run(
            "curl", "--silent", "--show-error", "--fail-with-body", "--json", '{"number": 7}',
            "http://127.0.0.1:8080/hooks/look?wait=30s",
        )  # fmt: skip
        assert sent.returncode == 0, sent.stdout + sent.stderr
        assert json.loads(sent.stdout) == {
            "user": 10001,
            "capabilities": ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"],
            "write the program": "Read-only file system",
            "write the root": "Read-only file system",
            "write its folder": "allowed",
            "write /tmp": "allowed",
            "square": 49,
        }
        listed = container.run("turnout", "runs", "--json")
        assert json.loads(listed.stdout)["state"] == "succeeded", listed.stderr
        assert container.stop() == 0
