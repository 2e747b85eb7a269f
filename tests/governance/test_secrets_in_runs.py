"""No value of a secret leaves a run: in a result, a log line, an error, a key, a worker process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.attempts import attempts
from tests.support.running import eventually, running
from turnout import (
    Fail,
    Skip,
    approval,
    current,
    emit,
    event,
    flow,
    limit,
    retry,
    secret,
    task,
    wait_for,
)
from turnout.service.domain.event import Event
from turnout.service.domain.run import RunState
from turnout.service.governance import secrets
from turnout.service.journal.records import Filter

from .revealing import VALUE, clean, value

pytestmark = pytest.mark.slow

__all__ = ["clean", "value"]  # fixtures


@flow
async def leaks() -> dict[str, str]:
    return {"token": secret("ORDERS_HMAC").reveal()}


@task
async def leaky_step() -> list[bytes]:
    return [secret("ORDERS_HMAC").reveal().encode()]


@flow
async def leaks_in_a_step() -> None:
    await leaky_step()


@task(retry=retry(1, delay="1ms"))
async def says_it() -> None:
    raise ValueError(f"refused {secret('ORDERS_HMAC').reveal()}")


@flow
async def says_it_aloud() -> None:
    current().log.info("token.used", token=secret("ORDERS_HMAC").reveal())
    current().log.info(f"plain {secret('ORDERS_HMAC').reveal()}", nested=[VALUE])
    await says_it()


async def test_a_result_with_a_live_value_fails_by_name(tmp_path: Path, value: str) -> None:
    async with attempts(tmp_path) as run:
        outcome = await run.first(leaks)
        assert outcome.error is not None and outcome.error.type == "not_kept"
        assert "holds the value of secret 'ORDERS_HMAC'" in outcome.error.message
        outcome = await run.first(leaks_in_a_step, id="e2")
        assert outcome.error is not None and "step 'leaky_step#1'" in outcome.error.message


async def test_no_value_reaches_the_journal_or_the_log(
    tmp_path: Path, value: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with attempts(tmp_path) as run:
        outcome = await run.first(says_it_aloud)
        assert outcome.error is not None
        assert outcome.error.message == f"refused {secrets.MASK}"
        stored = repr((outcome, await run.steps(), await run.journal.runs(Filter())))
        traceback = outcome.error.traceback or ""
    for text in (stored, traceback, (outcome.log or b"").decode(), capfd.readouterr().err):
        assert value not in text
        assert orjson.dumps(value).decode()[1:-1] not in text


# ---------------------------------------------------------------- worker processes


@task(pool="process")
def returns_it_from_a_process() -> str:
    return "the token is " + secret("ORDERS_HMAC").reveal()


@task(pool="process")
def raises_it_in_a_process() -> None:
    raise RuntimeError("login failed for " + secret("ORDERS_HMAC").reveal())


@task(pool="process")
def logs_it_in_a_process() -> str:
    current().log.info("token.used", token=secret("ORDERS_HMAC").reveal())
    return "done"


@task(pool="process")
def repeats_in_a_process(text: str) -> None:
    raise RuntimeError(f"no such user {text}")


@flow(pool="process")
def is_a_process_that_returns_it() -> list[str]:
    return [secret("ORDERS_HMAC").reveal()]


@flow(pool="process")
def is_a_process_that_raises_it() -> None:
    raise ValueError([secret("ORDERS_HMAC").reveal()])


@flow
async def returns_from_a_process() -> None:
    await returns_it_from_a_process.run()


@flow
async def raises_in_a_process() -> None:
    await raises_it_in_a_process.run()


@flow
async def logs_in_a_process() -> str:
    current().log.info(await logs_it_in_a_process.run())
    return "done"


@flow
async def hands_it_to_a_process() -> None:
    await logs_it_in_a_process.run()  # a worker is there already
    await repeats_in_a_process.run(secret("ORDERS_HMAC").reveal())


@pytest.mark.parametrize(
    ("leaky", "kind"),
    [
        (returns_from_a_process, "not_kept"),
        (raises_in_a_process, "RuntimeError"),
        (logs_in_a_process, None),
        (hands_it_to_a_process, "RuntimeError"),
        (is_a_process_that_returns_it, "not_kept"),
        (is_a_process_that_raises_it, "ValueError"),
    ],
)
async def test_what_a_worker_process_reveals_is_guarded_as_in_a_thread(
    tmp_path: Path, value: str, capfd: pytest.CaptureFixture[str], leaky: Any, kind: str | None
) -> None:
    async with attempts(tmp_path) as run:
        outcome = await run.first(leaky)
        kept = (outcome, await run.steps(), await run.journal.runs(Filter()))
    assert (outcome.error.type if outcome.error else None) == kind
    for text in (repr(kept), capfd.readouterr().err, journal_bytes(tmp_path)):
        assert value not in text
        assert orjson.dumps(value).decode()[1:-1] not in text


async def test_a_worker_process_finds_secrets_in_files(tmp_path: Path) -> None:
    secrets.configure(tmp_path)
    (tmp_path / "ORDERS_HMAC").write_text("kept in a file")
    (tmp_path / "ORDERS_HMAC").chmod(0o600)
    async with attempts(tmp_path / "data") as run:
        assert (await run.first(logs_in_a_process)).error is None


def journal_bytes(folder: Path) -> str:
    """Return what is on disk, as far as it is text."""
    files = [each for each in folder.rglob("*") if each.is_file()]
    return "".join(each.read_bytes().decode("utf-8", "replace") for each in files)


# ---------------------------------------------------------------- other ways out of a run


def reveal() -> str:
    return secret("ORDERS_HMAC").reveal()


def raises(_event: Event) -> bool:
    raise RuntimeError("refused " + reveal())


def is_key(_event: Event) -> str:
    return "customer " + reveal()


@flow(when=raises)
async def asks_when(data: Any) -> None: ...


@flow(ordered_by=raises)
async def asks_order(data: Any) -> None: ...


@flow(concurrency=limit(1, per=raises))
async def asks_per(data: Any) -> None: ...


@flow(ordered_by=is_key)
async def is_ordered_by_it(data: Any) -> None: ...


@flow(concurrency=limit(1, per=is_key))
async def is_limited_by_it(data: Any) -> None: ...


@flow
async def skips_with_it() -> None:
    raise Skip("no access with " + secret("ORDERS_HMAC").reveal())


@flow
async def fails_with_it() -> None:
    raise Fail("no access with " + secret("ORDERS_HMAC").reveal())


@flow
async def fails_by_a_name_with_it() -> None:
    raise type(f"Denied{secret('ORDERS_HMAC').reveal()}", (Exception,), {})("no access")


@task
async def exits_in_a_step() -> None:
    sys.exit("no access with " + secret("ORDERS_HMAC").reveal())


@flow
async def exits_with_it() -> None:
    await exits_in_a_step()


class Denied(Exception):
    def __init__(self, text: str) -> None:
        super().__init__("denied " + text)
        self.reason = "denied " + text
        self.status = 403


@task
async def denies_in_a_step() -> None:
    raise Denied(secret("ORDERS_HMAC").reveal())


@flow
async def goes_by_what_is_kept() -> None:
    try:
        await denies_in_a_step()
    except Denied as error:
        raise Skip(f"{error.reason} {error.status}") from None


@flow
async def asks_with_it() -> None:
    await approval("is " + secret("ORDERS_HMAC").reveal() + " right?")


@flow(on=event("order.paid"))
async def is_called(text: str) -> None: ...


@flow(awaits=[event("order.paid")])
async def waits_for_it() -> None:
    await wait_for(event("order.paid"), match={"token": secret("ORDERS_HMAC").reveal()})


@flow
async def calls_with_it() -> None:
    await is_called(secret("ORDERS_HMAC").reveal())


@flow
async def emits_it() -> None:
    await emit("order.paid", {}, subject=secret("ORDERS_HMAC").reveal())


@flow
async def emits_under_it() -> None:
    await emit("order.paid", {}, id="x" + secret("ORDERS_HMAC").reveal())


@pytest.mark.parametrize(
    ("leaky", "state", "kind"),
    [
        (skips_with_it, "skipped", None),
        (fails_with_it, "failed", "failed"),
        (fails_by_a_name_with_it, "failed", f"Denied{secrets.MASK}"),
        (exits_with_it, "failed", "SystemExit"),
        (goes_by_what_is_kept, "skipped", None),
        (asks_when, "failed", "filter_error"),
        (asks_order, "failed", "filter_error"),
        (asks_per, "failed", "filter_error"),
        (is_ordered_by_it, "failed", "filter_error"),
        (is_limited_by_it, "failed", "filter_error"),
        (asks_with_it, "waiting", None),
        (waits_for_it, "failed", "not_kept"),
        (calls_with_it, "failed", "not_kept"),
        (emits_it, "failed", "not_kept"),
        (emits_under_it, "failed", "not_kept"),
    ],
)
async def test_texts_are_masked_and_keys_refused(
    tmp_path: Path,
    value: str,
    capfd: pytest.CaptureFixture[str],
    leaky: Any,
    state: str,
    kind: str | None,
) -> None:
    async with running(tmp_path, [leaky]) as service:
        receipt = await service.send({})

        async def settled() -> bool:
            found = (await service.run(receipt.runs[0])).state
            return found not in (RunState.QUEUED, RunState.RUNNING)

        await eventually(settled)
        run = await service.run(receipt.runs[0])
        steps = await service.process.journal.steps(run.seq)
        assert run.state == state
        assert (run.error.type if run.error else None) == kind
        shown = repr((run, steps, receipt))
    for text in (shown, capfd.readouterr().err, journal_bytes(tmp_path)):
        assert value not in text
        assert orjson.dumps(value).decode()[1:-1] not in text


async def test_a_key_that_holds_a_secret_says_so(tmp_path: Path, value: str) -> None:
    async with running(tmp_path, [is_ordered_by_it]) as service:
        run = await service.run((await service.send({})).runs[0])
    assert run.error is not None
    assert "the ordering key holds the value of secret 'ORDERS_HMAC'" in run.error.message
    assert run.order_key is None
