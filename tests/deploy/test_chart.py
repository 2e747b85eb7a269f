"""The Helm chart: which values it refuses, and what it makes of those it takes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.bench.peers import SCRIPTS, python_of
from tests.support import CHECKOUT, chart
from tests.support.pages import blocks
from turnout.service.settings import Settings

SCHEMA = json.loads((chart.CHART / "values.schema.json").read_text())
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
CUSTOM = CHECKOUT / "tests" / "data" / "kubernetes"

IMAGE = "image: {repository: registry.example/orders, tag: '1.4.0'}"
MISTAKES = {
    "no image": ("image: {}", "image."),
    "a version that YAML reads as a number": ("image: {tag: 1.10}", "image.tag"),
    "the tag latest": ("image: {tag: latest}", "image.tag"),
    "a tag in the name": ("image: {repository: 'orders:1.4'}", "image.repository"),
    "two replicas": ("replicas: 2", "replicas"),
    "no replica": ("replicas: 0", "replicas"),
    "a name from other charts": ("replicaCount: 1", "replicaCount"),
    "a strategy that runs two at once": ("strategy: {type: RollingUpdate}", "strategy"),
    "a misspelt value": ("persistence: {sizes: 20Gi}", "sizes"),
    "a volume in gigabytes": ("persistence: {size: 20GB}", "persistence.size"),
    "a volume that many nodes write": (
        "persistence: {accessMode: ReadWriteMany}",
        "persistence.accessMode",
    ),
    "a list of access modes": ("persistence: {accessMode: [ReadWriteOnce]}", "persistence"),
    "memory in thousandths of a byte": (
        "resources: {limits: {memory: 512m}}",
        "resources.limits.memory",
    ),
    "memory without a unit": ("resources: {limits: {memory: 512}}", "resources.limits.memory"),
    "limits one level too high": ("resources: {memory: 512Mi}", "memory"),
    "a secret in the values": (
        "extraEnv: [{name: GITHUB_WEBHOOK_SECRET, value: hunter22}]",
        "extraEnv.0",
    ),
    "variables as a mapping": ("extraEnv: {TURNOUT_CONCURRENCY: '8'}", "extraEnv"),
    "a variable that is a number": (
        "extraEnv: [{name: TURNOUT_CONCURRENCY, value: 8}]",
        "extraEnv.0",
    ),
    "a variable with two values": (
        "extraEnv: [{name: A, value: a, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]",
        "extraEnv.0",
    ),
    "a variable with a dash": ("extraEnv: [{name: MY-URL, value: x}]", "extraEnv.0.name"),
    "the data folder moved off the volume": (
        "extraEnv: [{name: TURNOUT_DATA, value: /data}]",
        "extraEnv.0.name",
    ),
    "a secret's content for its name": ("existingSecret: {TOKEN: abc}", "existingSecret"),
    "a secret's name in capitals": ("existingSecret: MySecret", "existingSecret"),
    "a duration with a unit": ("graceSeconds: 30s", "graceSeconds"),
    "flow files from two places": (
        "flows: {files: {a.py: 'x = 1'}, existingConfigMap: flows}",
        "flows.existingConfigMap",
    ),
    "a flow file in a folder": ("flows: {files: {team/a.py: 'x = 1'}}", "team/a.py"),
    "an ingress without a host": ("ingress: {enabled: true}", "ingress.host"),
    "a host with a scheme": ("ingress: {host: 'https://a.example'}", "ingress.host"),
    "one path in place of a list": ("ingress: {paths: /hooks}", "ingress.paths"),
    "a port in quotes": ("service: {port: '80'}", "service.port"),
    "a service type in the wrong case": ("service: {type: Loadbalancer}", "service.type"),
    "a budget that blocks upgrades of nodes": (
        "podDisruptionBudget: {minAvailable: 1}",
        "minAvailable",
    ),
    "a peer that is a name": ("networkPolicy: {from: [monitoring]}", "networkPolicy.from.0"),
    "an address without a length": (
        "networkPolicy: {from: [{ipBlock: {cidr: 10.0.0.1}}]}",
        "networkPolicy.from.0.ipBlock.cidr",
    ),
    "an interval without a unit": ("serviceMonitor: {interval: 15}", "serviceMonitor.interval"),
    "KEDA down to zero": ("keda: {minReplicaCount: 0}", "keda.minReplicaCount"),
    "KEDA up to five": ("keda: {maxReplicaCount: 5}", "keda.maxReplicaCount"),
    "KEDA without Prometheus": ("keda: {enabled: true}", "keda.prometheusAddress"),
    "a folder of the node": (
        "extraVolumes: [{name: host, hostPath: {path: /}}]",
        "hostPath",
    ),
    "a volume over the journal": (
        "extraVolumeMounts: [{name: x, mountPath: /var/lib/turnout}]",
        "extraVolumeMounts.0.mountPath",
    ),
    "root": ("securityContext: {runAsUser: 0}", "securityContext"),
    "a label that is a number": ("podLabels: {team: 7}", "podLabels.team"),
}


def with_image(text: str) -> dict[str, Any]:
    """Return values that are right, but for what a text changes."""
    changed: dict[str, Any] = yaml.safe_load(text)
    image = {} if changed.get("image") == {} else yaml.safe_load(IMAGE)
    return chart.merged(changed, chart.merged(image))


def complaints(values: dict[str, Any]) -> list[str]:
    """Return what the schema says, each with the place."""
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in VALIDATOR.iter_errors(values)
    ]


def test_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert complaints(with_image("{}")) == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_schema_refuses_a_mistake_and_says_where(mistake: str) -> None:
    text, place = MISTAKES[mistake]
    said = complaints(with_image(text))
    assert said
    assert all(place in each for each in said), said


@pytest.mark.parametrize("name", ["replicas", "keda.minReplicaCount", "keda.maxReplicaCount"])
def test_more_replicas_are_refused_with_the_reason(name: str) -> None:
    values: Any = 2
    for part in reversed(name.split(".")):
        values = {part: values}
    (said,) = complaints(with_image(json.dumps(values)))
    assert "one process owns the journal" in said


@pytest.mark.parametrize("values", chart.VALUES, ids=lambda path: path.stem)
def test_schema_takes_values_that_are_right(values: Path) -> None:
    assert complaints(chart.merged(yaml.safe_load(values.read_text()))) == []


def test_schema_takes_the_values_of_the_page() -> None:
    page = (CHECKOUT / "deploy" / "README.md").read_text()
    (block,) = [block.text for block in blocks(page) if block.language == "yaml"]
    assert complaints(chart.merged(yaml.safe_load(block))) == []


def test_there_are_enough_of_both() -> None:
    assert len(MISTAKES) >= 20
    assert len(chart.VALUES) >= 6


def test_schema_is_closed_everywhere() -> None:
    kubernetes_own = {"configMap", "secret", "persistentVolumeClaim", "projected", "csi"}
    kubernetes_own |= {"emptyDir", "nfs", "nodeAffinity", "podAffinity", "podAntiAffinity"}

    def open_objects(schema: Any, name: str) -> Iterator[str]:
        if isinstance(schema, dict):
            if schema.get("type") == "object" and "additionalProperties" not in schema:
                yield name
            for key, each in schema.items():
                yield from open_objects(each, key)
        elif isinstance(schema, list):
            for each in schema:
                yield from open_objects(each, name)

    assert set(open_objects(SCHEMA, "values")) == kubernetes_own | {"global"}


def test_values_and_schema_name_the_same() -> None:
    def names(values: Any, schema: Any) -> Iterator[tuple[set[str], set[str]]]:
        if values and "properties" in schema:
            yield set(values), set(schema["properties"]) - {"global"}
            for name, each in values.items():
                if isinstance(each, dict):
                    inner = schema["properties"][name]
                    yield from names(each, {} if "$ref" in inner else inner)

    for written, known in names(chart.defaults(), SCHEMA):
        assert written == known


# ---- what it makes


@pytest.mark.parametrize("values", chart.VALUES, ids=lambda path: path.stem)
def test_custom_objects_fit_their_schemas(values: Path) -> None:
    assert chart.is_current(values), "render it again: python -m tests.support.chart"
    for each in chart.objects(values):
        if (own := custom_schema(each)).exists():
            jsonschema.validate(each, json.loads(own.read_text()))


@pytest.mark.full
@pytest.mark.timeout(600)  # it installs the schemas
@pytest.mark.parametrize("values", chart.VALUES, ids=lambda path: path.stem)
def test_objects_are_what_kubernetes_takes(values: Path) -> None:
    built_in = [each for each in chart.objects(values) if not custom_schema(each).exists()]
    assert len(built_in) >= 2
    assert refusals(built_in) == [None] * len(built_in)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_wrong_object_is_noticed() -> None:
    (deployment,) = of_kind("Deployment", "minimal")
    deployment["spec"]["replica"] = 1
    (refusal,) = refusals([deployment])
    assert refusal is not None
    assert "replica" in refusal


def test_a_wrong_custom_object_is_noticed() -> None:
    (scaled,) = of_kind("ScaledObject", "keda")
    scaled["spec"]["minReplicas"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(scaled, json.loads(custom_schema(scaled).read_text()))


def custom_schema(described: dict[str, Any]) -> Path:
    """Return where the schema of a custom object's kind is; no file for what Kubernetes has."""
    return CUSTOM / f"{described['kind']}.schema.json"


