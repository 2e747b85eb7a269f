"""Scale a deployment of Kubernetes: within a budget, and put back when it does not become ready.

The cluster is the one the service runs in, or that of `KUBECONFIG`; `ALERT_URL` is told of what
fails.
"""

# /// script
# dependencies = ["lightkube>=1.0"]
# ///

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lightkube import ApiError, AsyncClient, ConfigError
from lightkube.resources.apps_v1 import Deployment
from pydantic import BaseModel, Field

from turnout import Fail, Pending, budget, event, flow, notify, poll, retry, secret, task, webhook

changes = budget("kubernetes", max_changes=10, per="1h")
people = notify(secret("ALERT_URL"))  # told once of each cause, not of each run


class Wanted(BaseModel):
    """What is asked for."""

    deployment: str
    replicas: int = Field(ge=1, le=20)
    namespace: str = "default"


@asynccontextmanager
async def cluster() -> AsyncIterator[AsyncClient]:
    """Ask the cluster; what it will refuse the next time too is not tried again."""
    try:
        async with AsyncClient() as client:
            yield client
    except ApiError as error:
        if error.status.code in (400, 401, 403, 404, 422):
            raise Fail(f"Kubernetes refuses, {error.status.code}: {error}") from None
        raise
    except ConfigError as error:
        raise Fail(f"no cluster: {error}") from None


@task(reads=True, retry=retry(5), timeout="15s")
async def replicas(name: str, namespace: str) -> int:
    """Return how many there shall be."""
    async with cluster() as client:
        found = await client.get(Deployment, name, namespace=namespace)
    return int(found.spec.replicas)


async def put_back(name: str, namespace: str, before: int, count: int) -> None:
    """Undo a scaling, unless somebody has scaled to something else since."""
    if await replicas(name, namespace) == count:
        await scale(name, namespace, count, before)


@task(undo=put_back, retry=retry(5), timeout="15s")
async def scale(name: str, namespace: str, before: int, count: int) -> None:
    """Set how many there shall be; setting it again changes nothing."""
    async with cluster() as client:
        wanted = {"spec": {"replicas": count}}
        await client.patch(Deployment.Scale, name, wanted, namespace=namespace)


@task(retry=retry(5), timeout="15s")
async def ready(name: str, namespace: str, count: int) -> int | Pending:
    """Look whether they are there."""
    async with cluster() as client:
        found = await client.get(Deployment, name, namespace=namespace)
    there = found.status.readyReplicas if found.status else None
    return count if there == count else Pending(f"{there or 0} of {count} are ready")


@flow(on=[webhook("/scale", verify="none"), event("pods.wanted")], on_failure=people)
async def scale_deployment(wanted: Wanted) -> str:
    """Scale, and wait until it is done; after five minutes without success it is undone."""
    place = wanted.deployment, wanted.namespace
    before = await replicas(*place)
    if before == wanted.replicas:
        return "nothing to do"
    await changes.take()
    await scale(*place, before, wanted.replicas)
    await poll(ready, *place, wanted.replicas, every="2s", timeout="5m")
    return f"{wanted.deployment}: {before} to {wanted.replicas}"
