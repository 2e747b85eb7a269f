"""Mistakes with requests, polls, files of runs, budgets, windows and limits: what `check` says."""

from __future__ import annotations

from .mistake import InFile

REQUESTS = (
    InFile(
        "a request that is not awaited",
        """
        @flow
        async def report():
            http.post("https://a.example/x", json={})  # here
        """,
        "http.post(…) is called and not awaited, so that it never runs; write `await http.post(…)`",
        "write `await http.post(…)`",
    ),
    InFile(
        "a request in a def flow",
        """
        @flow
        def report():
            http.get("https://a.example/x")  # here
        """,
        "http.get(…) is called and not awaited, so that it never runs; write `async def` and "
        "`await http.get(…)`",
        "write `async def`",
    ),
    InFile(
        "the body of other clients",
        """
        @flow
        async def report():
            await http.post("https://a.example/x", data={"a": 1})  # here
        """,
        "http() has no option 'data'; did you mean json=, or content= for bytes and text?",
        "json=",
    ),
    InFile(
        "the retries of other clients",
        """
        @flow
        async def report():
            await http.get("https://a.example/x", retries=5)  # here
        """,
        "http() has no option 'retries'; did you mean retry=?",
        "retry=",
    ),
    InFile(
        "an address without https",
        """
        @flow
        async def report():
            await http.get("a.example/x")  # here
        """,
        "http.get('a.example/x'): an address begins with https:// or http://; write "
        "'https://a.example/x'",
        "'https://a.example/x'",
    ),
    InFile(
        "a request without its method",
        """
        @flow
        async def report():
            await http("https://a.example/x")  # here
        """,
        "http() needs url; `turnout help http` says how it is written",
        "`turnout help http`",
    ),
    InFile(
        "seconds as the timeout of a request",
        """
        @flow
        async def report():
            await http.get("https://a.example/x", timeout=5)  # here
        """,
        'http.get(timeout=…): cannot read the duration 5; write it like "5s" for seconds, or '
        '"500ms", "30s", "5m", "1h30m", "1d"',
        '"5s" for seconds',
    ),
    InFile(
        "one status as what is allowed",
        """
        @flow
        async def report():
            await http.get("https://a.example/x", allow=404)  # here
        """,
        "http.get(allow=404) takes statuses: write allow={404}",
        "allow={404}",
    ),
    InFile(
        "a size of an answer in words",
        """
        @flow
        async def report():
            await http.get("https://a.example/x", max_bytes="lots")  # here
        """,
        "http.get(max_bytes=…): cannot read the size 'lots'; write it like \"64KiB\", "
        '"1MiB", "10GiB"',
        'write it like "64KiB"',
    ),
    InFile(
        "the name of a file for an answer",
        """
        @flow
        async def report():
            await http.get("https://a.example/x", to="dump.zst")  # here
        """,
        "http.get(to='dump.zst') takes an artefact: write to=artefact('dump.zst')",
        "to=artefact('dump.zst')",
    ),
    InFile(
        "a secret in a text",
        """
        @flow
        async def report():
            token = f"Bearer {secret('PATH')}"  # here
            await http.get("https://a.example/x", headers={"Authorization": token})
        """,
        "secret('PATH') in a text is masked; write secret('PATH').reveal()",
        "secret('PATH').reveal()",
        warns=True,
    ),
    InFile(
        "urllib in an async flow",
        """
        import urllib.request
        @flow
        async def report():
            urllib.request.urlopen("https://a.example/x").read()  # here
        """,
        "urllib.request.urlopen(…) in an `async def` stops every other run and request while "
        "it works; call it in a `def` task: `.run(…)`",
        "in a `def` task",
        warns=True,
    ),
)

