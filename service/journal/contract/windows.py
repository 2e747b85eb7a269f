"""What windows need of a journal: closing those that are due, and what operators do to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from turnout.service.domain.windows.firing import Firing
from turnout.service.domain.windows.window import WindowSettings
from turnout.service.journal.records import (
    NOTHING,
    ClosedWindows,
    PastMember,
    PastWindow,
    StoredWindow,
    Told,
    WindowMember,
)


class Windows(Protocol):
    """Open windows. Events join them by `append`; deadlines and operators close them."""

    async def close_due(
        self,
        flows: Mapping[str, Firing],
        *,
        now: datetime,
        limit: int,
        told: Mapping[str, Told] = NOTHING,
    ) -> ClosedWindows:
        """Close windows of these flows that are due, at most `limit`, and queue their runs.

        The conditions of a run are decided now. It is never refused at a bound. Of a flow in `told`
        only windows close whose absence would have been noticed. Those of other flows stay open.
        """

    async def fire_window(
        self, window_id: str, firing: Firing, *, now: datetime, by: str = ""
    ) -> ClosedWindows:
        """Fire an open window at once. Raises `NotFound`."""

    async def drop_window(self, window_id: str, *, now: datetime, by: str = "") -> ClosedWindows:
        """Close an open window without a run; each member gets a decision. Raises `NotFound`."""

    async def open_window(
        self, flow: str, settings: WindowSettings, *, due_at: datetime, now: datetime
    ) -> bool:
        """Open a window without a member, unless this was done for the flow before."""

    async def suspend_windows(self, flow: str, *, now: datetime) -> int:
        """Suspend the open windows of `absent(…)` of a flow that are due later; returns how many.

        A suspended one has no deadline, and keeps the time it has left.
        """

    async def resume_windows(self, flow: str, *, since: datetime | None, now: datetime) -> int:
        """Let the suspended windows of a flow go on, with the time they have left.

        Those that were opened since then begin now. Returns how many were suspended.
        """


class WindowReads(Protocol):
    """What may be read of windows, with the service running or down."""

    async def windows(self, flow: str | None = None, *, limit: int = 100) -> list[StoredWindow]:
        """Return open windows, of one flow or all, the first due first."""

    async def window(self, window_id: str) -> StoredWindow | None:
        """Return a window by its id."""

    async def window_of_run(self, run_seq: int) -> StoredWindow | None:
        """Return the window of a run, None for a run of one event."""

    async def windows_of_event(self, event_seq: int) -> list[StoredWindow]:
        """Return the windows that an event has joined and not left."""

    async def window_members(
        self, window_seq: int, *, first: int = 0, limit: int = 100
    ) -> list[WindowMember]:
        """Return members of a window in the order in which they joined, from a position on."""

    async def open_windows(self) -> dict[str, int]:
        """Count open windows by flow."""

    async def due_windows(self, until: datetime) -> dict[str, int]:
        """Count the open windows that are due by an instant, by flow."""

    async def past_windows(
        self, flow: str, seqs: Sequence[int], *, until: datetime
    ) -> list[PastWindow]:
        """Return these windows of a flow, by seq, as they were at an instant."""

    async def windows_across(
        self, flow: str, *, since: datetime, opened_before: datetime, until: datetime
    ) -> list[PastWindow]:
        """Return windows of a flow that were open at an instant, or opened since and before one.

        As they were at `until`, the first opened first.
        """

    async def was_opened(self, flow: str) -> bool:
        """Whether `open_window` has ever opened a window of a flow."""

    async def past_members(self, window_seq: int, *, until: datetime) -> list[PastMember]:
        """Return the members of a window that came before an instant, in order."""
