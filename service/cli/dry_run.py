"""What `turnout run --dry-run` prints: what would change, and where it went no further."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .output import complain, print_json, say
from .tables import Column, table

if TYPE_CHECKING:
    from turnout.service.domain.run import Run
    from turnout.service.steps.dry_run import DryRun


def report_dry_run(noted: DryRun, run: Run, as_json: bool) -> None:
    """Print a dry run; exits 1 if the flow raised an error."""
    failed = None if noted.ended is not None or run.error is None else run.error
    if as_json:
        print_json(_document(noted, run, None if failed is None else failed.as_dict()))
    else:
        if noted.steps or failed is None:
            table(
                (Column("would"), Column("what"), Column("step")),
                ((each.kind, each.words, each.step) for each in noted.steps.values()),
                empty="nothing would change",
            )
        if noted.ended is not None:
            say(f"\nstopped here: {noted.ended}")
        elif failed is not None:
            complain(f"{run.flow} {run.state}: {failed.type}: {failed.message}")
        elif run.reason:
            say(f"\n{run.flow} {run.state}: {run.reason}")
        else:
            say(f"\nit returns {noted.returned!r}")
    if failed is not None:
        raise SystemExit(1)


def _document(noted: DryRun, run: Run, error: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "flow": run.flow,
        "would": [each._asdict() for each in noted.steps.values()],
        "returned": None if noted.returned is None else repr(noted.returned),
        "ended": noted.ended,
        "error": error,
    }