POLLS = (
    InFile(
        "a poll that is not awaited",
        """
        @task
        def exported(job: str) -> str | Pending:
            return Pending()
        @flow
        async def export(job: str):
            poll(exported, job)  # here
        """,
        "poll(…) is called and not awaited, so that it never runs; write `await poll(…)`",
        "write `await poll(…)`",
    ),
    InFile(
        "a poll in a def flow",
        """
        @task
        def exported(job: str) -> str | Pending:
            return Pending()
        @flow
        def export(job: str):
            return poll(exported, job)  # here
        """,
        "flow 'export' is a plain `def` and cannot await poll(…); write `async def`",
        "write `async def`",
    ),
    InFile(
        "a poll with the call of its task",
        """
        @task
        async def exported(job: str) -> str | Pending:
            return Pending()
        @flow
        async def export(job: str):
            await poll(exported(job), every="30s")  # here
        """,
        "poll(exported(job), …) is given the call itself, and makes the calls: write "
        "poll(exported, job, …)",
        "poll(exported, job, …)",
    ),
    InFile(
        "the interval of a poll",
        """
        @task
        def exported(job: str) -> str | Pending:
            return Pending()
        @flow
        async def export(job: str):
            return await poll(exported, job, interval="30s")  # here
        """,
        "poll() has no option 'interval'; did you mean every=?",
        "every=",
    ),
    InFile(
        "seconds between looks",
        """
        @task
        def exported(job: str) -> str | Pending:
            return Pending()
        @flow
        async def export(job: str):
            return await poll(exported, job, every=30)  # here
        """,
        'poll(every=…): cannot read the duration 30; write it like "30s" for seconds, or '
        '"500ms", "30s", "5m", "1h30m", "1d"',
        '"30s" for seconds',
    ),
    InFile(
        "a poll with a flow",
        """
        @flow
        async def other(job: str): ...
        @flow
        async def export(job: str):
            return await poll(other, job)  # here
        """,
        "poll(other, …): flow 'other' is a flow, and a look is a task: write @task",
        "write @task",
    ),
    InFile(
        "a poll without the arguments of its task",
        """
        @task
        def exported(job: str) -> str | Pending:
            return Pending()
        @flow
        async def export(job: str):
            return await poll(exported)  # here
        """,
        "poll(exported, …): task 'exported' is called without job; it is exported(job)",
        "it is exported(job)",
    ),
    InFile(
        "Pending that is raised",
        """
        @task
        def exported(job: str) -> str | Pending:
            raise Pending("not yet")  # here
        @flow
        async def export(job: str):
            return await poll(exported, job)
        """,
        "Pending is returned, not raised; write `return Pending(…)`",
        "write `return Pending(…)`",
    ),
    InFile(
        "a poll in a task",
        """
        @task
        def exported(job: str) -> str | Pending:
            return Pending()
        @task
        async def wrap(job: str):
            return await poll(exported, job)  # here
        @flow
        async def export(job: str):
            return await wrap(job)
        """,
        "poll(…) in task 'wrap' is for the flow itself: move it there, before or after the "
        "call of the task",
        "move it there",
    ),
)

ARTEFACTS = (
    InFile(
        "a file that the body of a flow attaches",
        """
        @flow
        def report():
            current().attach("a.txt", b"x")  # here
        """,
        "current().attach(…) in the body of a flow, which runs again after each wait; call "
        "it in the task that makes the file",
        "call it in the task",
    ),
    InFile(
        "artefact as others spell it",
        """
        from turnout import artifact  # here
        """,
        "turnout has no 'artifact'; did you mean artefact?",
        "did you mean artefact?",
    ),
)

BUDGETS = (
    InFile(
        "a take that is not awaited",
        """
        b = budget("scale", max_changes=10, per="1h")
        @flow
        async def scale():
            b.take(1)  # here
        """,
        "b.take(…) is called and not awaited, so that it never runs; write `await b.take(…)`",
        "write `await b.take(…)`",
    ),
    InFile(
        "a take in a def flow",
        """
        b = budget("scale", max_changes=10, per="1h")
        @flow
        def scale():
            b.take(1)  # here
        """,
        "b.take(…) is called and not awaited, so that it never runs; write `async def` and "
        "`await b.take(…)`",
        "write `async def`",
    ),
    InFile(
        "a take in a task",
        """
        b = budget("scale", max_changes=10, per="1h")
        @task
        async def change():
            await b.take(1)  # here
        @flow
        async def scale():
            await change()
        """,
        "b.take(…) in task 'change' is for the flow itself: move it there, before or after "
        "the call of the task",
        "move it there",
    ),
    InFile(
        "seconds as the period of a budget",
        """
        b = budget("scale", max_changes=10, per=3600)  # here
        @flow
        async def scale():
            await b.take(1)
        """,
        'cannot read the duration 3600; write it like "3600s" for seconds, or "500ms", '
        '"30s", "5m", "1h30m", "1d"',
        '"3600s" for seconds',
    ),
    InFile(
        "a budget without names of its options",
        """
        b = budget("scale", 10)  # here
        @flow
        async def scale():
            await b.take(1)
        """,
        "budget() is given too much without a name; its options are written with theirs "
        "(max_changes=, per=); `turnout help budget` says how it is written",
        "max_changes=",
    ),
)

