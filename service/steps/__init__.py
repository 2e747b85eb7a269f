"""Inside a run: its recorded steps, and what it waits for, calls, emits and undoes.

What authors call, in the order of `handlers/README.md`: `context` (`current()`) · `step`, and
`in_thread` for `def` flows · `mapping` · `cache` · `wait` · `approval` · `children` · `emitting` ·
`patching` · `on_failure` · `history`.

The machinery behind it:
* an attempt: `services` it needs, `scope` for the keys of its calls, `recording`, `durable_marks`;
* how it ends and resumes: `suspension`, `backoff`, `branches`, `compensation` with `undo`;
* polls: `polling` in the flow, `looking` without it, `recorded_call`; in a dry run: `dry_run`;
* values, kept exactly: `codec`, `exact`, `child_arguments`, `failures`;
* changed code: `code_change`, `recorded_arguments`, `digest`;
* an author's mistakes, by file and line: `unawaited`, `asyncio_timeouts`, `author_code`.
"""
