"""What tests of hand-offs share: the cloud of a module, which takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stand_ins import Cloud, aws


@pytest.fixture(scope="module")
def started_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with aws(tmp_path_factory.mktemp("aws")) as cloud:
        yield cloud


@pytest.fixture
def cloud(started_cloud: Cloud) -> Cloud:
    """An AWS without anything."""
    started_cloud.reset()
    return started_cloud
