"""What is wrong with a flow's window, beyond what its author has written wrong by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from turnout.service.domain.errors import SetupError
from turnout.service.domain.windows.window import Window

if TYPE_CHECKING:
    from . import AnyFlow


def window_problems(flow: AnyFlow, flows: Sequence[AnyFlow]) -> Iterator[SetupError]:
    """Yield the problems of a flow's window among the flows of a project."""
    window = flow.window
    if window is None:
        return
    for message in (
        *_answers(window),
        *_takes_data_of_nothing(flow, window),
        *_timeout(window, flows),
    ):
        yield SetupError(f"{flow.words}: {message}", file=flow.file, line=flow.line)


def _answers(window: Window) -> Iterator[str]:
    """Say which triggers wait for the result of a run that does not exist yet."""
    for trigger in window.triggers:
        if getattr(trigger, "respond", False):
            yield (
                f"{trigger.name} answers with the result of its run (respond=True, ?wait=), and a "
                f"run of {window.kind}(…) starts later; leave respond= out"
            )


def _takes_data_of_nothing(flow: AnyFlow, window: Window) -> Iterator[str]:
    """Say which parameter nothing fills: what has not come has no data."""
    if window.kind != "absent" or len(window.triggers) > 1:
        return
    try:
        wanted = flow.binding.filled_from_data
    except SetupError:
        return  # told already
    if wanted:
        yield (
            f"parameter {wanted[0]!r}: a run of absent(…) without after= has no data; take no "
            "parameter, or `event: Event`"
        )


def _timeout(window: Window, flows: Sequence[AnyFlow]) -> Iterator[str]:
    """Say why the flow of `on_timeout=` cannot get the members."""
    target = window.on_timeout
    if target is None:
        return
    if not any(each is target for each in flows):
        yield (
            f"on_timeout={target.name}: that flow is not served with this one; define it in the "
            "same file, or import it there"
        )
        return
    try:
        _ = target.member_binding
    except SetupError as error:
        yield f"on_timeout={target.name}: {error.message}"
