"""Mistakes in flow files, in the order of what they are about."""

from __future__ import annotations

from .mistake import InFile

_DURATIONS = '"500ms", "30s", "5m", "1h30m", "1d"'

NAMES = (
    InFile(
        "retires for retry",
        """
        @flow(on=every("1m"), retires=3)  # here
        def report(): ...
        """,
        "flow() has no option 'retires'; did you mean retry=?",
        "retry=",
    ),
    InFile(
        "a trigger as an option of its own",
        """
        @flow(webhook="/a")  # here
        def report(): ...
        """,
        "flow() has no option 'webhook'; did you mean on=webhook(\"/orders\")?",
        'on=webhook("/orders")',
    ),
    InFile(
        "retries, as other tools call it",
        """
        @task(retries=3)  # here
        def work(): ...
        """,
        "task() has no option 'retries'; did you mean retry=?",
        "retry=",
    ),
    InFile(
        "an option that is like no other",
        """
        @task(colour="red")  # here
        def work(): ...
        """,
        "task() has no option 'colour'; it has name=, retry=, timeout=, pool=, fallback=, cache=, "
        "undo=, limit=, reads=",
        "it has name=",
    ),
    InFile(
        "an import of what other tools have",
        """
        from turnout import schedule  # here
        """,
        "turnout has no 'schedule'; did you mean cron(…) or every(…)?",
        "cron(…) or every(…)",
    ),
    InFile(
        "a misspelt name of the module",
        """
        import turnout

        @turnout.flw  # here
        def report(): ...
        """,
        "turnout has no 'flw'; did you mean flow?",
        "did you mean flow?",
    ),
    InFile(
        "a module that is not installed",
        """
        import no_such_library  # here
        """,
        "No module named 'no_such_library'; install it beside turnout or correct the name",
        "install it beside turnout",
    ),
    InFile(
        "a syntax error",
        """
        def report(:  # here
            pass
        """,
        "syntax error: invalid syntax: def report(:  # here",
        "def report(:",
    ),
    InFile(
        "no flow in the file",
        """
        x = 1
        """,
        "no flow found; decorate a function with @flow",
        "decorate a function with @flow",
    ),
    InFile(
        "exit() in the file",
        """
        import sys
        sys.exit(1)  # here
        """,
        "the file calls exit() when imported; remove the call, or put it under "
        '`if __name__ == "__main__":`',
        "remove the call",
    ),
    InFile(
        "two functions of one name",
        """
        @flow  # here
        def report(): ...

        @flow
        def report(): ...
        """,
        "'report' is defined again at line 6, which replaces this one, so that it never runs; "
        "rename one of them",
        "rename one of them",
    ),
    InFile(
        "two flows of one name",
        """
        @flow
        def report(): ...

        @flow(name="report")  # here
        def other(): ...
        """,
        "flow name 'report' is taken by FILE:2; rename one, or give it a name: @flow(name=\"…\")",
        '@flow(name="…")',
    ),
    InFile(
        "an empty name",
        """
        @flow(name="")  # here
        def report(): ...
        """,
        "flow 'report': name='': a name is 1 to 200 printable characters",
        "1 to 200 printable characters",
    ),
    InFile(
        "a lambda",
        """
        report = flow(lambda: 3)  # here
        """,
        "flow '<lambda>': a lambda has no name; write `def`, or give it one: name=\"…\"",
        "write `def`",
    ),
)

