"""Scale out a shop that does not answer: more pods, and more machines too while its load is high.

`HEALTH_URL` is the shop's own address, `LOAD_URL` answers the load of its machines in percent.
It says what is wanted; `turnout new` with `kubernetes_scale` and `aws_machines` has who does it.
"""

from turnout import BudgetSpent, budget, emit, every, flow, http, retry, secret, task, webhook

cooldown = budget("autoscale", max_changes=1, per="5m")


@task(reads=True, retry=retry(2, delay="1s", factor=1, jitter=False), timeout="5s", fallback=False)
async def healthy() -> bool:
    """Probe the shop; it is down when three probes in a row had no good answer."""
    await http.get(secret("HEALTH_URL"), retry=0)
    return True


@task(reads=True, retry=retry(2, delay="1s"), timeout="5s")
async def load() -> float:
    """Return the load of the machines, in percent."""
    answer = await http.get(secret("LOAD_URL"), retry=0)
    return float(answer.json()["load"])


@flow(
    on=[every("30s"), webhook("/alerts/health", verify="none")],
    mode="skip",  # one at a time, whatever starts it
    timeout="2m",
)
async def autoscale() -> str:
    """Look, and scale out at most once in five minutes."""
    if await healthy():
        return "healthy"
    try:
        await cooldown.take()
    except BudgetSpent as spent:
        return f"scaled already, the next time not before {spent.free_at:%H:%M:%S}"
    pods = {"deployment": "web-app", "namespace": "production", "replicas": 10}
    await emit("pods.wanted", pods)
    if await load() > 80:
        machines = {"image": "ami-12345678", "type": "t3.large", "least": 2, "most": 5}
        await emit("machines.wanted", machines)
    return "Auto-scaling completed"
