"""Mistakes on the command line, in settings and in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_DURATIONS = '"500ms", "30s", "5m", "1h30m", "1d"'

FLOWS = """
from turnout import *

@flow(on=webhook("/a"))
async def report(count: int): ...
"""

SIGNED = """
from turnout import *

@flow(on=webhook("/a", verify="github", secret=secret("ORDERS_HMAC")))
async def report(event: Event): ...
"""


@dataclass(frozen=True)
class AtTheCommand:
    """A command that cannot work, and the last line that it prints.

    `{folder}` is the folder with the files; `place` and `fix` are parts of what it says.
    """

    title: str
    command: str
    says: str
    place: str
    fix: str
    code: int
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    in_own_process: bool = False


AT_THE_COMMAND = (
    AtTheCommand(
        "a port that is too high",
        "serve flows.py --port 99999",
        "error: --port should be less than or equal to 65535, not 99999",
        "--port",
        "less than or equal to 65535",
        78,
    ),
    AtTheCommand(
        "a data folder that is a file, for a command that asks the service",
        "triggers --data flows.py",
        "error: this needs a running service, and none uses {folder}/flows.py; start one with: "
        "turnout serve FLOWS… (or name its folder with --data)",
        "{folder}/flows.py",
        "turnout serve FLOWS…",
        69,
    ),
    AtTheCommand(
        "a port that is too high, in the environment",
        "serve flows.py",
        "error: TURNOUT_PORT should be less than or equal to 65535, not '99999'",
        "TURNOUT_PORT",
        "less than or equal to 65535",
        78,
        {"TURNOUT_PORT": "99999"},
    ),
    AtTheCommand(
        "a level that does not exist",
        "check flows.py",
        "error: TURNOUT_LOG_LEVEL should be 'debug', 'info', 'warning' or 'error', not 'verbose'",
        "TURNOUT_LOG_LEVEL",
        "'debug', 'info', 'warning' or 'error'",
        78,
        {"TURNOUT_LOG_LEVEL": "verbose"},
    ),
    AtTheCommand(
        "a misspelt variable",
        "check flows.py",
        "error: the environment: 'TURNOUT_PROT' is not a setting; did you mean 'port'?",
        "TURNOUT_PROT",
        "did you mean 'port'?",
        78,
        {"TURNOUT_PROT": "8081"},
    ),
    AtTheCommand(
        "a misspelt setting in the file",
        "check flows.py --config turnout.toml",
        "error: turnout.toml: 'prot' is not a setting; did you mean 'port'?",
        "turnout.toml",
        "did you mean 'port'?",
        78,
        files={"turnout.toml": "prot = 8081"},
    ),
    AtTheCommand(
        "a duration without a unit in the file",
        "check flows.py --config turnout.toml",
        'error: turnout.toml: grace: cannot read the duration 30; write it like "30s" for '
        f"seconds, or {_DURATIONS}",
        "turnout.toml: grace",
        '"30s" for seconds',
        78,
        files={"turnout.toml": "grace = 30"},
    ),
    AtTheCommand(
        "a file of settings that is no TOML",
        "check flows.py --config turnout.toml",
        "error: turnout.toml:1: cannot read the settings: Invalid value (at line 1, column 8); a "
        'line is written port = 8080, or host = "127.0.0.1" with quotes',
        "turnout.toml:1",
        "a line is written port = 8080",
        78,
        files={"turnout.toml": "port = x"},
    ),
    AtTheCommand(
        "a size in words",
        "check flows.py",
        "error: TURNOUT_MAX_BODY_BYTES: cannot read the size 'lots'; write it like \"64KiB\", "
        '"1MiB", "10GiB"',
        "TURNOUT_MAX_BODY_BYTES",
        'write it like "64KiB"',
        78,
        {"TURNOUT_MAX_BODY_BYTES": "lots"},
    ),
    AtTheCommand(
        "a broker without its port",
        "check flows.py",
        "error: TURNOUT_KAFKA_BOOTSTRAP_SERVERS: 'broker' is not HOST:PORT",
        "TURNOUT_KAFKA_BOOTSTRAP_SERVERS",
        "HOST:PORT",
        78,
        {"TURNOUT_KAFKA_BOOTSTRAP_SERVERS": "broker"},
    ),
    AtTheCommand(
        "a password that nobody uses",
        "check flows.py",
        "error: TURNOUT_KAFKA_SASL_USERNAME and _PASSWORD are set and would not be used: "
        "TURNOUT_KAFKA_SECURITY_PROTOCOL must be SASL_SSL or SASL_PLAINTEXT",
        "TURNOUT_KAFKA_SASL_USERNAME",
        "must be SASL_SSL or SASL_PLAINTEXT",
        78,
        {"TURNOUT_KAFKA_SASL_USERNAME": "u", "TURNOUT_KAFKA_SASL_PASSWORD": "p"},
    ),
    AtTheCommand(
        "a data folder that cannot be made",
        "serve flows.py --data /proc/x --port 0",
        "error: cannot use the data folder /proc/x: No such file or directory; its owner must be "
        "the user turnout runs as, or name another folder with --data or TURNOUT_DATA",
        "/proc/x",
        "name another folder with --data",
        78,
    ),
    AtTheCommand(
        "a data folder that is a file",
        "serve flows.py --data flows.py",
        "error: cannot use the data folder {folder}/flows.py: File exists; its owner must be the "
        "user turnout runs as, or name another folder with --data or TURNOUT_DATA",
        "{folder}/flows.py",
        "name another folder with --data",
        78,
    ),
    AtTheCommand(
        "a flow file that is not there",
        "serve nofile.py --port 0",
        "error: {folder}/nofile.py:1: no such file or folder; name a flow file or a folder of them",
        "nofile.py",
        "name a flow file",
        78,
    ),
    AtTheCommand(
        "a secret of three characters",
        "serve flows.py --data data --port 0",
        "error: webhook:/a: secret 'ORDERS_HMAC' is shorter than 5 characters; nothing could keep "
        "so short a value out of results and logs; give it a longer one, here and where it is "
        "checked",
        "secret 'ORDERS_HMAC'",
        "give it a longer one",
        78,
        {"ORDERS_HMAC": "abc"},
        {"flows.py": SIGNED},
        in_own_process=True,
    ),
    AtTheCommand(
        "an open webhook on every address",
        "serve flows.py --data data --host 0.0.0.0 --port 0",
        "error: webhook:/a takes requests from anyone, and the service listens on '0.0.0.0'; "
        'verify them: verify="github", secret=secret("NAME"), or write verify="none"',
        "webhook:/a",
        'verify="github"',
        78,
    ),
    AtTheCommand(
        "a run that does not exist",
        "show abc --data data",
        "error: no run 'abc'; `turnout runs` lists them; this is the journal in {folder}/data",
        "journal in {folder}/data",
        "`turnout runs` lists them",
        1,
        files={"journal": ""},
    ),
    AtTheCommand(
        "an event that does not exist",
        "replay abc --data data",
        "error: no event and no run 'abc'; `turnout events` and `turnout runs` list them; this is "
        "the journal in {folder}/data",
        "journal in {folder}/data",
        "`turnout events` and `turnout runs` list them",
        1,
        files={"journal": ""},
    ),
    AtTheCommand(
        "a folder without a journal",
        "runs --data nope",
        "error: no data folder {folder}/nope; name it with --data DIR or TURNOUT_DATA",
        "{folder}/nope",
        "--data DIR or TURNOUT_DATA",
        78,
    ),
    AtTheCommand(
        "a journal that is damaged in the middle",
        "runs --data data --limit 1000",
        "error: the journal is damaged: {folder}/data/journal/journal.db (database disk image is "
        "malformed); restore the data folder from a backup; `turnout doctor` says what is damaged",
        "{folder}/data/journal/journal.db",
        "restore the data folder from a backup",
        74,
        files={"journal": "damaged"},
    ),
    AtTheCommand(
        "a command that does not exist",
        "serves flows.py",
        "Error: No such command 'serves'. (Did you mean one of: 'events', 'serve'?)",
        "'serves'",
        "Did you mean",
        2,
    ),
    AtTheCommand(
        "an option that does not exist",
        "check flows.py --jsn",
        "Error: No such option '--jsn'. (Did you mean one of: '--env', '--json'?)",
        "'--jsn'",
        "Did you mean",
        2,
    ),
    AtTheCommand(
        "a flow that the file does not have",
        "run flows.py:nope",
        "error: flows.py has no flow 'nope'; it has: report",
        "flows.py",
        "it has: report",
        1,
    ),
    AtTheCommand(
        "a file without its flow",
        "run flows.py",
        "Error: 'flows.py' is not FILE.py:FLOW, such as flows.py:bill",
        "'flows.py'",
        "such as flows.py:bill",
        2,
    ),
    AtTheCommand(
        "input that is no JSON",
        "run flows.py:report --input {bad",
        "Error: --input: the body is not JSON: unexpected character, expected a string key: line 1 "
        "column 2 (char 1)",
        "--input",
        "expected a string key",
        2,
    ),
    AtTheCommand(
        "input that does not fit",
        "run flows.py:report --input '\"many\"'",
        "report failed: invalid_data: parameter 'count': Input should be a valid integer, "
        "unable to parse string as an integer",
        "report",
        "should be a valid integer",
        1,
        in_own_process=True,
    ),
    AtTheCommand(
        "a state that does not exist",
        "runs --state faild --data data",
        "Error: state is one of scheduled, queued, running, retrying, waiting, succeeded, failed, "
        "cancelled, skipped, not 'faild'",
        "state",
        "is one of scheduled",
        2,
        files={"journal": ""},
    ),
    AtTheCommand(
        "a time in words",
        "runs --since yesterday --data data",
        'Error: since is an instant such as 2026-01-31T09:00:00Z or an age such as "2h", not '
        "'yesterday'",
        "since",
        'an age such as "2h"',
        2,
        files={"journal": ""},
    ),
    AtTheCommand(
        "a trigger is fired without a service",
        "fire nope --data data",
        "error: this needs a running service, and none uses {folder}/data; start one with: turnout "
        "serve FLOWS… (or name its folder with --data)",
        "{folder}/data",
        "turnout serve FLOWS…",
        69,
        files={"journal": ""},
    ),
)
