"""Bring secrets from AWS Secrets Manager to where `secret()` reads them, and new values too.

`AWS_SECRETS` names them, one blank apart. Each is written into `TURNOUT_SECRETS_FOLDER` under the
last part of its name: of `shop/CRM_KEY`, that is CRM_KEY. The next `reveal()` has a new value; a
webhook reads its own at the start. Before the first start, `turnout run` the flow once. Region and
credentials are those of the environment, as for every client of AWS.
"""

# /// script
# dependencies = ["aiobotocore>=3", "botocore"]
# ///

import asyncio
import os
from functools import partial
from pathlib import Path

from aiobotocore.session import get_session
from botocore.exceptions import ConnectionError, HTTPClientError

from turnout import Fail, every, flow, gather, retry, secret, task

manager = partial(get_session().create_client, "secretsmanager")
again = retry(5, on=(ConnectionError, HTTPClientError))  # the client itself tries 5xx again


def write(name: str, value: str) -> None:
    """Write a value as a whole, readable by nobody else, and have it masked from now on."""
    written = secret(name)  # refuses a name that could lead elsewhere
    folder = Path(os.environ["TURNOUT_SECRETS_FOLDER"])
    part = folder / f".{name}.part"
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(value)
    part.replace(folder / name)
    written.reveal()


@task(retry=again, timeout="30s")
async def bring(secret_id: str) -> str:
    """Write the current value of a secret; returns its version, never the value."""
    async with manager() as client:
        found = await client.get_secret_value(SecretId=secret_id)
    await asyncio.to_thread(write, secret_id.rpartition("/")[2], found["SecretString"])
    return str(found["VersionId"])


@flow(on=every("5m"), mode="skip", timeout="10m")
async def bring_secrets() -> list[str]:
    """Bring all secrets, and return their versions; one that fails keeps back no other."""
    names = os.environ["AWS_SECRETS"].split()
    versions = await gather(*map(bring, names), return_exceptions=True)
    if failed := [each for each in versions if isinstance(each, Exception)]:
        raise Fail(f"{len(failed)} of {len(names)} not brought: {failed}")
    return [str(each) for each in versions]
