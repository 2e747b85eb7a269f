"""Settings: `TURNOUT_*` in the environment and `turnout.toml`, typed; unknown keys are refused.

The environment wins over the file; a command-line option wins over both.
"""

from __future__ import annotations

import os
import tomllib
import warnings
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from turnout.service.domain.errors import SetupError
from turnout.service.domain.units import (
    format_duration,
    parse_duration,
    parse_retention,
    parse_size,
)


def _readable(parse: Any) -> BeforeValidator:
    def read(value: Any) -> Any:
        try:
            return parse(value)
        except SetupError as error:
            raise ValueError(error.message) from None

    return BeforeValidator(read)


Duration = Annotated[timedelta, _readable(parse_duration)]
Retention = Annotated[timedelta, _readable(parse_retention)]
Size = Annotated[int, _readable(parse_size)]


def _parse_addresses(value: Any) -> tuple[str, ...]:
    listed = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(str(ip_network(one.strip(), strict=False)) for one in listed)
    except (ValueError, AttributeError, TypeError):
        raise SetupError(
            f'{value!r} is not a list of addresses or networks; write it like "10.0.0.0/8, ::1"'
        ) from None


Addresses = Annotated[tuple[str, ...], NoDecode, _readable(_parse_addresses)]


class Settings(BaseSettings):
    """All settings; the defaults suit one process on one machine."""

    model_config = SettingsConfigDict(
        env_prefix="TURNOUT_", extra="forbid", frozen=True, env_ignore_empty=True
    )

    data: Path = Field(Path("turnout-data"), description="Folder of the journal; created 0700.")
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on; loopback unless chosen."
    )
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    root_path: str = Field("", description="Path prefix a reverse proxy strips.")
    public_url: str | None = Field(
        None, description="Address at which people reach the service, for links in messages."
    )
    trusted_proxies: Addresses = Field(
        (),
        description="Trusted reverse proxies: unlimited connections, X-Forwarded-For is used.",
    )
    tls_certificate: Path | None = Field(None, description="PEM certificate chain to serve TLS.")
    tls_key: Path | None = Field(None, description="PEM private key to serve TLS.")
    api_token: str | None = Field(None, repr=False, description="Bearer token of /api.")
    secrets_folder: Path | None = Field(None, description="Folder of secret files, mode 0600.")

    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto` is text on a terminal and JSON elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged."
    )

    concurrency: int = Field(
        64, ge=1, le=10_000, description="Maximum concurrent runs, of all flows together."
    )
    threads: int = Field(32, ge=1, le=1000, description="Threads for `def` flows and tasks.")
    processes: int = Field(0, ge=0, description="Worker processes; 0 is one per core.")
    process_memory: Size = Field(0, description="Memory limit of one worker process; 0 is none.")
    process_calls: int = Field(
        100, ge=1, description="Calls after which a worker process is replaced."
    )
    grace: Duration = Field(
        timedelta(seconds=30), description="How long runs may take to end on stop."
    )
    idle_exit: Duration | None = Field(
        None,
        ge=timedelta(seconds=1),
        description="Exit when nothing came and nothing was due for so long; a socket unit starts "
        "the service again.",
    )
    blocked_loop: Duration = Field(
        timedelta(seconds=30),
        ge=timedelta(milliseconds=100),
        description="A loop blocked this long ends the process; a second is logged.",
    )

    max_body_bytes: Size = Field(2**20, ge=1, description="Largest webhook body.")
    max_unfinished_runs: int = Field(
        1_000_000, ge=1, description="Unfinished runs above which intake stops."
    )
    max_result_bytes: Size = Field(
        2**20, description="Largest result of a run; a larger one of a step is stored in a file."
    )
    max_blob_bytes: Size = Field(64 * 2**20, description="Largest result of a step.")
    max_artefact_bytes: Size = Field(2 * 2**30, ge=1, description="Largest artefact of a run.")
    max_waiters: int = Field(1000, ge=0, description="Requests waiting with ?wait= at once.")
    min_free_bytes: Size = Field(64 * 2**20, description="Free disk below which intake stops.")

    dedupe: Retention = Field(
        timedelta(days=7), description="How long an event id is remembered, or `forever`."
    )
    keep_finished: Retention = Field(
        timedelta(days=7),
        description="How long finished runs and their events are kept, or `forever`.",
    )
    keep_failed: Retention = Field(
        timedelta(days=30), description="How long failed ones are kept, or `forever`."
    )
    keep_unmatched: Retention = Field(
        timedelta(days=1),
        description="How long events that started nothing are kept, or `forever`.",
    )
    keep_state: Retention = Field(
        timedelta(days=90),
        description="How long the state of an ordering key is kept unused, or `forever`.",
    )
    max_journal_bytes: Size = Field(
        10 * 2**30,
        description="Journal size above which finished runs are deleted early.",
    )

    kafka_bootstrap_servers: str = Field(
        "127.0.0.1:9092", description="Kafka brokers to ask first: HOST:PORT, comma-separated."
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Kafka connection: with or without TLS, with or without SASL."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="SASL mechanism."
    )
    kafka_sasl_username: str | None = Field(None, description="SASL user name.")
    kafka_sasl_password: str | None = Field(None, repr=False, description="SASL password.")
    kafka_tls_ca: Path | None = Field(
        None, description="PEM file of the trusted authorities; default: the system's."
    )
    kafka_tls_certificate: Path | None = Field(
        None, description="PEM client certificate chain for Kafka."
    )
    kafka_tls_key: Path | None = Field(None, description="PEM private key of that certificate.")

    synchronous: Literal["full", "normal"] = Field(
        "full", description="`normal` may lose the last commits on power loss; for tests only."
    )

    @model_validator(mode="after")
    def _kafka_is_sound(self) -> Settings:
        problem = _kafka_problem(self)
        if problem is not None:
            raise ValueError(problem)
        return self

    @property
    def address(self) -> str:
        """The address of the service: `public_url`, else the one it listens on."""
        scheme = "http" if self.tls_certificate is None else "https"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.public_url or f"{scheme}://{host}:{self.port}{self.root_path.rstrip('/')}"

    def connection(self, kind: str) -> dict[str, Any]:
        """Return the options that triggers of this kind need: those of the client, for `kafka`.

        For `files` it is the service's data folder, which they ignore. Reads the TLS files; raises
        `SetupError` naming one that cannot be used.
        """
        if kind != "kafka":
            return {"data": str(self.data)} if kind == "files" else {}
        options: dict[str, Any] = {
            "bootstrap_servers": [
                each.strip() for each in self.kafka_bootstrap_servers.split(",") if each.strip()
            ],
            "security_protocol": self.kafka_security_protocol,
        }
        if self.kafka_security_protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.kafka_sasl_mechanism,
                "sasl_plain_username": self.kafka_sasl_username,
                "sasl_plain_password": self.kafka_sasl_password,
            }
        if self.kafka_security_protocol.endswith("SSL"):
            options["ssl_context"] = _tls(self)
        return options

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let keyword arguments override the environment; `load` adds the file."""
        return init_settings, env_settings


def load(config: Path | None = None, **chosen: Any) -> Settings:
    """Read `turnout.toml` (or `config`), the environment and `chosen`; raises `SetupError`.

    An error names the file or variable. Folders become absolute, so that a flow may change the
    working directory.
    """
    file = config or Path("turnout.toml")
    values: dict[str, Any] = {}
    if config is not None or file.is_file():
        try:
            values = tomllib.loads(file.read_text("utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise SetupError(
                f"cannot read the settings: {error}; a line is written port = 8080, or "
                'host = "127.0.0.1" with quotes',
                file=str(file),
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(f"cannot read the settings: {error}", file=str(file)) from None
    _refuse_unknown(values, file)
    renamed = _renamed(values, file)
    in_environment = {name for name in Settings.model_fields if _variable(name) in os.environ}
    merged = {key: value for key, value in values.items() if key not in in_environment}
    merged |= {key: value for key, value in renamed.items() if key not in in_environment}
    merged |= {key: value for key, value in chosen.items() if value is not None}
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:
            raise SetupError(first["msg"].removeprefix("Value error, ")) from None
        name = str(first["loc"][0])
        if chosen.get(name) is not None:
            location, given = f"--{name.replace('_', '-')}", chosen[name]
        elif name in values and name not in in_environment:
            location, given = f"{file}: {name}", values[name]
        else:
            location, given = _variable(name), os.environ.get(_variable(name))
        raise SetupError(f"{location}{_words(name, first, given)}") from None
    folders = {"data": settings.data, "secrets_folder": settings.secrets_folder}
    return settings.model_copy(
        update={name: folder.absolute() for name, folder in folders.items() if folder is not None}
    )


def _words(name: str, error: Any, given: object) -> str:
    """Return what is wrong with a setting, in words that follow its name."""
    message: str = error["msg"]
    if message.startswith("Value error, "):
        return f": {message.removeprefix('Value error, ')}"
    for rule in Settings.model_fields[name].metadata:
        least = getattr(rule, "ge", None)
        if isinstance(least, timedelta):  # which pydantic writes in microseconds
            message = f"Input should be greater than or equal to {format_duration(least)}"
    shown = f", not {given!r:.80}" if Settings.model_fields[name].repr else ""
    should_be = message.removeprefix("Input should be ")
    return f": {message}{shown}" if should_be == message else f" should be {should_be}{shown}"


_RENAMED = {"max_spilled_bytes": "max_blob_bytes"}
"""Settings by their old names, which are taken until the next minor version."""


def _renamed(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """Take settings with an old name out of `values` and the environment, with a warning."""
    found: dict[str, Any] = {}
    for old, name in _RENAMED.items():
        for location, given in ((str(file), values.pop(old, None)), (_variable(old), _asked(old))):
            if given is not None:
                warnings.warn(f"{location}: {old} is now {name}", FutureWarning, stacklevel=3)
                found[name] = given
    return found


def _asked(name: str) -> str | None:
    return os.environ.get(_variable(name)) or None


def _kafka_problem(settings: Settings) -> str | None:
    """Return what is wrong among the Kafka settings, naming the variables to change."""
    servers = [each.strip() for each in settings.kafka_bootstrap_servers.split(",")]
    for server in servers:
        host, _, port = server.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            return f"TURNOUT_KAFKA_BOOTSTRAP_SERVERS: {server!r} is not HOST:PORT"
    protocol = settings.kafka_security_protocol
    login = (settings.kafka_sasl_username, settings.kafka_sasl_password)
    if protocol.startswith("SASL") and not all(login):
        return (
            f"TURNOUT_KAFKA_SECURITY_PROTOCOL={protocol} needs TURNOUT_KAFKA_SASL_USERNAME and "
            "TURNOUT_KAFKA_SASL_PASSWORD"
        )
    if not protocol.startswith("SASL") and any(login):
        return (
            "TURNOUT_KAFKA_SASL_USERNAME and _PASSWORD are set and would not be used: "
            "TURNOUT_KAFKA_SECURITY_PROTOCOL must be SASL_SSL or SASL_PLAINTEXT"
        )
    return _kafka_files_problem(settings)


def _kafka_files_problem(settings: Settings) -> str | None:
    protocol = settings.kafka_security_protocol
    files = (settings.kafka_tls_ca, settings.kafka_tls_certificate, settings.kafka_tls_key)
    if any(files) and not protocol.endswith("SSL"):
        return (
            "TURNOUT_KAFKA_TLS_… is set and would not be used: TURNOUT_KAFKA_SECURITY_PROTOCOL "
            "must be SSL or SASL_SSL"
        )
    if (files[1] is None) != (files[2] is None):
        return "TURNOUT_KAFKA_TLS_CERTIFICATE and TURNOUT_KAFKA_TLS_KEY go together"
    for file in files:
        if file is not None and not os.access(file, os.R_OK):
            return f"TURNOUT_KAFKA_TLS_…: cannot read {file}"
    if any(files):
        try:
            _tls(settings)
        except SetupError as error:
            return error.message
    return None


def _tls(settings: Settings) -> Any:
    import ssl  # costs start-up time, and few need it

    try:
        context = ssl.create_default_context(cafile=settings.kafka_tls_ca)
        if settings.kafka_tls_certificate is not None:
            context.load_cert_chain(settings.kafka_tls_certificate, settings.kafka_tls_key)
    except (OSError, ssl.SSLError) as error:
        raise SetupError(f"TURNOUT_KAFKA_TLS_…: the files cannot be used: {error}") from None
    return context


def _variable(name: str) -> str:
    return f"TURNOUT_{name.upper()}"


_NOT_SETTINGS = frozenset({"TURNOUT_CONFIG", "TURNOUT_KAFKA_CACHE", "TURNOUT_STEP_KEY"})


def _refuse_unknown(values: dict[str, Any], file: Path) -> None:
    from difflib import get_close_matches

    known = [*Settings.model_fields, *_RENAMED]
    unknown = [(key, str(file), key) for key in values if key not in known]
    unknown += [
        (variable.removeprefix("TURNOUT_").lower(), "the environment", variable)
        for variable in os.environ
        if variable.startswith("TURNOUT_")
        and not variable.startswith(("TURNOUT_SECRET_", "TURNOUT_TEST_"))
        and variable not in _NOT_SETTINGS
        and variable.removeprefix("TURNOUT_").lower() not in known
    ]
    for key, location, written in unknown:
        close = get_close_matches(key, known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise SetupError(f"{location}: {written!r} is not a setting{hint}")