def refusals(described: list[dict[str, Any]]) -> list[str | None]:
    """Return what the oldest or the newest Kubernetes refuses of each object, or None."""
    script = SCRIPTS / "kubernetes_objects.py"
    versions = [chart.oldest_kubernetes(), "latest"]
    command = [str(python_of("kubernetes-validate")), str(script), *versions]
    asked = json.dumps(described)
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    answers: list[str | None] = json.loads(done.stdout)
    return answers


def of_kind(kind: str, name: str) -> list[dict[str, Any]]:
    values = chart.CHART / "ci" / f"{name}-values.yaml"
    return [each for each in chart.objects(values) if each["kind"] == kind]


@pytest.mark.parametrize("name", [path.stem.removesuffix("-values") for path in chart.VALUES])
def test_pod_has_no_rights_and_one_of_it_runs(name: str) -> None:
    """As Kubernetes' Pod Security Standard "restricted" has it."""
    (deployment,) = of_kind("Deployment", name)
    spec = deployment["spec"]
    assert spec["strategy"] == {"type": "Recreate"}
    assert spec.get("replicas", 1) == 1
    assert ("replicas" in spec) == (name != "keda"), "KEDA sets them, and helm must not"
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["enableServiceLinks"] is False, "a service named turnout would set TURNOUT_PORT"
    written = {mount["mountPath"] for mount in container["volumeMounts"]} - {"/tmp"}
    assert "/var/lib/turnout" in written