FUNCTIONS = (
    InFile(
        "a trigger without on=",
        """
        @flow(every("1m"))  # here
        def report(): ...
        """,
        "@flow takes its trigger by name: @flow(on=every(…))",
        "@flow(on=every(…))",
    ),
    InFile(
        "a name without name=",
        """
        @flow("bill")  # here
        def report(): ...
        """,
        "@flow stands on a plain function; a name of its own is written @flow(name='bill')",
        "@flow(name='bill')",
    ),
    InFile(
        "a path where a trigger belongs",
        """
        @flow(on="/a")  # here
        def report(): ...
        """,
        "flow 'report': on='/a' is not a trigger; write on=webhook(…), files(…), cron(…), "
        "every(…), at(…) or event(…), or a list of them",
        "on=webhook(…)",
    ),
    InFile(
        "a trigger that is not called",
        """
        @flow(on=every)  # here
        def report(): ...
        """,
        "flow 'report': on=every is the function itself; call it: on=every(…)",
        "on=every(…)",
    ),
    InFile(
        "a method as a flow",
        """
        class Reports:
            @flow  # here
            def report(self): ...
        """,
        "flow 'report' is a method, and a flow is a plain function: move it out of its class, and "
        "give it what it needs of `self` as arguments",
        "move it out of its class",
    ),
    InFile(
        "a method as a task",
        """
        class Client:
            @task  # here
            async def fetch(self): ...
        """,
        "task 'fetch' is a method, and a task is a plain function: move it out of its class, and "
        "give it what it needs of `self` as arguments",
        "move it out of its class",
    ),
    InFile(
        "a flow inside a class",
        """
        class Reports:
            @staticmethod  # here
            @flow
            def report(): ...
        """,
        "flow 'report' is inside class 'Reports', where it is not found; move it to the top of the "
        "file",
        "move it to the top of the file",
    ),
    InFile(
        "a decorator above staticmethod",
        """
        class Reports:
            @flow  # here
            @staticmethod
            def report(): ...
        """,
        "@flow stands on a plain function, not on a method; move it out of its class; write it "
        "directly above `def`, below other decorators",
        "move it out of its class",
    ),
    InFile(
        "a flow that is a class",
        """
        @flow  # here
        class Report: ...
        """,
        "@flow stands on a plain function, not on a class; write it directly above `def`, below "
        "other decorators",
        "directly above `def`",
    ),
    InFile(
        "a flow that is a task too",
        """
        @flow  # here
        @task
        def report(): ...
        """,
        "@flow stands on a plain function, not on SyncTask; write it directly above `def`, below "
        "other decorators",
        "directly above `def`",
    ),
    InFile(
        "a flow that yields",
        """
        @flow  # here
        def report():
            yield 1
        """,
        "flow 'report' yields; a flow returns one value, such as a list",
        "returns one value",
    ),
    InFile(
        "a pool that does not exist",
        """
        @flow(pool="proc")  # here
        def report(): ...
        """,
        "flow 'report' has pool='proc': pool is \"thread\" or \"process\"",
        '"thread" or "process"',
    ),
    InFile(
        "async in worker processes",
        """
        @task(pool="process")  # here
        async def shrink(): ...
        """,
        "task 'shrink' is async; pool=\"process\" runs plain `def` only",
        "plain `def`",
    ),
)

CALLS = (
    InFile(
        "a task that is not awaited",
        """
        @task
        async def work(): ...

        @flow
        async def report():
            work()  # here
        """,
        "work(…) is called and not awaited, so that it never runs; write `await work(…)`",
        "write `await work(…)`",
    ),
    InFile(
        "an emit that is not awaited",
        """
        @flow
        async def report():
            emit("a.b", {})  # here
        """,
        "emit(…) is called and not awaited, so that it never runs; write `await emit(…)`",
        "write `await emit(…)`",
    ),
    InFile(
        "a call as an argument",
        """
        @task
        async def work(x=1): ...

        @flow
        async def report():
            await work(work(1))  # here
        """,
        "work(…) is given work(…) itself, not its result; write `await work(…)`",
        "write `await work(…)`",
    ),
    InFile(
        "an async task in a def flow",
        """
        @task
        async def work(): ...

        @flow
        def report():
            work()  # here
        """,
        "flow 'report' is a plain `def` and cannot await work(…); write `async def`",
        "write `async def`",
    ),
    InFile(
        "a def task in an async flow",
        """
        @task
        def work(): ...

        @flow
        async def report():
            work()  # here
        """,
        "task 'work' is a plain `def`, and flow 'report' is `async def`; write `await work.run(…)`",
        "`await work.run(…)`",
    ),
    InFile(
        "time.sleep in an async flow",
        """
        import time

        @flow
        async def report():
            time.sleep(5)  # here
        """,
        "time.sleep(…) in an `async def` stops every other run and request while it works; write "
        '`await sleep("5s")`',
        '`await sleep("5s")`',
        warns=True,
    ),
    InFile(
        "a subprocess in an async flow",
        """
        from subprocess import run

        @flow
        async def report():
            run(["ls"])  # here
        """,
        "run(…) in an `async def` stops every other run and request while it works; call it in a "
        "`def` task: `.run(…)`",
        "in a `def` task",
        warns=True,
    ),
    InFile(
        "current().run_id",
        """
        @flow
        async def report():
            print(current().run_id)  # here
        """,
        "current() has no 'run_id'; did you mean current().run.id?",
        "current().run.id",
    ),
    InFile(
        "event.payload",
        """
        @flow(on=webhook("/a"))
        async def report(order: Event):
            print(order.payload)  # here
        """,
        "order has no 'payload'; did you mean order.data?",
        "order.data",
    ),
    InFile(
        "event.json in when=",
        """
        @flow(
            on=webhook("/a"),
            when=lambda event: event.json["amount"] > 0,  # here
        )
        async def report(): ...
        """,
        "event has no 'json'; did you mean event.data?",
        "event.data",
    ),
    InFile(
        "a wait for a trigger that the flow does not name",
        """
        paid = webhook("/paid")

        @flow
        async def report():
            await wait_for(paid, timeout="2d")  # here
        """,
        "wait_for(paid, …) waits for a trigger that flow 'report' does not watch; write "
        "@flow(awaits=[paid])",
        "@flow(awaits=[paid])",
    ),
)

