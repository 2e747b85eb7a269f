"""Compares the windows of a flow as they would have closed with those that really did.

What has fired is decided by the conditions of the flow, like a run of one event. Not here: when a
window closes (`virtual_windows`), and what its run does to others (`virtual_runs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from turnout.service.domain.decisions import Reason
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import RunState
from turnout.service.domain.units import EPOCH
from turnout.service.domain.windows.window import WindowSettings
from turnout.service.journal.contract import Reads
from turnout.service.journal.records import (
    Decision,
    NewMember,
    NewRun,
    PastMember,
    PastRun,
    PastWindow,
)
from turnout.service.project import AnyFlow

from .past import known_run, of_window
from .report import MOST_EVENTS, OPEN, STARTED, Asked, Closing, WindowDifference, WindowReport
from .virtual_windows import Joining, VirtualWindow, VirtualWindows, micros

Arrive = Callable[[NewRun, datetime, PastRun | None], Decision | None]
"""Decides about the run of a window that has fired; returns why it is refused."""


@dataclass(slots=True)
class Closed:
    """A window that would have closed; `would` may still change while its run lives.

    `past` is the real window with the same events.
    """

    window: VirtualWindow
    at: datetime | None
    past: PastWindow | None
    would: str
    why: str = ""


class Windows:
    """The windows of one flow in a period: as they were, and as they would have been.

    `told` is called with each event of which it is clear what it would have come to.
    """

    def __init__(
        self,
        flow: AnyFlow,
        name: str,
        report: WindowReport,
        *,
        arrive: Arrive,
        accepted: Callable[[str, Closed], None],
        told: Callable[[Asked], None],
        member_of: Callable[[Event], NewMember | None],
    ) -> None:
        assert flow.window is not None
        self.report = report
        self.settings: WindowSettings = flow.window.settings
        self._flow = flow
        self._name = name
        self._arrive = arrive
        self._accepted = accepted
        self._told = told
        self._member_of = member_of
        self._past: dict[int, PastWindow] = {}  # those of which no virtual one is the same so far
        self._paired: set[int] = set()
        self._until = 0
        self._alone: dict[tuple[str, int], PastWindow] = {}
        self._first: list[PastWindow] = []  # that opened as the flow was first served
        self._windows = VirtualWindows(self.settings, self, self._alone)

    # ---------------------------------------------------------------- real windows

    async def begin(self, reads: Reads, since: datetime, until: datetime) -> None:
        """Take the windows that were open as the period began, with their members."""
        self._until = micros(until)
        opens_alone = self.settings.kind == "absent" and len(self.settings.parts) == 1
        across = await reads.windows_across(
            self._name, since=since, opened_before=until if opens_alone else since, until=until
        )
        known = [past for past in across if not self.settings.is_another(past.settings)]
        for past in known:
            self._know(past)
        if opens_alone:
            await self._begin_alone(reads, known, since)
            return
        left = await self._left_since(reads, known, since)
        for past in known:
            members = await reads.past_members(past.seq, until=since)
            joining = [(each.event_seq, self._restored(past, each)) for each in members]
            joining += left.get(past.id, ())
            for _, each in sorted(joining, key=lambda pair: pair[0]):
                self._windows.offer(each)

    async def _begin_alone(
        self, reads: Reads, known: Sequence[PastWindow], since: datetime
    ) -> None:
        """Take windows without a member; one opens as the flow is first served."""
        assert self._flow.window is not None
        for past in known:
            self._alone[past.key, micros(past.opened_at)] = past
            if past.opened_at < since:
                self._windows.open_alone(past.key, micros(past.opened_at), None, past)
            elif not past.key:
                self._first.append(past)
        if self._flow.window.per is None and not await reads.was_opened(self._name):
            self._open_first(micros(since), None)

    def _restored(self, past: PastWindow, member: PastMember) -> Joining:
        """Return a member of before the period; the settings are those it was opened with."""
        new = NewMember(
            flow=self._flow.name, settings=past.settings,
            part=past.settings.parts[member.part] if past.settings.parts else "",
            key=past.key, firing=self._flow.firing, order_key=member.order_key,
            keys=member.keys, priority=member.priority,
        )  # fmt: skip
        return Joining(new, member.event_id, micros(member.at), member.bytes, None, past)

    async def _left_since(
        self, reads: Reads, known: Sequence[PastWindow], since: datetime
    ) -> dict[str, list[tuple[int, Joining]]]:
        """Return members of before the period that have left their windows in it, by window."""
        found: dict[str, list[tuple[int, Joining]]] = {}
        if not known or self.settings.kind not in ("count", "sequence"):
            return found
        windows = {past.id for past in known}
        span = max(timedelta(microseconds=past.settings.within) for past in known)
        triggers, after = [trigger.name for trigger in self._flow.triggers], 0
        while page := await reads.arrivals(
            self._name, triggers, since=since - span, until=since, after_seq=after
        ):
            after = page[-1].stored.seq
            for stored, _, joined in page:
                window = None
                if joined is None:
                    window = _left_later(self._name, stored.decisions, since)
                new = self._member_of(stored.event) if window in windows else None
                if window is not None and new is not None:
                    event, at = stored.event, micros(stored.accepted_at)
                    joining = Joining(new, event.id, at, len(event.body), None, None)
                    found.setdefault(window, []).append((stored.seq, joining))
        return found

    async def read(self, reads: Reads, seqs: Sequence[int], until: datetime) -> None:
        """Read the real windows of events that come next."""
        unknown = [seq for seq in dict.fromkeys(seqs) if seq not in self._past]
        if unknown:
            for past in await reads.past_windows(self._name, unknown, until=until):
                self._know(past)

    def _know(self, past: PastWindow) -> None:
        self._past[past.seq] = past
        if _only_counts(past.settings, past.state):
            return
        did = of_window(self._name, past)
        self.report.did[did] += 1
        self.report.runs_did += did == STARTED

    def past(self, seq: int | None) -> PastWindow | None:
        """Return the real window of an event."""
        return None if seq is None else self._past.get(seq)

    def did(self, past: PastWindow, accepted_at: datetime) -> str:
        """Return what an event came to in a real window."""
        did = of_window(self._name, past)
        return self._while_open(past.settings, micros(accepted_at)) if did == OPEN else did

    def _while_open(self, settings: WindowSettings, accepted_at: int) -> str:
        """Return what an event has come to in a window that is open at the end.

        One that counts no more has expired; its window may notice later.
        """
        is_aged = settings.kind == "count" and accepted_at + settings.within <= self._until
        return Reason.EXPIRED if is_aged else OPEN

    # ---------------------------------------------------------------- what happens

    def offer(self, joining: Joining) -> str | None:
        """Offer an event; returns why it does not join, None if it does."""
        return self._windows.offer(joining)

    def next_at(self) -> datetime | None:
        """Return when something happens next."""
        at = self._windows.next_at()
        if self._first:
            opens = micros(self._first[0].opened_at)
            at = opens if at is None else min(at, opens)
        return None if at is None else _instant(at)

    def next_is_closed_by_hand(self, window: int | None) -> bool:
        """Whether what happens next is that an operator closes this real window."""
        return window is not None and self._windows.closed_by_hand_next() == window

    def go_on(self) -> None:
        """Let happen what does next."""
        at = self._windows.next_at()
        if self._first and (at is None or micros(self._first[0].opened_at) < at):
            past = self._first.pop(0)
            self._open_first(micros(past.opened_at), past)
        else:
            self._windows.close_next()

    def _open_first(self, at: int, past: PastWindow | None) -> None:
        """Open the window of an absence that begins as the flow is first served."""
        self._windows.open_alone("", at, at + self.settings.within, past)

    def closed(self, window: VirtualWindow, outcome: str, at: int, words: str) -> None:
        """Take a window that has closed: decide about its run, if it has fired."""
        if _only_counts(window.settings, outcome):
            self.released(window.members, words)
            return
        closed = Closed(window, _instant(at), self._same(window), outcome, words)
        if outcome != "fired":
            self.settle(closed)
            return
        closed.would = STARTED
        past, run = closed.past, self._run_of(window)
        real = None if past is None else known_run(past.run, of_window(self._name, past))
        refused = self._arrive(run, _instant(at), real)
        if refused is None:
            self._accepted(run.id, closed)
            return
        closed.would, closed.why = refused.reason, refused.detail
        self.settle(closed)

    def released(self, members: Sequence[Joining], words: str) -> None:
        """Take members that have left a window that stays open."""
        for each in members:
            self._tell(each, Reason.EXPIRED, words)

    def _run_of(self, window: VirtualWindow) -> NewRun:
        run = NewRun(
            id=mint_id(), flow=self._flow.name, state=RunState.QUEUED,
            conditions=self._flow.firing.conditions,
        )  # fmt: skip
        if window.members:
            chosen = window.members[-1 if window.settings.keep == "last" else 0].new
            run.order_key, run.keys = chosen.order_key, chosen.keys
            run.priority = chosen.priority
        return run

    def _same(self, window: VirtualWindow) -> PastWindow | None:
        """Return the real window with the same events, None if there is none."""
        past = window.past
        if past is None:
            return None
        if not window.members:
            return past if past.members <= 1 else None  # it has its own event, if it has fired
        if len(window.members) != past.members:
            return None
        return past if all(each.past is past for each in window.members) else None

    # ---------------------------------------------------------------- what is told

    def settle(self, closed: Closed) -> None:
        """Tell what a window would have come to, now that it is clear."""
        window, past = closed.window, closed.past
        for each in window.members:
            self._tell(each, closed.would, closed.why)
        closing = Closing(
            window.key, _instant(window.opened_at), closed.at, closed.would, len(window.members),
            [each.event for each in window.members[:MOST_EVENTS]],
        )  # fmt: skip
        self.report.add(closing)
        self.report.runs_would += closed.would == STARTED
        if past is not None:
            self._past.pop(past.seq, None)
        elif window.past is not None and window.past.seq not in self._paired:
            past = window.past
            self._paired.add(past.seq)
        if past is None or closed.past is None or of_window(self._name, past) != closed.would:
            self._differs(past, closing, closed.why)

    def end(self, until: datetime) -> None:
        """Tell of the windows that are open at the end, and of real ones without a virtual one."""
        for window in self._windows.end(micros(until)):
            if _only_counts(window.settings, OPEN):
                for each in window.members:
                    self._tell(each, self._while_open(window.settings, each.at), "")
            else:
                self.settle(Closed(window, None, self._same(window), OPEN))
        for past in self._past.values():
            if past.seq not in self._paired and not _only_counts(past.settings, past.state):
                self._differs(past, None, "")

    def notes(self) -> Sequence[str]:
        """Return what could not be seen."""
        found = []
        if put_off := self._windows.put_off:
            found.append(
                "absences put off past their deadline, because their trigger or the service was "
                f"paused, down or behind: {put_off}; they are taken as they went"
            )
        if not_told := self._windows.not_told:
            found.append(
                "absences at whose deadline it is not known whether their trigger was paused, down "
                f"or behind: {not_told}; they are taken to be told"
            )
        return found

    async def name_events(self, reads: Reads) -> None:
        """Name the events of the real windows that are shown."""
        for each in self.report.differences:
            if each.did is not None and each.window is not None:
                members = await reads.window_members(each.window, limit=MOST_EVENTS)
                each.did.events = [member.event_id for member in members]

    def _tell(self, member: Joining, would: str, why: str) -> None:
        if member.asked is not None:
            member.asked.would, member.asked.why = would, why
            self._told(member.asked)

    def _differs(self, past: PastWindow | None, would: Closing | None, why: str) -> None:
        if past is None:
            self.report.differ(WindowDifference(None, would, why))
            return
        did = Closing(
            past.key, past.opened_at, past.closed_at, of_window(self._name, past), past.members
        )
        self.report.differ(WindowDifference(did, would, why, past.seq))


def _left_later(flow: str, decisions: Sequence[Mapping[str, Any]], since: datetime) -> str | None:
    """Return the window that an event has left since an instant, by the decisions about it."""
    for made in decisions:
        if made["flow"] == flow and made["reason"] == Reason.EXPIRED:
            at = datetime.fromisoformat(made["at"])
            return str(made["facts"].get("window")) if at >= since else None
    return None


def _only_counts(settings: WindowSettings, outcome: str) -> bool:
    """Whether it is each event by itself that came to this, and not the window.

    When a window of `count` closes without a run depends on when it was looked at.
    """
    return settings.kind == "count" and outcome in (OPEN, Reason.EXPIRED)


def _instant(at: int) -> datetime:
    return EPOCH + timedelta(microseconds=at)
