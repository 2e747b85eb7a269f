"""What tracing needs of a journal: whose span is still to be sent."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Sequence
from typing import Protocol

from turnout.service.domain.run import Run
from turnout.service.journal.records import EndedTrace


class Traces(Protocol):
    """Remembers the runs of which spans were sent until their own is sent too.

    A run that is deleted owes nothing.
    """

    def owe_span(self, run_seq: int) -> Future[None]:
        """Note that the span of a run must be sent once it has ended; again if it was tried again.

        It is durable when the future is done.
        """

    async def owed_spans(
        self,
        run_seqs: Sequence[int] | None = None,
        *,
        after: int = 0,
        limit: int,
        links: int,
    ) -> list[EndedTrace]:
        """Return the runs that have ended and whose span is owed, by seq, up to a limit.

        Of these runs, or of all `after` one. The bodies of their events are left out. Of several
        events of a run, at most `links` are returned.
        """

    def note_sent(self, sent: Sequence[Run]) -> None:
        """Note at once, in any thread, that the spans of runs were sent; `sent_spans` follows.

        The note outlives the process, but not a power cut. A note that cannot be written is left
        out. Not to be called while `sent_spans` is under way.
        """

    async def sent_spans(self, sent: Sequence[Run]) -> None:
        """Record that the spans of runs were sent, as `owed_spans` has told of them.

        It also records all that was noted, by an earlier process too.
        """