POLICY = (
    InFile(
        "retry as a text",
        """
        @flow(retry="3")  # here
        def report(): ...
        """,
        "flow 'report': retry='3': write retry=retry(3, delay=\"1s\"), or a count",
        'retry=retry(3, delay="1s")',
    ),
    InFile(
        "an option of retry that other tools have",
        """
        @flow(retry=retry(3, backoff=2))  # here
        def report(): ...
        """,
        "retry() has no option 'backoff'; did you mean factor=?",
        "factor=",
    ),
    InFile(
        "a delay without a unit",
        """
        @flow(retry=retry(3, delay=5))  # here
        def report(): ...
        """,
        f'cannot read the duration 5; write it like "5s" for seconds, or {_DURATIONS}',
        '"5s" for seconds',
    ),
    InFile(
        "a timeout without a unit",
        """
        @flow(timeout=30)  # here
        def report(): ...
        """,
        "flow 'report': timeout=: cannot read the duration 30; write it like \"30s\" for seconds, "
        f"or {_DURATIONS}",
        '"30s" for seconds',
    ),
    InFile(
        "a timeout in words",
        """
        @flow(timeout="5 minutes")  # here
        def report(): ...
        """,
        "flow 'report': timeout=: cannot read the duration '5 minutes'; write it like "
        f"{_DURATIONS}",
        '"5m"',
    ),
    InFile(
        "retries that multiply",
        """
        @task(retry=4)
        async def work(): ...

        @flow(retry=2)  # here
        async def report():
            await work()
        """,
        "flow 'report': retry=2 and the retry=4 of task 'work' multiply: one call that keeps "
        "failing is made 15 times; keep one of them",
        "keep one of them",
        warns=True,
    ),
    InFile(
        "a list as the default of a flow's parameter",
        """
        @flow(on=every("1m"))  # here
        def report(seen=[]):
            seen.append(1)
        """,
        "flow 'report': all runs share the one list that is the default of 'seen', and what one "
        "adds to it stays; write `seen: list | None = None`",
        "`seen: list | None = None`",
        warns=True,
    ),
    InFile(
        "a dict as the default of a task's parameter",
        """
        @task  # here
        def work(known={}): ...

        @flow
        def report():
            work()
        """,
        "task 'work': all runs share the one dict that is the default of 'known', and what one "
        "adds to it stays; write `known: dict | None = None`",
        "`known: dict | None = None`",
        warns=True,
    ),
    InFile(
        "a hook that takes too much",
        """
        def tell(error, event, more): ...

        @flow(on_failure=tell)  # here
        def report(): ...
        """,
        "flow 'report': on_failure=tell: nothing fills parameter 'more'; a hook takes `error: "
        "RunError` and `event: Event`, and `current()` has the rest",
        "`error: RunError` and `event: Event`",
    ),
    InFile(
        "a hook by its name",
        """
        @flow(on_failure="tell")  # here
        def report(): ...
        """,
        "flow 'report': on_failure='tell': write a function or a @task",
        "write a function",
    ),
    InFile(
        "an undo that takes what nobody gives",
        """
        async def release(foo): ...

        @task(undo=release)  # here
        async def reserve(seat: str): ...
        """,
        "task 'reserve': undo=release: nothing fills parameter 'foo'; an undo takes parameters of "
        "its task (seat), `result` and `key`",
        "(seat), `result` and `key`",
    ),
    InFile(
        "a fallback without the error",
        """
        @task(fallback=lambda: 3)  # here
        async def work(): ...
        """,
        "task 'work': fallback= is called with the error: fallback=lambda error: …, or give the "
        "value itself",
        "fallback=lambda error: …",
    ),
    InFile(
        "a cache as a time",
        """
        @task(cache="1h")  # here
        async def work(): ...
        """,
        "task 'work': cache='1h': write cache=by_input(ttl=\"1h\")",
        'cache=by_input(ttl="1h")',
    ),
    InFile(
        "a limit of a task without a name",
        """
        @task(limit=3)  # here
        async def work(): ...
        """,
        "task 'work': limit=3: a task takes a limit with a name: limit=limit(\"crm\", 3)",
        'limit=limit("crm", 3)',
    ),
    InFile(
        "when= without an argument",
        """
        @flow(on=every("1m"), when=lambda: True)  # here
        def report(): ...
        """,
        "flow 'report': when= takes one argument, the event: when=lambda event: …",
        "when=lambda event: …",
    ),
    InFile(
        "when= as a value",
        """
        @flow(on=every("1m"), when=True)  # here
        def report(): ...
        """,
        "flow 'report': when=True: write a function, when=lambda event: …",
        "when=lambda event: …",
    ),
    InFile(
        "when= that is async",
        """
        async def wanted(event):
            return True

        @flow(on=every("1m"), when=wanted)  # here
        def report(): ...
        """,
        "flow 'report': when= is asked while an event is accepted: `def`, not `async def`",
        "`def`, not `async def`",
    ),
    InFile(
        "no run at all",
        """
        @flow(concurrency=0)  # here
        def report(): ...
        """,
        "flow 'report': limit(0): to stop a flow use `turnout pause`; a limit is at least 1",
        "`turnout pause`",
    ),
    InFile(
        "a key that is the name of a field",
        """
        @flow(on=webhook("/a"), concurrency=limit(8, per="customer"))  # here
        def report(): ...
        """,
        "flow 'report': per='customer': write a function, per=lambda event: …",
        "per=lambda event: …",
    ),
    InFile(
        "an order by the name of a field",
        """
        @flow(on=webhook("/a"), ordered_by="customer")  # here
        def report(): ...
        """,
        "flow 'report': ordered_by='customer': write \"key\", \"partition\", or lambda event: …",
        "lambda event: …",
    ),
    InFile(
        "the order of Kafka for a timer",
        """
        @flow(on=every("1m"), ordered_by="key")  # here
        def report(): ...
        """,
        "flow 'report': ordered_by= names the key or partition of a Kafka record, and events of "
        "every:1m usually have none, so that nothing is ordered; write ordered_by=lambda event: …",
        "ordered_by=lambda event: …",
        warns=True,
    ),
    InFile(
        "on_dead= without an order",
        """
        @flow(on=webhook("/a"), on_dead="block")  # here
        def report(): ...
        """,
        "flow 'report': on_dead=\"block\" holds the ordering key of a dead letter, and the flow "
        "has none; add ordered_by=, or leave it out",
        "add ordered_by=",
        warns=True,
    ),
    InFile(
        "a rate as a text",
        """
        @flow(rate="100/m")  # here
        def report(): ...
        """,
        "flow 'report': rate='100/m': write throttle('100/m'), which lets runs wait, or "
        "rate_limit('100/m'), which skips them, or a list of these",
        "throttle('100/m')",
    ),
    InFile(
        "a rate in words",
        """
        @flow(rate=throttle("100 per minute"))  # here
        def report(): ...
        """,
        'cannot read the rate \'100 per minute\'; write it like "10/s", "100/m", "20/2s", '
        '"1000/h" or "5000/d"',
        '"100/m"',
    ),
    InFile(
        "a mode that does not exist",
        """
        @flow(mode="queue")  # here
        def report(): ...
        """,
        'flow \'report\': mode=\'queue\': write "skip", "replace" or "latest"',
        '"skip", "replace" or "latest"',
    ),
    InFile(
        "a key that nobody uses",
        """
        @flow(on=webhook("/a"), key=lambda event: event.data["id"])  # here
        def report(): ...
        """,
        'flow \'report\': key= says which runs mode= is about; write mode="skip", "replace" or '
        '"latest" with it, or limit(1, per=…) for one run of a key at a time',
        'write mode="skip"',
    ),
    InFile(
        "a dependency as a text",
        """
        @flow(needs="crm")  # here
        def report(): ...
        """,
        "flow 'report': needs='crm': write needs=dependency(\"crm\"), or a list of them",
        'needs=dependency("crm")',
    ),
)

