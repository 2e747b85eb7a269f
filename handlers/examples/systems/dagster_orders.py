"""Start a job of Dagster, wait without holding anything, and take the metadata of its output.

`DAGSTER_URL` is the address of its web server. The job is that of `dagster_job.py`, which calls
back by `call_turnout.py`.
"""

from typing import Any

from turnout import Fail, Pending, current, flow, http, poll, retry, secret, task, webhook

PATIENT = retry(1000, delay="1s", max="1m")
"""Dagster may be down for half a day: its run is waited for."""

CODE = {"repositoryLocationName": "dagster_job.py", "repositoryName": "__repository__"}
FIND = """query ($tags: [ExecutionTag!]) {
  runsOrError(filter: {tags: $tags}) { ... on Runs { results { runId } } } }"""
LAUNCH = """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
  ... on LaunchRunSuccess { run { runId } } ... on Error { message }
  ... on RunConfigValidationInvalid { errors { message } } } }"""
LOOK = """query ($run: ID!) { runOrError(runId: $run) { ... on Run { status
  eventConnection { events {
    ... on ExecutionStepOutputEvent { metadataEntries { label ... on TextMetadataEntry { text } } }
    ... on ExecutionStepFailureEvent { error { errorChain { error { message } } } } } } } } }"""


async def dagster(query: str, **variables: Any) -> Any:
    """Ask its GraphQL API."""
    url = secret("DAGSTER_URL").reveal() + "/graphql"
    answer = await http.post(url, json={"query": query, "variables": variables})
    (data,) = answer.json()["data"].values()
    return data


@task(retry=PATIENT, timeout="1m")
async def trigger(order: dict[str, Any]) -> str:
    """Start a run that has the step's key as a tag, if there is none yet."""
    tags = [{"key": "turnout/key", "value": current().key()}]
    for found in (await dagster(FIND, tags=tags))["results"]:
        return str(found["runId"])
    config = {"ops": {"charge": {"config": order}}}
    job = {"selector": CODE | {"jobName": "bill"}, "runConfigData": config}
    launched = await dagster(LAUNCH, params=job | {"executionMetadata": {"tags": tags}})
    if "errors" in launched:
        raise Fail(f"Dagster refuses the order: {launched['errors']}")
    if "message" in launched:  # its code may be reloading
        raise RuntimeError(f"Dagster launches no run yet: {launched['message']}")
    return str(launched["run"]["runId"])


@task(retry=PATIENT, timeout="1m")
async def charged(run: str) -> str | Pending:
    """Look whether the run has ended, and take the metadata of its output."""
    found = await dagster(LOOK, run=run)
    state, events = found["status"], found["eventConnection"]["events"]
    if state == "SUCCESS":
        entries = (entry for event in events for entry in event.get("metadataEntries", ()))
        return str({entry["label"]: entry.get("text") for entry in entries}["receipt"])
    if state in ("FAILURE", "CANCELED"):
        chains = (event["error"]["errorChain"] for event in events if "error" in event)
        errors = [each["error"]["message"].strip() for chain in chains for each in chain]
        raise Fail(f"Dagster's run {run} is {state}: {errors}")
    return Pending(state)


@flow(on=webhook("/orders/dagster", verify="none"))
async def bill_by_dagster(order: dict[str, Any]) -> str:
    """Have Dagster charge the order, and return the receipt."""
    return await poll(charged, await trigger(order), every="5s", timeout="12h")