WINDOWS = (
    InFile(
        "a batch for one order",
        """
        @flow(on=batch(webhook("/a"), 10, "1m"))  # here
        def store(order: dict): ...
        """,
        "flow 'store': parameter `order: dict`: the flow is called with a list, one item for "
        "each event of its window; write `order: list[dict]`",
        "`order: list[dict]`",
    ),
    InFile(
        "a list from a debounce",
        """
        @flow(on=debounce(webhook("/a"), "10s"))  # here
        def store(orders: list[dict]): ...
        """,
        "flow 'store': parameter 'orders' is a list, and debounce(…) calls the flow with its "
        'last event; for a list of all write keep="all"',
        'keep="all"',
        warns=True,
    ),
    InFile(
        "seconds of quiet",
        """
        @flow(on=debounce(webhook("/a"), 10))  # here
        def store(order: dict): ...
        """,
        'debounce(period=10): cannot read the duration 10; write it like "10s" for seconds, '
        'or "500ms", "30s", "5m", "1h30m", "1d"',
        '"10s" for seconds',
    ),
    InFile(
        "a key of a window by its name",
        """
        @flow(on=debounce(webhook("/a"), "10s", per="id"))  # here
        def store(order: dict): ...
        """,
        "debounce(per='id'): write a function, per=lambda event: …",
        "per=lambda event: …",
    ),
    InFile(
        "a longest time below the shortest",
        """
        @flow(on=debounce(webhook("/a"), "10s", max="5s"))  # here
        def store(order: dict): ...
        """,
        "debounce('10s', max='5s'): max is longer than the period, else no event could put "
        "off the run; leave it out for ten periods",
        "leave it out",
    ),
    InFile(
        "a time where the count belongs",
        """
        @flow(on=batch(webhook("/a"), "1m", 10))  # here
        def store(orders: list[dict]): ...
        """,
        "batch(n='1m'): write a count from 1 to 10,000",
        "from 1 to 10,000",
    ),
    InFile(
        "a batch without a time",
        """
        @flow(on=batch(webhook("/a"), 10))  # here
        def store(orders: list[dict]): ...
        """,
        "batch() needs timeout; `turnout help batch` says how it is written",
        "`turnout help batch`",
    ),
    InFile(
        "a sequence without a time",
        """
        @flow(on=sequence(webhook("/a"), webhook("/b")))  # here
        def store(orders: list[dict]): ...
        """,
        'sequence(…): say in how much time, sequence(…, within="10m"); without that it would '
        "wait for ever",
        'within="10m"',
    ),
    InFile(
        "a sequence of one",
        """
        @flow(on=sequence(webhook("/a"), within="10m"))  # here
        def store(orders: list[dict]): ...
        """,
        "sequence(webhook:/a): a pattern has two triggers or more; write sequence(event(…), "
        'webhook(…), within="10m")',
        "two triggers or more",
    ),
    InFile(
        "a sequence of a list",
        """
        @flow(on=sequence([webhook("/a"), webhook("/b")], within="10m"))  # here
        def store(orders: list[dict]): ...
        """,
        "sequence([…]): write the triggers without brackets, sequence(a, b, …)",
        "without brackets",
    ),
    InFile(
        "data of what has not come",
        """
        @flow(on=absent(webhook("/a"), "2h"))  # here
        def store(order: dict): ...
        """,
        "flow 'store': parameter 'order': a run of absent(…) without after= has no data; "
        "take no parameter, or `event: Event`",
        "take no parameter",
    ),
    InFile(
        "a window in a list",
        """
        @flow(on=[debounce(webhook("/a"), "10s")])  # here
        def store(order: dict): ...
        """,
        "flow 'store': debounce(…) is a window, which stands alone in on=: write "
        "on=debounce(…), without a list",
        "without a list",
    ),
    InFile(
        "a window of a window",
        """
        @flow(on=batch(debounce(webhook("/a"), "10s"), 5, "1m"))  # here
        def store(orders: list[dict]): ...
        """,
        "batch(debounce(…)): a window is made of triggers, not of another window; let a flow "
        "with debounce(…) emit an event, and write batch(event(…), …)",
        "let a flow with debounce(…) emit an event",
    ),
    InFile(
        "the flow of a timeout by its name",
        """
        @flow(on=all_of(webhook("/a"), webhook("/b"), within="10m", on_timeout="remind"))  # here
        def store(orders: list[dict]): ...
        """,
        "all_of(on_timeout='remind'): write a flow, a function with @flow that is defined "
        "above this one",
        "write a flow",
    ),
)

