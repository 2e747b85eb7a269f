"""Stand-ins for clouds: a Kubernetes API (kmock), AWS (moto) and an SFTP server (asyncssh).

They and the clients that the examples use are in one environment of their own, `clients`
(`tests/bench/peers`); a program under test finds those behind its own packages.
"""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.peers import SCRIPTS, program_of, python_of, services

from .ports import free_port

AWS = {
    "AWS_ACCESS_KEY_ID": "of-the-test",
    "AWS_SECRET_ACCESS_KEY": "of-the-test",
    "AWS_DEFAULT_REGION": "eu-west-1",
}


_TARGETS = {"sqs": ("AmazonSQS", "1.0"), "secretsmanager": ("secretsmanager", "1.1")}
"""By service: what AWS calls it in requests of JSON, and which JSON it is."""


class Cluster:
    """A running Kubernetes API."""

    def __init__(self, port: int, kubeconfig: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.env = {"KUBECONFIG": str(kubeconfig)}

    def begin(
        self, deployments: Mapping[str, int], refused: Sequence[int] = (), stuck: bool = False
    ) -> None:
        """Begin anew with these deployments; the first changes are answered with `refused`."""
        plan = {"deployments": dict(deployments), "refused": list(refused), "stuck": stuck}
        _asked(f"{self.url}/plan", plan)

    def changes(self) -> list[tuple[str, str, Any]]:
        """Return the method, path and body of each change that was asked for."""
        return [tuple(each) for each in _asked(f"{self.url}/seen")]

    def scale(self, place: str, count: int) -> None:
        """Scale a deployment "namespace/name", as an operator would."""
        _asked(self._at(place), {"spec": {"replicas": count}}, "PATCH")

    def replicas(self, place: str) -> int:
        """Return how many pods a deployment "namespace/name" shall have."""
        return int(_asked(self._at(place))["spec"]["replicas"])

    def _at(self, place: str) -> str:
        namespace, _, name = place.partition("/")
        return f"{self.url}/apis/apps/v1/namespaces/{namespace}/deployments/{name}"


@contextmanager
def kubernetes(folder: Path) -> Iterator[Cluster]:
    """Run an API without anything."""
    port, config = free_port(), folder / "kubeconfig"
    cluster = Cluster(port, config)
    written = {
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": cluster.url}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "users": [{"name": "test", "user": {"token": "of-the-test"}}],
    }
    config.write_text(json.dumps(written))
    command = [str(python_of("clients")), str(SCRIPTS / "kubernetes_cluster.py"), str(port)]
    ready = lambda: services.answers(f"{cluster.url}/seen")  # noqa: E731
    with services.running(command, folder / "cluster.log", ready=ready, seconds=300):
        yield cluster


class Cloud:
    """A running stand-in for AWS."""

    def __init__(self, port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.env = AWS | {"AWS_ENDPOINT_URL": self.url}

    def ec2(self, action: str, **fields: str) -> str:
        """Ask EC2; returns its XML."""
        asking = urllib.request.Request(
            self.url,
            urllib.parse.urlencode({"Action": action, "Version": "2016-11-15"} | fields).encode(),
            _signed("ec2"),
        )
        with urllib.request.urlopen(asking, timeout=60) as answer:
            return str(answer.read().decode())

    def ask(self, service: str, action: str, **fields: Any) -> Any:
        """Ask a service that speaks JSON; returns its answer."""
        target, version = _TARGETS[service]
        headers = _signed(service) | {
            "X-Amz-Target": f"{target}.{action}",
            "Content-Type": f"application/x-amz-json-{version}",
        }
        asking = urllib.request.Request(self.url, json.dumps(fields).encode(), headers)
        with urllib.request.urlopen(asking, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def s3(self, path: str, body: bytes | None = None, method: str = "GET") -> tuple[str, str]:
        """Ask S3 for `BUCKET/NAME`, or with a query; returns its headers and its answer."""
        headers = _signed("s3") | {"Content-Type": "application/xml"}  # moto takes forms apart
        asking = urllib.request.Request(f"{self.url}/{path}", body, headers, method=method)
        with urllib.request.urlopen(asking, timeout=60) as answer:
            return str(answer.headers).lower(), answer.read().decode("utf-8", "replace")

    def names(self, bucket: str) -> list[str]:
        """Return what a bucket has."""
        return re.findall(r"<Key>(.*?)</Key>", self.s3(f"{bucket}?list-type=2")[1])

    def reset(self) -> None:
        """Forget everything."""
        urllib.request.urlopen(f"{self.url}/moto-api/reset", b"", timeout=60).close()

    def machines(self) -> list[tuple[str, str, str]]:
        """Return the id, state and key of each machine that was ever started."""
        told = re.sub(r' xmlns="[^"]*"', "", self.ec2("DescribeInstances"))
        return [
            (
                each.findtext("instanceId", ""),
                each.findtext("instanceState/name", ""),
                each.findtext("tagSet/item[key='turnout-key']/value", ""),
            )
            for each in ElementTree.fromstring(told).iterfind(".//instancesSet/item")
        ]


@contextmanager
def aws(folder: Path) -> Iterator[Cloud]:
    """Run an AWS."""
    port = free_port()
    cloud = Cloud(port, folder / "aws.log")
    command = [program_of("clients", "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    ready = lambda: services.answers(f"{cloud.url}/moto-api/data.json")  # noqa: E731
    with services.running(command, cloud.log, ready=ready, seconds=300):
        yield cloud


@contextmanager
def sftp(folder: Path) -> Iterator[str]:
    """Serve `folder`/partner; yields HOST:PORT. Keys and what was done are in `folder`."""
    port = free_port()
    (folder / "partner").mkdir()
    command = [str(python_of("clients")), str(SCRIPTS / "sftp_server.py")]
    command += [str(port), str(folder / "partner")]
    ready = lambda: services.listens(port)  # noqa: E731
    with services.running(command, folder / "sftp.log", ready=ready, cwd=folder):
        yield f"127.0.0.1:{port}"


def _signed(service: str) -> dict[str, str]:
    """As far as moto looks at a signature."""
    scope = (
        f"{AWS['AWS_ACCESS_KEY_ID']}/20260101/{AWS['AWS_DEFAULT_REGION']}/{service}/aws4_request"
    )
    return {"Authorization": f"AWS4-HMAC-SHA256 Credential={scope}"}


def _asked(url: str, body: Any = None, method: str | None = None) -> Any:
    sent = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/merge-patch+json"}
    asking = urllib.request.Request(url, sent, headers, method=method)
    with urllib.request.urlopen(asking, timeout=60) as answer:
        return json.load(answer)
