"""The positions that one session of a trigger knows, so that it moves them by compare-and-set.

A session is one run of the trigger, from its start to its end. It knows what it has read of its
stored positions and what it has written since, in the order of its writes. The journal refuses a
write that expects another position than the stored one: somebody has overtaken the session, and it
stores nothing more until it reads again. So a seek beside a session that still writes is not undone
by it.
"""

from __future__ import annotations

from collections.abc import Mapping

from turnout.service.domain.errors import PositionsMoved
from turnout.service.journal.records import Move


class SessionPositions:
    """What one session knows of its trigger's positions."""

    def __init__(self) -> None:
        self._known: dict[str, str] | None = None
        self._overtaken: PositionsMoved | None = None

    @property
    def unread(self) -> bool:
        """Whether the session has read nothing yet."""
        return self._known is None

    def read(self, stored: Mapping[str, str]) -> None:
        """Begin with what is stored."""
        self._known = dict(stored)
        self._overtaken = None

    def move(self, positions: Mapping[str, str | None]) -> Mapping[str, Move]:
        """Return the moves to these positions; call it when the write is submitted.

        Raises `PositionsMoved` in a session that was overtaken.
        """
        if self._overtaken is not None:
            moved = self._overtaken
            raise PositionsMoved(moved.trigger, moved.partition, moved.expected, moved.found)
        moves = {}
        for partition, new in positions.items():
            moves[partition] = Move(self._get(partition), new)
            self._set(partition, new)
        return moves

    def refused(self, moves: Mapping[str, Move], error: BaseException) -> None:
        """Take moves back that were not written; a mismatch ends the session's writes."""
        if isinstance(error, PositionsMoved):
            self._overtaken = error
            return
        for partition, move in moves.items():
            self._set(partition, move.expected)

    def _get(self, partition: str) -> str | None:
        return None if self._known is None else self._known.get(partition)

    def _set(self, partition: str, position: str | None) -> None:
        assert self._known is not None  # read before the first move
        if position is None:
            self._known.pop(partition, None)
        else:
            self._known[partition] = position