TRIGGERS = (
    InFile(
        "a secret as a text",
        """
        @flow(on=webhook("/a", verify="github", secret="abc"))  # here
        def report(): ...
        """,
        'webhook:/a: secret= takes secret("NAME"), never the secret itself: put its value into the '
        "environment variable NAME",
        'secret("NAME")',
    ),
    InFile(
        "a signature without a secret",
        """
        @flow(on=webhook("/a", verify="github"))  # here
        def report(): ...
        """,
        'webhook:/a: verify= needs a secret: secret=secret("NAME")',
        'secret=secret("NAME")',
    ),
    InFile(
        "a secret that has no value here",
        """
        @flow(on=webhook("/a", verify="github", secret=secret("NO_SUCH_SECRET")))  # here
        def report(): ...
        """,
        "secret 'NO_SUCH_SECRET' has no value here; set the environment variable NO_SUCH_SECRET",
        "set the environment variable NO_SUCH_SECRET",
        warns=True,
    ),
    InFile(
        "mail to people without a mail server",
        """
        @flow(on_failure=notify.email("ops@example.com"))  # here
        def report(): ...
        """,
        "flow 'report': email:ops@example.com takes the secret 'SMTP_URL', which has no value "
        "here; set the environment variable SMTP_URL",
        "set the environment variable SMTP_URL",
        warns=True,
    ),
    InFile(
        "a path without its slash",
        """
        @flow(on=webhook("orders"))  # here
        def report(): ...
        """,
        'webhook(\'orders\'): a path is written like "/orders" or "/t/{tenant}"',
        '"/orders"',
    ),
    InFile(
        "two settings of one webhook",
        """
        @flow(on=webhook("/a"))
        def report(): ...

        @flow(on=webhook("/a", data="text"))  # here
        def other(): ...
        """,
        "trigger 'webhook:/a' has other settings than in flow 'report' (FILE:2); make them equal "
        "or give one name=",
        "make them equal",
    ),
    InFile(
        "a method of a webhook",
        """
        @flow(on=webhook("/a", method="GET"))  # here
        def report(): ...
        """,
        "webhook() has no option 'method'; did you mean methods=[\"POST\"]?",
        'methods=["POST"]',
    ),
    InFile(
        "the home folder",
        """
        @flow(on=files("~/inbox/*.csv"))  # here
        def report(): ...
        """,
        'files("~/inbox/*.csv"): "~" is not expanded; write the folder, or use Path.home() in an '
        "f-string",
        "Path.home()",
    ),
    InFile(
        "a folder without a pattern",
        """
        @flow(on=files("inbox/"))  # here
        def report(): ...
        """,
        'files("inbox/"): it ends in a folder; add a pattern for the files in it, such as "*"',
        'such as "*"',
    ),
    InFile(
        "braces in a pattern",
        """
        @flow(on=files("inbox/*.{csv,txt}"))  # here
        def report(): ...
        """,
        'files("inbox/*.{csv,txt}"): braces are not expanded; give one trigger for each, as in '
        'on=[files(…), files(…)], or write "[{]" for the character',
        "on=[files(…), files(…)]",
    ),
    InFile(
        "then= as a text",
        """
        @flow(on=files("inbox/*.csv", then="move"))  # here
        def report(): ...
        """,
        "files:inbox/*.csv: then= takes move(\"folder/\") or delete(), not 'move'",
        'move("folder/")',
    ),
    InFile(
        "the file of a webhook",
        """
        from pathlib import Path

        @flow(on=webhook("/a"))  # here
        def report(path: Path): ...
        """,
        "flow 'report': parameter 'path' takes the path of a file, and no event of webhook:/a has "
        "one; write on=files(…), or take `event: Event` or the data",
        "on=files(…)",
    ),
    InFile(
        "an interval without a unit",
        """
        @flow(on=every(15))  # here
        def report(): ...
        """,
        f'cannot read the duration 15; write it like "15s" for seconds, or {_DURATIONS}',
        '"15s" for seconds',
    ),
    InFile(
        "no interval",
        """
        @flow(on=every("0s"))  # here
        def report(): ...
        """,
        "every('0s'): an interval is from 100ms to 3660d",
        "from 100ms to 3660d",
    ),
    InFile(
        "a minute that does not exist",
        """
        @flow(on=cron("61 9 * * *"))  # here
        def report(): ...
        """,
        "cron '61 9 * * *': the minute field cannot be '61'; use 0-59, a list (1,15), a range "
        "(1-5), a step (*/5) or *",
        "use 0-59",
    ),
    InFile(
        "a day that never comes",
        """
        @flow(on=cron("0 0 30 2 *"))  # here
        def report(): ...
        """,
        "cron '0 0 30 2 *' never comes: no month in '2' has a day 30",
        "no month in '2' has a day 30",
    ),
    InFile(
        "a zone that does not exist",
        """
        @flow(on=cron("0 9 * * *", tz="Europe/Berln"))  # here
        def report(): ...
        """,
        "'Europe/Berln' is not an IANA time zone; did you mean Europe/Berlin or Europe/Dublin or "
        "Europe/Belfast?",
        "did you mean Europe/Berlin",
    ),
    InFile(
        "timezone for tz",
        """
        @flow(on=cron("0 9 * * *", timezone="Europe/Berlin"))  # here
        def report(): ...
        """,
        "cron() has no option 'timezone'; did you mean tz=?",
        "tz=",
    ),
    InFile(
        "an instant in words",
        """
        @flow(on=at("tomorrow"))  # here
        def report(): ...
        """,
        "cannot read the time 'tomorrow'; write it like 2026-12-01T09:00 with tz=, or with its "
        "offset, 2026-12-01T09:00+01:00",
        "2026-12-01T09:00 with tz=",
    ),
    InFile(
        "a Kafka topic without a group",
        """
        @flow(on=kafka("orders"))  # here
        def report(): ...
        """,
        'kafka() needs group=; write kafka("orders", group="billing")',
        'kafka("orders", group="billing")',
    ),
    InFile(
        "a start that does not exist",
        """
        @flow(on=kafka("orders", group="billing", start="begin"))  # here
        def report(): ...
        """,
        'kafka(start=\'begin\'): write "latest", "earliest" or an instant',
        '"latest", "earliest"',
    ),
    InFile(
        "the offset of other clients",
        """
        @flow(on=kafka("orders", group="billing", auto_offset_reset="earliest"))  # here
        def report(): ...
        """,
        "kafka() has no option 'auto_offset_reset'; did you mean start=\"latest\"?",
        'start="latest"',
    ),
    InFile(
        "a type with a blank",
        """
        @flow(on=event("order placed"))  # here
        def report(): ...
        """,
        "event('order placed'): a type is one word, as in event(\"com.example.order.paid\")",
        'event("com.example.order.paid")',
    ),
)

