"""A Kubernetes API over HTTP, emulated by kmock: `kubernetes_cluster.py PORT`.

POST `/plan` begins anew with JSON: `deployments` by "namespace/name" with their replicas,
`refused`, the statuses that the next changes are answered with, and `stuck`, whether pods never
become ready. GET `/seen` lists the changes that were asked for since: method, path and body.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import aiohttp.web
import kmock

DEPLOYMENTS = kmock.resource("apps", "v1", "deployments")


class Cluster(kmock.KubernetesEmulator):
    """Refuses what it is told to before anything is changed, and makes pods ready at once."""

    def begin(self, plan: dict[str, Any]) -> None:
        """Have these deployments, and nothing seen."""
        self.plan = plan
        self.seen: list[tuple[str, str, Any]] = []
        for place, replicas in plan["deployments"].items():
            namespace, _, name = place.partition("/")
            self.objects[DEPLOYMENTS, namespace, name] = {
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"replicas": replicas, "selector": {}, "template": {}},
                "status": {"replicas": replicas, "readyReplicas": replicas},
            }

    async def _handle(self, request: kmock.Request) -> aiohttp.web.StreamResponse:
        method, path = request.method.value.upper(), request.url.path
        if path == "/plan":
            self.begin(request.data)
        if path in ("/seen", "/plan"):
            return aiohttp.web.json_response(self.seen)
        if method == "GET":
            return await super()._handle(request)
        self.seen.append((method, path, request.data))
        if self.plan["refused"]:
            status = self.plan["refused"].pop(0)
            body = {"kind": "Status", "apiVersion": "v1", "code": status, "message": "as planned"}
            as_kubernetes = {"Content-Type": "application/json"}  # and no charset
            text = json.dumps(body).encode()
            return aiohttp.web.Response(body=text, status=status, headers=as_kubernetes)
        answer = await super()._handle(request)
        if not self.plan["stuck"]:
            found = self.objects[DEPLOYMENTS, request.namespace, request.name]
            found.patch({"status": {"readyReplicas": found["spec"]["replicas"]}})
        return answer


async def main(port: int) -> None:
    async with Cluster() as cluster, kmock.Server(cluster, port=port):
        cluster.begin({"deployments": {}, "refused": [], "stuck": False})
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
