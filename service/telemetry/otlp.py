"""Spans leave by OTLP over HTTP, as the standard `OTEL_…` variables say.

The packages of the extra `otel` are imported here only, and only where tracing is on. Not here:
what is traced (`traces`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from turnout.service.domain.errors import SetupError
from turnout.service.domain.trace_context import Sampler, SpanContext

from . import trace_conventions as names
from .logs import get_logger
from .traces import Kind, Span

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

log = get_logger("turnout.traces")

_MOST_TEXT = 8192
"""The most characters of a traceback."""
_TOLD_AGAIN_SECONDS = 60.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_SAMPLERS: Mapping[str, tuple[float | None, bool]] = {
    "always_on": (1.0, False),
    "always_off": (0.0, False),
    "traceidratio": (None, False),
    "parentbased_always_on": (1.0, True),
    "parentbased_always_off": (0.0, True),
    "parentbased_traceidratio": (None, True),
}


def sampler_of(environ: Mapping[str, str]) -> Sampler | None:
    """Return which traces are recorded; None where tracing is off, as it is by default.

    It is on where `OTEL_TRACES_EXPORTER=otlp` or an OTLP endpoint is set. Raises `SetupError` for
    what turnout cannot do, with the variable to change.
    """
    given = {name: text.strip() for name, text in environ.items() if name.startswith("OTEL_")}
    exporter = given.get("OTEL_TRACES_EXPORTER", "")
    if given.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none":
        return None
    if not exporter and not any(given.get(name) for name in _ENDPOINTS):
        return None
    if exporter not in ("", "otlp"):
        raise SetupError(
            f"OTEL_TRACES_EXPORTER={exporter}: turnout sends traces by OTLP only; write otlp, or "
            "none for no traces"
        )
    protocol = given.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or given.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL"
    )
    if protocol not in (None, "", "http/protobuf"):
        raise SetupError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: turnout sends http/protobuf only; set that, "
            "and the port of the collector for it (4318), or OTEL_TRACES_EXPORTER=none"
        )
    return _sampler(given)


def _sampler(given: Mapping[str, str]) -> Sampler:
    name = given.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
    if name not in _SAMPLERS:
        raise SetupError(
            f"OTEL_TRACES_SAMPLER={name} is unknown; turnout has {', '.join(_SAMPLERS)}"
        )
    share, follows_parent = _SAMPLERS[name]
    if share is None:
        written = given.get("OTEL_TRACES_SAMPLER_ARG") or "1.0"
        try:
            share = float(written)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise SetupError(
                f"OTEL_TRACES_SAMPLER_ARG={written}: write a share from 0 to 1, such as 0.01"
            )
    return Sampler(share, follows_parent)


class Exporter:
    """Sends spans to the collector of the `OTEL_EXPORTER_OTLP_…` variables.

    The `OTEL_BSP_…` variables say which spans go together (`app.spans`). Raises `SetupError` when
    the extra is not installed, or a variable cannot be used.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError:
            raise SetupError(
                "OTEL_… asks for traces, and the packages for them are not installed: "
                "pip install 'turnout[otel]', or set OTEL_TRACES_EXPORTER=none"
            ) from None
        _tell_once_a_minute()
        self.delay_seconds = _number(environ, "OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000
        """How long a span waits for others, so that many go in one request."""
        self.most_waiting = _number(environ, "OTEL_BSP_MAX_QUEUE_SIZE", 2048)
        """How many spans of attempts and steps may wait."""
        together = _number(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)
        self.most_together = min(together, self.most_waiting)
        """How many spans go in one request."""
        try:
            self._exporter: Any = OTLPSpanExporter(session=_session())
        except (ValueError, OSError) as error:
            raise SetupError(f"the OTEL_… variables cannot be used: {error}") from None
        self._resource = Resource.create(_SERVICE).merge(Resource.create({}))
        self._scope = InstrumentationScope(names.SCOPE)
        self._failing = self._closed = False

    def deliver(self, spans: Sequence[Span]) -> bool:
        """Send spans in one request, and return whether they were taken; blocks.

        It takes as long as `OTEL_EXPORTER_OTLP_TIMEOUT` at most, 10 seconds by default.
        """
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            result = self._exporter.export([self._made(each) for each in spans])
        except Exception as error:  # noqa: BLE001  of the packages: no run may suffer by it
            log.warning("traces.failed", error=f"{type(error).__name__}: {error}")
            result = SpanExportResult.FAILURE
        is_taken: bool = result is SpanExportResult.SUCCESS
        if is_taken == self._failing:
            self._failing = not is_taken
            if is_taken:
                log.info("traces.sent_again")
            else:
                log.warning(
                    "traces.not_sent",
                    hint="the spans of runs are sent later, those of steps are lost",
                )
        return is_taken

    def close(self) -> None:
        """Send nothing from now on, nor try again what is under way."""
        if not self._closed:
            self._closed = True
            self._exporter.shutdown()

    def _made(self, span: Span) -> ReadableSpan:
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.trace import Link, Status, StatusCode

        attributes = {
            name: _encodable(value) if isinstance(value, str) else value
            for name, value in span.attributes.items()
        }
        events, status = [], Status(StatusCode.UNSET)
        if span.error is not None:
            attributes[names.ERROR_TYPE] = span.error.type
            described = {
                names.EXCEPTION_TYPE: span.error.type,
                names.EXCEPTION_MESSAGE: span.error.message,
                names.EXCEPTION_STACKTRACE: (span.error.traceback or "")[-_MOST_TEXT:],
            }
            told = {name: _encodable(text) for name, text in described.items() if text}
            events = [Event(names.EXCEPTION, told, timestamp=_nanoseconds(span.ended_at))]
            if span.has_failed:
                status = Status(StatusCode.ERROR, _encodable(span.error.message))
        return ReadableSpan(
            name=_encodable(span.name),
            context=_context(span.context),
            parent=None if span.parent is None else _context(span.parent, is_remote=True),
            resource=self._resource,
            attributes=attributes,
            events=events,
            links=[Link(_context(each, is_remote=True)) for each in span.links],
            kind=_kind(span.kind),
            status=status,
            start_time=_nanoseconds(span.started_at),
            end_time=_nanoseconds(span.ended_at),
            instrumentation_scope=self._scope,
        )


_SERVICE = {"service.name": "turnout"}
"""What the resource says where neither `OTEL_SERVICE_NAME` nor `…_RESOURCE_ATTRIBUTES` does."""


def _session() -> Any:
    """Return a session that looks for proxies once: doing so was a quarter of each request."""
    from requests import Session

    class AsAtTheStart(Session):
        _settings: Mapping[str, Any] | None = None

        def merge_environment_settings(self, *asked: Any) -> Any:
            if self._settings is None:
                self._settings = super().merge_environment_settings(*asked)
            return self._settings

    return AsAtTheStart()


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    """Return a count or milliseconds, at least 1. Raises `SetupError`."""
    written = environ.get(name, "").strip() or str(default)
    try:
        number = int(written)
    except ValueError:
        number = 0
    if number < 1:
        raise SetupError(f"{name}={written}: write a whole number from 1 on, such as {default}")
    return number


def _context(given: SpanContext, *, is_remote: bool = False) -> Any:
    from opentelemetry.trace import SpanContext as Their
    from opentelemetry.trace import TraceFlags

    flags = TraceFlags(TraceFlags.SAMPLED if given.sampled else TraceFlags.DEFAULT)
    return Their(int(given.trace_id, 16), int(given.span_id, 16), is_remote, flags)


def _encodable(text: str) -> str:
    """Return text that UTF-8 can encode: else the whole request would be lost."""
    return text.encode("utf-8", "backslashreplace").decode()


def _kind(kind: Kind) -> Any:
    from opentelemetry.trace import SpanKind

    return SpanKind[kind.upper()]


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp()) * 1_000_000_000 + at.microsecond * 1000


class _OnceAMinute(logging.Filter):
    """Lets a message of the packages pass once a minute: they repeat it with each request."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._told.get(str(record.msg), float("-inf")) + _TOLD_AGAIN_SECONDS:
            return False
        self._told[str(record.msg)] = now
        return True


def _tell_once_a_minute() -> None:
    logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    if not any(isinstance(each, _OnceAMinute) for each in logger.filters):
        logger.addFilter(_OnceAMinute())
