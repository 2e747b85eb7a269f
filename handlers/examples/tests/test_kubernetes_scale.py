"""A cluster of one deployment, which becomes ready when it is told to."""

import os
import unittest
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import kubernetes_scale

from turnout.testing import run

WANTED = {"deployment": "web", "replicas": 5}


class Cluster:
    """What the flow uses of a client."""

    def __init__(self, stuck: bool) -> None:
        self.stuck, self.replicas, self.told = stuck, 3, [3]

    async def get(self, kind: Any, name: str, namespace: str) -> Any:
        ready = 3 if self.stuck else self.replicas
        status = SimpleNamespace(readyReplicas=ready)
        return SimpleNamespace(spec=SimpleNamespace(replicas=self.replicas), status=status)

    async def patch(self, kind: Any, name: str, body: Any, namespace: str) -> None:
        self.replicas = body["spec"]["replicas"]
        self.told.append(self.replicas)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Cluster"]:
        yield self


class KubernetesScale(unittest.TestCase):
    def test_it_is_scaled_once_also_over_a_crash(self) -> None:
        cluster = Cluster(stuck=False)
        with patch.object(kubernetes_scale, "cluster", cluster.opened):
            result = run(kubernetes_scale.scale_deployment, WANTED, crash_at=1)
        self.assertEqual((result.result, cluster.told), ("web: 3 to 5", [3, 5]))

    def test_what_does_not_become_ready_is_put_back(self) -> None:
        cluster = Cluster(stuck=True)
        with patch.object(kubernetes_scale, "cluster", cluster.opened):
            result = run(kubernetes_scale.scale_deployment, WANTED)
        self.assertEqual((result.state, result.undo), ("failed", "done"))
        self.assertEqual(cluster.told, [3, 5, 3])

    def test_without_a_configuration_it_fails_at_once(self) -> None:
        with patch.dict(os.environ, {"KUBECONFIG": "/nowhere", "ALERT_URL": "http://127.0.0.1:9"}):
            result = run(kubernetes_scale.scale_deployment, WANTED)
        self.assertRegex(str(result.error), "no cluster: .*/nowhere")
        self.assertEqual(result.steps["replicas#1"].tries, 1)
