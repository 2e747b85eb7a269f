"""An OpenTelemetry collector for tests: takes OTLP over HTTP, and keeps the spans it decodes."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from .stub_http import Asked, Reply, Stub, stubbed

TRACES = "/v1/traces"


@dataclass(frozen=True)
class Received:
    """A span as it arrived; `parent` is empty in a root, and instants are nanoseconds."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    attributes: Mapping[str, Any]
    links: Sequence[tuple[str, str]]
    error: str
    events: Sequence[Mapping[str, Any]]
    resource: Mapping[str, Any]
    scope: str


class Collector:
    """The spans that were taken, each as often as it was; `env` is for the program."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.stub.replies[TRACES] = [Reply()]
        self.stub.when_asked = self._take
        self._taken: list[Received] = []
        self._taking = threading.Lock()
        self._times_shut = 0
        self.env = {"OTEL_EXPORTER_OTLP_ENDPOINT": stub.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}

    @property
    def spans(self) -> list[Received]:
        """All spans so far, in the order of their start."""
        return sorted(self._taken, key=lambda span: span.start)

    def named(self, name: str) -> list[Received]:
        """The spans of a name."""
        return [span for span in self.spans if span.name == name]

    def _take(self, asked: Asked) -> None:
        times_shut = self._times_shut
        with self._taking:
            takes = self.stub.replies[TRACES][0].status == 200
            if asked.path == TRACES and takes and self._times_shut == times_shut:
                self._taken += _decoded(asked.body)

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Take nothing, and answer nobody: what is sent meanwhile has not arrived."""
        with self._taking:
            self._times_shut += 1
            try:
                yield
            finally:
                self._times_shut += 1

    def runs(self) -> set[str]:
        """The runs whose span has arrived."""
        spans = [span for span in self.spans if span.name.startswith("run ")]
        return {str(span.attributes["turnout.run.id"]) for span in spans}

    def answers(self, *replies: Reply) -> None:
        """Answer like this from now on."""
        self.stub.replies[TRACES] = list(replies)

    def problems(self) -> list[str]:
        """What is wrong with what arrived: ids that came twice, and spans without their parent.

        A parent that came from outside, as the tests name it, is no orphan's.
        """
        spans = self.spans
        counts = Counter((span.trace, span.id) for span in spans)
        found = [f"{count} spans have the id {each}" for each, count in counts.items() if count > 1]
        found += [
            f"{span.name!r} is an orphan"
            for span in spans
            if span.parent and (span.trace, span.parent) not in counts and span.parent != CALLER
        ]
        return found


CALLER = "b7ad6b7169203331"
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector."""
    with stubbed() as stub:
        yield Collector(stub)


def noted(data: Path) -> int:
    """Return of how many runs a journal knows that their span was sent."""
    address = f"file:{data}/journal/journal.db?mode=ro"
    with closing(sqlite3.connect(address, uri=True)) as journal:
        asked = "SELECT count(*) FROM traced_runs WHERE sent = 1"
        return int(journal.execute(asked).fetchone()[0])


def _decoded(body: bytes) -> Iterator[Received]:
    request = ExportTraceServiceRequest.FromString(body)
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Received(
                    name=span.name,
                    kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    attributes=_plain(span.attributes),
                    links=[(each.trace_id.hex(), each.span_id.hex()) for each in span.links],
                    error=span.status.message if span.status.code == 2 else "",
                    events=[{"name": each.name} | _plain(each.attributes) for each in span.events],
                    resource=_plain(resource.resource.attributes),
                    scope=scope.scope.name,
                )


def _plain(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
