"""A queue and secrets of AWS, by the examples: SQS and Secrets Manager of moto, over HTTP.

The service is the real program, and is killed.
"""

from __future__ import annotations

import hashlib
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support import CHECKOUT
from tests.support.boundaries import behind_ours, killed_at
from tests.support.program import Program, environment, killed_once, supervised, until
from tests.support.stand_ins import Cloud

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

EXAMPLES = CHECKOUT / "handlers" / "examples" / "systems"
PATIENCE = 120.0
"""Seconds; the machine may be busy with other tests."""

TOKEN = "the-token-of-this-test"


class Served:
    """An example that ticks when a test says so, and what else its folder has."""

    def __init__(
        self, folder: Path, name: str, edits: dict[str, str], sabotage: str = "", **env: str
    ) -> None:
        self.folder = folder / "flows"
        self.folder.mkdir()
        text = (EXAMPLES / f"{name}.py").read_text()
        for old, new in edits.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (self.folder / f"{name}.py").write_text(text)
        self.program = Program(
            flows=self.folder,
            data=folder / "data",
            log=folder / "log",
            env={"TURNOUT_API_TOKEN": TOKEN, "MARKER": str(folder / "killed"), **env},
            sabotage=behind_ours("clients") + sabotage,
        )

    def tick(self, trigger: str) -> bool:
        """Have a tick, and all end that it starts; returns whether it lived to see that."""
        path = f"/api/triggers/{quote(trigger, safe='')}/fire"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = self.program.ask(path, method="POST", headers=headers)
        if answer is None or answer.status not in (200, 202):
            return False
        until(self.program.is_quiet, PATIENCE, "no unfinished run")
        return True

    def runs(self, flow: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.program.api(f"/runs?flow={flow}")["items"]
        return found


# ---------------------------------------------------------------- SQS

ORDERS = ['{"id": "a", "amount": 1}', "no order", '{"id": "b", "amount": 2}']

BEFORE_A_DELETE = """
from aiobotocore.client import AioBaseClient
honest = AioBaseClient._make_api_call

async def ask(self, operation, parameters):
    if operation == "DeleteMessageBatch":
        {instead}
    return await honest(self, operation, parameters)

AioBaseClient._make_api_call = ask
"""
KILLED = killed_once(BEFORE_A_DELETE.format(instead="die()"))
LOSES_THE_FIRST = BEFORE_A_DELETE.format(
    instead="""
        import os, pathlib
        marker = pathlib.Path(os.environ["MARKER"])
        if not marker.exists():
            marker.touch()
            return {}"""
)


class Queue(Served):
    """The example, and a queue that has three messages, one of which is no order."""

    def __init__(self, folder: Path, cloud: Cloud, sabotage: str = "", **edits: str) -> None:
        self.cloud = cloud
        hidden = {"VisibilityTimeout": "3"}
        made = cloud.ask("sqs", "CreateQueue", QueueName="orders", Attributes=hidden)
        self.url = made["QueueUrl"]
        for body in ORDERS:
            cloud.ask("sqs", "SendMessage", QueueUrl=self.url, MessageBody=body)
        quick = {
            'every("30s")': 'every("30s", start="2090-01-01T00:00Z")',
            "WaitTimeSeconds=20": "WaitTimeSeconds=1",
        }
        super().__init__(
            folder, "sqs_orders", quick | edits, sabotage, QUEUE_URL=self.url, **cloud.env
        )

    def count(self) -> int:
        """Return how many messages it has, those included that it hides."""
        found = self.cloud.ask(
            "sqs", "GetQueueAttributes", QueueUrl=self.url, AttributeNames=["All"]
        )["Attributes"]
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        return sum(int(found[name]) for name in names)

    def drained(self) -> list[str]:
        """Have ticks until the queue is empty; returns what became of each order."""
        until(lambda: self.tick("every:30s") and self.count() == 0, PATIENCE, "an empty queue")
        return sorted(str(run["result"])[:7] for run in self.runs("book_order"))


@pytest.mark.parametrize(
    "sabotage",
    [
        "",
        killed_at("receive#1 succeeded"),
        KILLED,
        killed_at("delete#1 succeeded"),
        killed_at("run succeeded"),
    ],
    ids=["none", "received", "before the delete", "deleted", "run"],
)
def test_each_message_is_one_run_over_a_kill(tmp_path: Path, cloud: Cloud, sabotage: str) -> None:
    it = Queue(tmp_path, cloud, sabotage)
    with it.program.start() as program:
        program.ready(PATIENCE)
        with supervised(program, most_restarts=2) as deaths:
            assert it.drained() == ["None", "order a", "order b"]
        assert deaths == [-signal.SIGKILL] * bool(sabotage)
        (failed,) = (run for run in it.runs("book_order") if run["state"] == "failed")
        assert failed["attempts"] == 1


@pytest.mark.parametrize(
    ("edits", "runs"),
    [({}, 3), ({', id=each["id"]': ""}, 6)],
    ids=["one id", "control"],
)
def test_a_message_that_is_delivered_twice_starts_one_run(
    tmp_path: Path, cloud: Cloud, edits: dict[str, str], runs: int
) -> None:
    it = Queue(tmp_path, cloud, LOSES_THE_FIRST, **edits)
    with it.program.start() as program:
        program.ready(PATIENCE)
        assert len(it.drained()) == runs


# ---------------------------------------------------------------- Secrets Manager

OLD, NEW = "the-first-value-of-the-key", "the-second-value-of-the-key"
VERSIONS = {OLD: "1" * 32, NEW: "2" * 32}
TELLS = '''
"""Uses a secret, and tells it to whoever reads its log."""
import hashlib

from turnout import current, flow, secret, task, webhook


@task
async def use() -> str:
    value = secret("CRM_KEY").reveal()
    print("the key is", value)
    current().log.info("the.key", value=value)
    return hashlib.sha256(value.encode()).hexdigest()


@flow(on=webhook("/use", verify="none", respond="30s"))
async def crm() -> str:
    return await use()


@flow(on=webhook("/leak", verify="none"))
async def leak() -> str:
    raise ValueError("the key is " + secret("CRM_KEY").reveal())
'''


def test_a_secret_is_brought_and_rotated_and_nowhere_to_be_seen(
    tmp_path: Path, cloud: Cloud
) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    once = {'every("5m")': 'every("5m", start="2090-01-01T00:00Z")'}
    env = {"TURNOUT_SECRETS_FOLDER": str(folder), "AWS_SECRETS": "shop/CRM_KEY", **cloud.env}
    it = Served(tmp_path, "aws_secrets", once, **env)
    kept = {"Name": "shop/CRM_KEY", "SecretString": OLD, "ClientRequestToken": VERSIONS[OLD]}
    cloud.ask("secretsmanager", "CreateSecret", **kept)

    code = behind_ours("clients") + "from turnout.service.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "aws_secrets.py:bring_secrets"],
        cwd=it.folder, env=environment(env), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert VERSIONS[OLD] in done.stdout and OLD not in done.stdout + done.stderr
    assert stat.S_IMODE((folder / "CRM_KEY").stat().st_mode) == 0o600

    (it.folder / "tells.py").write_text(TELLS)
    with it.program.start() as program:
        program.ready(PATIENCE)
        assert used(program) == hashlib.sha256(OLD.encode()).hexdigest()
        put = {"SecretId": "shop/CRM_KEY", "SecretString": NEW}
        cloud.ask("secretsmanager", "PutSecretValue", ClientRequestToken=VERSIONS[NEW], **put)
        assert it.tick("every:5m")
        assert used(program) == hashlib.sha256(NEW.encode()).hexdigest()
        program.post("leak", {})
        program.quiet(PATIENCE)
        runs = [program.api(f"/runs/{run['id']}") for run in program.api("/runs")["items"]]
        assert program.stop() == 0
    seen = {
        "the API": str(runs).encode(),
        "the log": program.log_text().encode(),
        "the journal": b"".join(
            path.read_bytes() for path in program.data.rglob("*") if path.is_file()
        ),
    }
    assert [name for name in seen for value in VERSIONS if value.encode() in seen[name]] == []
    assert VERSIONS[NEW].encode() in seen["the journal"], "what is there is found"
    assert b"the key is ********" in seen["the API"] and b"the key is ********" in seen["the log"]


def used(program: Program) -> str:
    """Have the flow use the secret; returns the hash of what it had."""
    answer = program.ask("/hooks/use", method="POST", body=b"", timeout=60)
    assert answer is not None and answer.status == 200, answer
    return answer.body.decode().strip('"')