PARAMETERS = (
    InFile(
        "a parameter that says nothing",
        """
        @flow(on=webhook("/a"))  # here
        def report(order): ...
        """,
        "flow 'report': parameter 'order' has no annotation; say what fills it: `order: Event`, a "
        "model, `dict`, `bytes`, `str` or `Path`",
        "`order: Event`",
    ),
    InFile(
        "two parameters of one body",
        """
        @flow(on=webhook("/a"))  # here
        def report(order: dict, customer: dict): ...
        """,
        "flow 'report': parameters 'order' and 'customer' would both be filled from the event's "
        "data; declare one model that holds both, or take `event: Event`",
        "declare one model",
    ),
    InFile(
        "a type that does not exist",
        """
        @flow(on=webhook("/a"))  # here
        def report(order: "Ordre"): ...
        """,
        "flow 'report': annotation 'Ordre' is not known when the flow runs; import or define it at "
        "the top of the file, not under TYPE_CHECKING or inside a function",
        "at the top of the file",
    ),
    InFile(
        "parameters with a star",
        """
        @flow(on=webhook("/a"))  # here
        def report(*orders): ...
        """,
        "flow 'report': *orders cannot be filled; name each parameter",
        "name each parameter",
    ),
)

MORE = (
    InFile(
        "two files that import each other",
        """
        from imported_by_mistake import price
        """,
        "circular import: imported_by_mistake imports what imports it again; move what both need "
        "into a third file, whose name begins with _",
        "into a third file",
        beside={
            "imported_by_mistake.py": "from imports_it_again import tax\nprice = 3\n",
            "imports_it_again.py": "from imported_by_mistake import price  # here\ntax = 1\n",
        },
    ),
    InFile(
        "an instant that is past",
        """
        @flow(on=at("2020-01-01T00:00:00Z"))  # here
        def report(): ...
        """,
        "flow 'report': at:2020-01-01T00:00:00Z is past and never ticks again; give it a later "
        "instant, or remove it",
        "give it a later instant",
        warns=True,
    ),
    InFile(
        "a flow inside a function",
        """
        def make():
            @flow(on=every("1m"))  # here
            def hidden(): ...

        make()

        @flow
        def report(): ...
        """,
        "flow 'hidden' is inside a function, where it is not found; move it to the top of the "
        "file, or keep what the function returns under a name there",
        "move it to the top of the file",
        warns=True,
    ),
    InFile(
        "the topic of other clients",
        """
        @flow(on=kafka(topic="orders", group="billing"))  # here
        def report(): ...
        """,
        'kafka() has no option \'topic\'; did you mean kafka("orders", group="billing")?',
        'kafka("orders", group="billing")',
    ),
    InFile(
        "seconds to sleep",
        """
        @flow
        async def report():
            await sleep(5)  # here
        """,
        f'sleep(…): cannot read the duration 5; write it like "5s" for seconds, or {_DURATIONS}',
        '"5s" for seconds',
    ),
    InFile(
        "seconds to wait for an approval",
        """
        @flow
        async def report():
            await approval("ops", timeout=60)  # here
        """,
        'approval(timeout=…): cannot read the duration 60; write it like "60s" for seconds, or '
        f"{_DURATIONS}",
        '"60s" for seconds',
    ),
    InFile(
        "a list of branches",
        """
        @task
        async def work(x): ...

        @flow
        async def report():
            await gather([work(1), work(2)])  # here
        """,
        "gather(…) takes the calls themselves, not a list: gather(*[…])",
        "gather(*[…])",
    ),
    InFile(
        "a record that is not published",
        """
        @flow
        async def report():
            kafka.publish("orders", {})  # here
        """,
        "kafka.publish(…) is called and not awaited, so that it never runs; write "
        "`await kafka.publish(…)`",
        "write `await kafka.publish(…)`",
    ),
    InFile(
        "the map of a def task that is not awaited",
        """
        @task
        def work(x): ...

        @flow
        async def report():
            work.map([1, 2])  # here
        """,
        "work.map(…) is called and not awaited, so that it never runs; write `await work.map(…)`",
        "write `await work.map(…)`",
    ),
    InFile(
        "a window beside a trigger",
        """
        @flow(on=[debounce(webhook("/a"), "30s"), webhook("/b")])  # here
        def report(orders: list[dict]): ...
        """,
        "flow 'report': debounce(…) is a window, which stands alone in on=: give other triggers a "
        "flow of their own, and name a trigger in awaits= and cancel_on=",
        "give other triggers a flow of their own",
    ),
    InFile(
        "a batch of none",
        """
        @flow(on=batch(webhook("/a"), 0, "30s"))  # here
        def report(orders: list[dict]): ...
        """,
        "batch(n=0): write a count from 1 to 10,000",
        "from 1 to 10,000",
    ),
    InFile(
        "the key of a limit",
        """
        @flow(on=webhook("/a"), concurrency=limit(8, key=lambda event: 1))  # here
        def report(): ...
        """,
        "limit() has no option 'key'; did you mean per=?",
        "per=",
    ),
    InFile(
        "a scheme that does not exist",
        """
        @flow(on=webhook("/a", verify="gihub", secret=secret("PATH")))  # here
        def report(): ...
        """,
        'no signature scheme \'gihub\'; there are "github", "slack", "stripe", "bearer", '
        '"none" and hmac("X-Header")',
        '"github"',
    ),
    InFile(
        "a result of one webhook for two flows",
        """
        @flow(on=webhook("/a", respond=True))
        def report(): ...

        @flow(on=webhook("/a", respond=True))  # here
        def other(): ...
        """,
        "webhook:/a answers with the result of its run (respond=True), so it feeds one flow only, "
        "and 'report' (FILE:2) is another",
        "one flow only",
    ),
    InFile(
        "a resource as a type",
        """
        @resource
        async def database():
            yield 1

        @flow  # here
        async def report(db: database): ...
        """,
        "flow 'report': 'database' is a resource, not a type; write it as `Annotated[T, database]`",
        "`Annotated[T, database]`",
    ),
    InFile(
        "a queue that takes nothing",
        """
        @flow(on=webhook("/a"), max_queued=0)  # here
        def report(): ...
        """,
        "flow 'report': max_queued=0: a flow that takes nothing is a paused trigger, `turnout "
        "pause`; write at least 1",
        "write at least 1",
    ),
    InFile(
        "an old name that is still there",
        """
        @flow(was="report")  # here
        def report(): ...
        """,
        "was='report' takes over the runs of a flow that is still there; remove that flow, or was=",
        "remove that flow, or was=",
    ),
    InFile(
        "a priority that does not exist",
        """
        @flow(on=webhook("/a"), priority="urgent")  # here
        def report(): ...
        """,
        'flow \'report\': priority=\'urgent\': write "high", "normal" or "low", or a function of '
        "the event that returns one of them",
        '"high", "normal" or "low"',
    ),
    InFile(
        "a policy of missed ticks that does not exist",
        """
        @flow(on=cron("0 9 * * *", missed="all"))  # here
        def report(): ...
        """,
        'cron:0 9 * * *: missed=\'all\' is not one of "run_once", "skip", "run_all"',
        '"run_once", "skip", "run_all"',
    ),
    InFile(
        "state that several runs may change at once",
        """
        @flow(on=every("1m"))  # here
        async def report():
            current().state.set(1)
        """,
        "flow 'report' keeps state between runs, and several of them may run at once: a run whose "
        "state another one has changed starts over; write concurrency=1, or ordered_by= for a "
        "state of each key",
        "write concurrency=1",
        warns=True,
    ),
    InFile(
        "a budget that nobody takes from",
        """
        @flow
        async def scale():
            budget("scale", max_changes=10, per="1h")  # here
        """,
        "budget(…) alone takes nothing: write `await budget(…).take(1)` before the change",
        "`await budget(…).take(1)` before the change",
    ),
    InFile(
        "a command that is one text",
        """
        @flow
        async def clean(day: str):
            await shell(f"rm -r reports/{day}")  # here
        """,
        "shell(…) is given one text: write a list of its words, or shell=True to have /bin/sh read "
        "it",
        "write a list of its words",
    ),
    InFile(
        "a command whose text an event is part of",
        """
        @flow(on=webhook("/clean"))
        async def clean(data: dict):
            await shell(f"rm -r reports/{data['day']}", shell=True)  # here
        """,
        "shell(…, shell=True): parts of the text come from the event, so whoever sends it chooses "
        "what this machine runs; write a list of arguments, or shlex.quote(…) around each part",
        "write a list of arguments",
        warns=True,
    ),
    InFile(
        "a command that nobody awaits",
        """
        @flow
        async def clean():
            shell(["rm", "-r", "reports"])  # here
        """,
        "shell(…) is called and not awaited, so that it never runs; write `await shell(…)`",
        "write `await shell(…)`",
    ),
    InFile(
        "a command that blocks the service",
        """
        @flow
        async def clean():
            shell.blocking(["rm", "-r", "reports"])  # here
        """,
        "shell.blocking(…) would block the service in an `async def`: write `await shell(…)`",
        "write `await shell(…)`",
    ),
    InFile(
        "a poll with a plain function",
        """
        def exported(job: str) -> str | Pending:
            return Pending()

        @flow
        async def export(job: str):
            return await poll(exported, job)  # here
        """,
        "poll(exported, …): a look is a task: write @task above its function, and give the task "
        "itself",
        "write @task above its function",
    ),
    InFile(
        "a poll that waits no time between its looks",
        """
        @task
        def exported(job: str) -> str | Pending:
            return Pending()

        @flow
        async def export(job: str):
            return await poll(exported, job, every="20ms")  # here
        """,
        "poll(every='20ms') looks without rest, with a write to disk each time; write "
        'every="1s" or more',
        'every="1s" or more',
        warns=True,
    ),
    InFile(
        "a poll whose check has no way to say not yet",
        """
        @task
        async def exported(job: str) -> str | None:
            return None

        @flow
        async def export(job: str):
            return await poll(exported, job)  # here
        """,
        "poll(exported, …): task 'exported' never returns Pending(), so the first look ends the "
        "poll, also with None; return Pending() while there is nothing",
        "return Pending()",
        warns=True,
    ),
    InFile(
        "a poll with a task that is undone",
        """
        def back(job: str) -> None: ...

        @task(undo=back)
        def exported(job: str) -> str | Pending:
            return Pending()

        @flow
        async def export(job: str):
            return await poll(exported, job)  # here
        """,
        "poll(exported, …): task 'exported' has undo=, and a look is made many times: leave it out",
        "leave it out",
    ),
)

IN_FILES = (*NAMES, *FUNCTIONS, *CALLS, *POLICY, *TRIGGERS, *PARAMETERS, *MORE)
