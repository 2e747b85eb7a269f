"""The standard variables turn traces on, and one that cannot be used is named with its fix."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest

from turnout.service.domain.errors import SetupError
from turnout.service.domain.trace_context import Sampler
from turnout.service.telemetry.otlp import Exporter, sampler_of

ON = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("environ", "sampler"),
    [
        ({}, None),
        ({"OTEL_SERVICE_NAME": "billing"}, None),
        (ON, Sampler(1.0, True)),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, Sampler(1.0, True)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, Sampler(1.0, True)),
        (ON | {"OTEL_TRACES_EXPORTER": "none"}, None),
        (ON | {"OTEL_SDK_DISABLED": "True"}, None),
        (ON | {"OTEL_TRACES_SAMPLER": "always_off"}, Sampler(0.0, False)),
        (
            ON | {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
            Sampler(0.01, False),
        ),
        (ON | {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}, Sampler(1.0, True)),
        (ON | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, Sampler(1.0, True)),
    ],
)
def test_variables_turn_traces_on(environ: Mapping[str, str], sampler: Sampler | None) -> None:
    assert sampler_of(environ) == sampler


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER=zipkin: .* none"),
        (ON | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "PROTOCOL=grpc: .*4318"),
        (ON | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "PROTOCOL=http/json"),
        (ON | {"OTEL_TRACES_SAMPLER": "xray"}, "OTEL_TRACES_SAMPLER=xray .*traceidratio"),
        *(
            (
                ON | {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": share},
                f"OTEL_TRACES_SAMPLER_ARG={share}: write a share",
            )
            for share in ("1.1", "-1", "nan", "few")
        ),
    ],
)
def test_what_cannot_be_used_is_named(environ: Mapping[str, str], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        sampler_of(environ)


@pytest.mark.slow
@pytest.mark.parametrize("written", ["soon", "0", "-1", "1.5"])
@pytest.mark.parametrize(
    "name",
    ["OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"],
)
def test_a_number_that_cannot_be_used_is_named(name: str, written: str) -> None:
    with pytest.raises(SetupError, match=f"{name}={written}: write a whole number"):
        Exporter({name: written})


@pytest.mark.slow
def test_a_request_never_waits_for_more_spans_than_may_wait() -> None:
    assert Exporter({"OTEL_BSP_MAX_QUEUE_SIZE": "10"}).most_together == 10


@pytest.mark.slow
def test_the_packages_are_asked_for_only_where_traces_are_on() -> None:
    code = """
import sys
sys.modules["opentelemetry.sdk"] = None
from turnout.service.app import serve
assert not [name for name in sys.modules if name.startswith("opentelemetry.exporter")]
from turnout.service.telemetry.otlp import Exporter
try:
    Exporter()
except Exception as error:
    print(error)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install 'turnout[otel]'" in found.stdout