FLOW_CONTROL = (
    InFile(
        "a number as a rate",
        """
        @flow(on=webhook("/a"), rate=throttle(100))  # here
        def store(order: dict): ...
        """,
        'cannot read the rate 100; write it like "10/s", "100/m", "20/2s", "1000/h" or "5000/d"',
        '"100/m"',
    ),
    InFile(
        "a rate as concurrency",
        """
        @flow(on=webhook("/a"), concurrency=throttle("10/s"))  # here
        def store(order: dict): ...
        """,
        "flow 'store': concurrency=throttle(…): write a count, limit(8, per=lambda event: "
        '…), limit("db", 3), or a list of them',
        "limit(8, per=lambda event: …)",
    ),
    InFile(
        "a limit as a rate",
        """
        @flow(on=webhook("/a"), rate=limit(8))  # here
        def store(order: dict): ...
        """,
        "flow 'store': rate=limit(…): write throttle(\"100/m\"), which lets runs wait, or "
        'rate_limit("100/m"), which skips them, or a list of these',
        'throttle("100/m")',
    ),
    InFile(
        "the key of a rate by its name",
        """
        @flow(on=webhook("/a"), rate=rate_limit("10/s", per="id"))  # here
        def store(order: dict): ...
        """,
        "flow 'store': per='id': write a function, per=lambda event: …",
        "per=lambda event: …",
    ),
    InFile(
        "what is unique by its name",
        """
        @flow(on=webhook("/a"), unique="id")  # here
        def store(order: dict): ...
        """,
        "flow 'store': unique='id': write unique=unique(lambda event: …), with until= if the "
        "work is not to be done again for a time",
        "unique(lambda event: …)",
    ),
    InFile(
        "what is cancelled without a trigger",
        """
        @flow(on=webhook("/a"), match="id")  # here
        def store(order: dict): ...
        """,
        "flow 'store': match= says which runs an event of cancel_on= cancels; write "
        "cancel_on=TRIGGER with it",
        "cancel_on=TRIGGER",
    ),
    InFile(
        "a limit as a dependency",
        """
        @flow(on=webhook("/a"), needs=limit(1))  # here
        def store(order: dict): ...
        """,
        "flow 'store': needs=limit(…): write needs=dependency(\"crm\"), or a list of them",
        'needs=dependency("crm")',
    ),
    InFile(
        "seconds until the first start",
        """
        @flow(on=webhook("/a"), start_timeout=60)  # here
        def store(order: dict): ...
        """,
        "flow 'store': start_timeout=60: cannot read the duration 60; write it like \"60s\" "
        'for seconds, or "500ms", "30s", "5m", "1h30m", "1d"',
        '"60s" for seconds',
    ),
    InFile(
        "fewer tries than none",
        """
        @flow(on=webhook("/a"), retry=-1)  # here
        def store(order: dict): ...
        """,
        "flow 'store': retry=-1: write retry=retry(3, delay=\"1s\"), or a count",
        'retry(3, delay="1s")',
    ),
    InFile(
        "an error by its name",
        """
        @flow(on=webhook("/a"), retry=retry(3, on="OSError"))  # here
        def store(order: dict): ...
        """,
        "retry(on='OSError'): write types of errors, on=(OSError, ValueError)",
        "on=(OSError, ValueError)",
    ),
    InFile(
        "seconds until the next attempt",
        """
        @flow(on=webhook("/a"))
        def store(order: dict):
            raise Retry("later", after=60)  # here
        """,
        'Retry(after=…): cannot read the duration 60; write it like "60s" for seconds, or '
        '"500ms", "30s", "5m", "1h30m", "1d"',
        '"60s" for seconds',
    ),
    InFile(
        "a signal that is returned",
        """
        @flow(on=webhook("/a"))
        def store(order: dict):
            return Fail("no")  # here
        """,
        "Fail(…) is raised, not returned; write `raise Fail(…)`",
        "write `raise Fail(…)`",
    ),
    InFile(
        "a signal that is not raised",
        """
        @flow(on=webhook("/a"))
        def store(order: dict):
            Skip("no")  # here
        """,
        "Skip(…) alone ends nothing; write `raise Skip(…)`",
        "write `raise Skip(…)`",
    ),
)