def test_pod_fits_the_image() -> None:
    image = (CHECKOUT / "deploy" / "Containerfile").read_text()
    for name in ("minimal", "production"):
        (deployment,) = of_kind("Deployment", name)
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert f"--uid {pod['securityContext']['runAsUser']} " in image
        assert f"EXPOSE {container['ports'][0]['containerPort']}\n" in image
        assert f"VOLUME {container['volumeMounts'][0]['mountPath']}\n" in image
        grace = next(each for each in container["env"] if each["name"] == "TURNOUT_GRACE")
        assert pod["terminationGracePeriodSeconds"] > int(grace["value"].removesuffix("s"))
    (mounted,) = of_kind("Deployment", "flow-files")
    mounts = mounted["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    flows = next(mount for mount in mounts if mount["name"] == "flows")
    assert f'CMD ["serve", "{flows["mountPath"]}"' in image


def test_every_setting_in_the_chart_exists() -> None:
    known = {f"TURNOUT_{name.upper()}" for name in Settings.model_fields}
    files = [path for path in chart.CHART.rglob("*") if path.is_file()]
    for file in files:
        named = set(re.findall(r"\bTURNOUT_[A-Z_]+", file.read_text()))
        assert named <= known, f"{file.name}: {named - known}"


def test_keda_keeps_one_and_asks_for_a_metric_that_exists() -> None:
    (scaled,) = of_kind("ScaledObject", "keda")
    (deployment,) = of_kind("Deployment", "keda")
    (monitor,) = of_kind("ServiceMonitor", "keda")
    (service,) = of_kind("Service", "keda")
    assert scaled["spec"]["minReplicaCount"] >= 1
    assert scaled["spec"]["scaleTargetRef"] == {"name": deployment["metadata"]["name"]}
    (trigger,) = scaled["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    assert query == 'sum(turnout_wanted{namespace="flows",service="orders-turnout"})'
    assert "`turnout_wanted`" in (CHECKOUT / "deploy" / "README.md").read_text()
    assert service["metadata"]["name"] == "orders-turnout"
    labels = service["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()


# ---- helm itself


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_helm_makes_what_is_kept_and_refuses_the_mistakes(tmp_path: Path) -> None:
    oldest = chart.oldest_kubernetes()
    for values in chart.VALUES:
        lint = chart.run_helm(
            "lint", "--strict", f"--kube-version={oldest}", chart.CHART, f"--values={values}"
        )
        assert lint.returncode == 0, lint.stdout + lint.stderr
        assert chart.read(chart.render(values).stdout) == chart.objects(values)
    image = tmp_path / "image.yaml"
    image.write_text(IMAGE)
    for mistake, (text, place) in MISTAKES.items():
        wrong = tmp_path / "wrong.yaml"
        wrong.write_text(text)
        files = [wrong] if text == "image: {}" else [image, wrong]
        refused = chart.render(*files)
        assert refused.returncode != 0, mistake
        said = refused.stderr.replace("/", ".")
        assert place.rstrip(".").replace("/", ".") in said, f"{mistake}: {refused.stderr}"
