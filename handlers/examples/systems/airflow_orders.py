"""Start a DAG of Airflow 3, wait without holding anything, and take what its task returned.

`AIRFLOW_URL` is the address of the API server, `AIRFLOW_USER` and `AIRFLOW_PASSWORD` are of a user
who may run the DAG, that of `airflow_dag.py`; it calls back by `call_turnout.py`.
"""

from typing import Any

from turnout import Fail, Pending, current, flow, http, poll, retry, secret, task, webhook

RUNS = "/dags/bill/dagRuns"
PATIENT = retry(1000, delay="1s", max="1m")
"""Airflow may be down for half a day: its run is waited for."""


async def airflow(method: str, path: str, **options: Any) -> Any:
    """Ask its REST API; the token is a new one each time, since it expires."""
    url = secret("AIRFLOW_URL").reveal()
    user = {"username": secret("AIRFLOW_USER").reveal()}
    user["password"] = secret("AIRFLOW_PASSWORD").reveal()
    token = (await http.post(f"{url}/auth/token", json=user)).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    return (await http(method, f"{url}/api/v2{path}", headers=headers, **options)).json()


@task(retry=PATIENT, timeout="1m")
async def trigger(order: dict[str, Any]) -> str:
    """Start a run under the step's key; Airflow has one run for a key, and answers 409 then."""
    key = current().key()
    asked = {"dag_run_id": key, "logical_date": None, "conf": order}
    await airflow("POST", RUNS, json=asked, allow={409})
    return key


@task(retry=PATIENT, timeout="1m")
async def charged(run: str) -> str | Pending:
    """Look whether the run has ended, and take what its task `charge` returned."""
    state = (await airflow("GET", f"{RUNS}/{run}"))["state"]
    tasks = f"{RUNS}/{run}/taskInstances"
    if state == "success":
        return str((await airflow("GET", f"{tasks}/charge/xcomEntries/return_value"))["value"])
    if state == "failed":
        failed = (await airflow("GET", tasks, params={"state": "failed"}))["task_instances"]
        raise Fail(f"Airflow's run {run} failed: {[await reason(tasks, each) for each in failed]}")
    return Pending(state)


async def reason(tasks: str, failed: dict[str, Any]) -> str:
    """Return the error of a task's last try, from its log."""
    log = await airflow("GET", f"{tasks}/{failed['task_id']}/logs/{failed['try_number']}")
    errors = [each["error_detail"][0] for each in log["content"] if each.get("error_detail")]
    return " ".join([failed["task_id"], *(str(each["exc_value"]) for each in errors)])


@flow(on=webhook("/orders/airflow", verify="none"))
async def bill_by_airflow(order: dict[str, Any]) -> str:
    """Have Airflow charge the order, and return the receipt."""
    return await poll(charged, await trigger(order), every="5s", timeout="12h")