PLACES = (
    InFile(
        "current() at the top of a file",
        """
        log = current().log  # here
        @flow
        async def report():
            log.info("x")
        """,
        "current() at the top of a file belongs to no run; call it in the flow or the task",
        "call it in the flow",
    ),
    InFile(
        "a flow that the file calls",
        """
        @flow
        async def report(): ...
        report()  # here
        """,
        "the file calls flow 'report' when it is loaded; remove the call: `turnout run "
        "flows.py:report` runs it once",
        "remove the call",
    ),
    InFile(
        "an hour of asyncio.sleep",
        """
        import asyncio
        @flow
        async def report():
            await asyncio.sleep(3600)  # here
        """,
        "asyncio.sleep(3600) keeps its slot and begins anew after a restart; write `await "
        'sleep("3600s")` of turnout',
        '`await sleep("3600s")`',
        warns=True,
    ),
    InFile(
        "a sleep in a task",
        """
        @task
        async def work():
            await sleep("1h")  # here
        @flow
        async def report():
            await work()
        """,
        "sleep(…) in task 'work' is for the flow itself: move it there, before or after the "
        "call of the task",
        "move it there",
    ),
    InFile(
        "a sleep in a def flow",
        """
        @flow
        def report():
            sleep("1h")  # here
        """,
        "flow 'report' is a plain `def` and cannot await sleep(…); write `async def`",
        "write `async def`",
    ),
    InFile(
        "the fields of an approval as a dict",
        """
        @flow
        async def report():
            said = await approval("ops", fields={"limit": float})  # here
        """,
        "approval(fields=…) takes a class, such as a pydantic model or a dataclass, not a "
        "dict: its fields are those of the form",
        "takes a class",
    ),
    InFile(
        "an approval of nobody",
        """
        @flow
        async def report():
            said = await approval()  # here
        """,
        "approval() needs name; `turnout help approval` says how it is written",
        "`turnout help approval`",
    ),
    InFile(
        "a wait for a type",
        """
        @flow
        async def report():
            await wait_for("order.paid", timeout="2d")  # here
        """,
        "wait_for('order.paid') waits for a trigger: write wait_for(event(\"order.paid\")), "
        "and the same in awaits= of the flow",
        'wait_for(event("order.paid"))',
    ),
    InFile(
        "an emitted type with a blank",
        """
        @flow
        async def report():
            await emit("order placed", {})  # here
        """,
        "emit('order placed'): a type is one word, as in emit(\"order.paid\", data), and no "
        "flow can listen to another",
        'emit("order.paid", data)',
    ),
    InFile(
        "a list of waits",
        """
        paid = webhook("/paid")
        @flow(awaits=paid)
        async def report():
            await first([wait_for(paid), sleep("1d")])  # here
        """,
        "first(…) takes the calls themselves, not a list: first(*[…])",
        "first(*[…])",
    ),
    InFile(
        "a path with /hooks",
        """
        @flow(on=webhook("/hooks/a"))  # here
        def report(): ...
        """,
        "flow 'report': webhook:/hooks/a is called at /hooks/hooks/a; a path is what comes "
        'after /hooks: write webhook("/a")',
        'webhook("/a")',
        warns=True,
    ),
    InFile(
        "an address as a path",
        """
        @flow(on=webhook("https://me.example/hooks/a"))  # here
        def report(): ...
        """,
        "webhook('https://me.example/hooks/a'): a path is written like \"/orders\" or "
        '"/t/{tenant}"',
        '"/orders"',
    ),
    InFile(
        "a variable that is not set",
        """
        import os
        @flow(on=webhook("/a", verify="github", secret=os.environ["NO_SUCH_VARIABLE"]))  # here
        def report(): ...
        """,
        "the environment variable NO_SUCH_VARIABLE is not set; set it, or write "
        'os.environ.get("NO_SUCH_VARIABLE", "…"); a trigger and an action take '
        'secret("NO_SUCH_VARIABLE")',
        "set it",
    ),
    InFile(
        "the payload of an event",
        """
        @flow(on=webhook("/a"))
        async def report(event: Event):
            return event.payload["id"]  # here
        """,
        "event has no 'payload'; did you mean event.data?",
        "event.data",
    ),
    InFile(
        "seconds of a cache",
        """
        @task(cache=by_input(ttl=3600))  # here
        def work(): ...
        @flow
        def report():
            work()
        """,
        'cannot read the duration 3600; write it like "3600s" for seconds, or "500ms", '
        '"30s", "5m", "1h30m", "1d"',
        '"3600s" for seconds',
    ),
)

IN_ACTIONS = (*REQUESTS, *POLLS, *ARTEFACTS, *BUDGETS, *WINDOWS, *FLOW_CONTROL, *PLACES)
