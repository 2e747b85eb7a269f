"""Open windows as a write knows them: read once, changed in memory, and written together.

What one transaction does to a window is kept in memory and written once: a window that opens and
fills in one append leaves no intermediate state. Not here: what changes a window (`windows`).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apsw

from turnout.service.domain.errors import NotFound
from turnout.service.domain.event import mint_id
from turnout.service.domain.windows.window import OpenWindow, WindowSettings
from turnout.service.journal.records import NewMember

from .bulk import BulkStatement, insert
from .columns import overwritten
from .statements import load

_SQL = load("windows")


class WindowRow(NamedTuple):
    """The columns of the table `windows` that the engine writes."""

    seq: int
    id: str
    flow: str
    key: str
    settings: str
    state: str
    opened_at: int
    due_at: int | None
    closed_at: int | None
    members: int
    bytes: int
    positions: int


class MemberRow(NamedTuple):
    """The columns of the table `window_events` that are written when an event joins."""

    window_seq: int
    position: int
    event_seq: int
    part: int
    at: int
    bytes: int
    keys: str | None
    order_key: str | None
    priority: int | None


_FIXED = ("seq", "id", "flow", "key", "settings", "opened_at")
WRITE = BulkStatement(
    f"INSERT INTO windows ({', '.join(WindowRow._fields)}) {{rows}} ON CONFLICT (seq)"
    f" DO UPDATE SET {overwritten(WindowRow._fields, _FIXED)}"
    ", remaining = iif(excluded.due_at IS NULL, remaining, NULL)",
    WindowRow._fields,
)
JOIN = insert("window_events", MemberRow._fields)


@dataclass(slots=True)
class KnownWindow:
    """An open window as this transaction has it.

    `is_new`: it was opened here, so that all its members are in `joined`: as rows, or as a range of
    events of which the rules of the flow say nothing. `scheduled` is the id of the run that waits
    for it, once it is known.
    """

    seq: int
    id: str
    flow: str
    key: str
    settings: WindowSettings
    opened_at: int
    due_at: int | None = None
    members: int = 0
    bytes: int = 0
    positions: int = 0
    state: str = "open"
    closed_at: int | None = None
    is_new: bool = False
    scheduled: str | None = None
    joined: list[MemberRow | range] = field(default_factory=list)

    def events(self) -> list[int]:
        """Return the seqs of the events in `joined`."""
        return [
            seq
            for each in self.joined
            for seq in (each if isinstance(each, range) else (each.event_seq,))
        ]

    def row(self) -> WindowRow:
        """Return the window as a row."""
        return WindowRow(
            self.seq, self.id, self.flow, self.key, self.settings.to_json(), self.state,
            self.opened_at, self.due_at, self.closed_at, self.members, self.bytes, self.positions,
        )  # fmt: skip


class KnownWindows:
    """The windows that a transaction has read, opened or changed."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._last: int = connection.execute(_SQL["last_window"]).get
        self._open: dict[tuple[str, str], KnownWindow | None] = {}
        self._changed: dict[int, KnownWindow] = {}
        self._joined: list[Any] = []

    @property
    def in_use(self) -> bool:
        """Whether this transaction knows of a window."""
        return bool(self._open or self._changed)

    def flush(self) -> None:
        """Write what has changed so far."""
        if self._changed:
            WRITE.run(self._connection, [value for each in self._changed.values()
                                          for value in each.row()])  # fmt: skip
            self._changed.clear()
        if self._joined:
            JOIN.run(self._connection, self._joined)
            self._joined.clear()

    def begin(self) -> None:
        """Begin a write: what an earlier one knew is written, or rolled back."""
        if self._open or self._changed:
            self.forget()

    def forget(self) -> None:
        """Forget what is known of windows and not written yet."""
        self._open.clear()
        self._changed.clear()
        self._joined.clear()

    def changed(self, window: KnownWindow) -> None:
        """Note that a window is to be written."""
        self._changed[window.seq] = window

    def joined(self, window: KnownWindow, row: MemberRow) -> None:
        """Note that a member is to be written."""
        self._joined += row
        window.joined.append(row)
        self._changed[window.seq] = window

    def join_together(
        self, window: KnownWindow, events: range, part: int, at: int, size: int
    ) -> None:
        """Let events that are in the table join one behind the other."""
        offset = events[0] - window.positions - 1
        window.positions += len(events)
        window.members += len(events)
        window.bytes += size
        self._connection.execute(
            _SQL["join_together"], (window.seq, offset, part, at, events[0], events[-1])
        )
        window.joined.append(events)
        self._changed[window.seq] = window

    def set_open(self, flow: str, key: str, window: KnownWindow | None) -> None:
        """Say which window of a flow and a key is open now."""
        self._open[flow, key] = window

    def forget_open(self) -> None:
        """Read open windows again when they are asked for."""
        self._open.clear()

    def new(self, new: NewMember, at: int) -> KnownWindow:
        """Open a window of a flow and a key."""
        self._last += 1
        assert new.key is not None
        window = KnownWindow(
            self._last, mint_id(), new.flow, new.key, new.settings, opened_at=at, is_new=True
        )  # fmt: skip
        self._open[new.flow, new.key] = window
        self._changed[window.seq] = window
        return window

    def new_alone(self, flow: str, settings: WindowSettings, at: int, due_at: int) -> None:
        """Write a window without a member."""
        self._last += 1
        window = KnownWindow(self._last, mint_id(), flow, "", settings, opened_at=at, due_at=due_at)
        WRITE.run(self._connection, list(window.row()))

    def open_here(self, flow: str, key: str) -> KnownWindow | None:
        """Return the open window of a flow and a key, None if this transaction knows of none."""
        return self._open.get((flow, key))

    def find(self, flow: str, key: str) -> KnownWindow | None:
        """Return the open window of a flow and a key, read once in a transaction."""
        if (flow, key) not in self._open:
            row: Any = self._connection.execute(_SQL["open_of"], (flow, key)).fetchone()
            self._open[flow, key] = None if row is None else opened_from(row)
        return self._open[flow, key]

    def by_id(self, window_id: str) -> KnownWindow:
        """Return an open window, as the journal has it; raises `NotFound`."""
        self.forget()
        row: Any = self._connection.execute(_SQL["open_by_id"], (window_id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no open window {window_id}")
        return opened_from(row)

    def view(self, window: KnownWindow) -> OpenWindow:
        """Return a window as its rule sees it."""
        return OpenWindow(
            settings=window.settings,
            opened_at=window.opened_at,
            due_at=window.due_at,
            count=window.members,
            bytes=window.bytes,
            members=StoredMembers(self._connection, self, window.seq),
        )


class StoredMembers:
    """What a rule asks of the members of an open window."""

    def __init__(self, connection: apsw.Connection, windows: KnownWindows, seq: int) -> None:
        self._connection = connection
        self._windows = windows
        self._seq = seq

    def parts(self) -> Set[int]:
        """Return the parts of which there is a member."""
        self._windows.flush()
        rows: list[Any] = self._connection.execute(_SQL["parts"], (self._seq,)).fetchall()
        return {part for (part,) in rows}

    def count_after(self, at: int) -> int:
        """Return how many members were accepted after an instant."""
        self._windows.flush()
        return int(self._connection.execute(_SQL["count_after"], (self._seq, at)).get)

    def oldest(self) -> int | None:
        """Return when the oldest member was accepted."""
        self._windows.flush()
        found: int | None = self._connection.execute(_SQL["oldest"], (self._seq,)).get
        return found


def opened_from(row: Sequence[Any]) -> KnownWindow:
    """Return the open window of a row."""
    seq, window_id, flow, key, settings, opened_at, due_at, members, size, positions = row
    return KnownWindow(
        seq, window_id, flow, key, WindowSettings.from_json(settings), opened_at, due_at,
        members, size, positions,
    )  # fmt: skip
