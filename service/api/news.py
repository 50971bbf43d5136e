"""One look at the database for all event streams of a process.

A stream that waits asks nothing itself: while there are streams, one query every `LOOK_SECONDS` finds the newest event
of each study that is followed, and wakes the streams for which it is new. What streams cost is then the events that
they pass on, not how many of them wait. Within one job the ids are in commit order (`service.db.models.JobEventRow`),
so a newest id that is not above the last one seen means that there is no news.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select
from starlette.concurrency import run_in_threadpool

from service.db.models import JobEventRow, StudyRow
from service.db.session import Database

#: Time between two looks, in seconds: on average half of it is what an event is late.
LOOK_SECONDS = 0.2
_NEWEST = (
    select(func.max(JobEventRow.id))
    .where(JobEventRow.study_id == StudyRow.id)
    .correlate(StudyRow)
    .scalar_subquery()
)


@dataclass(eq=False)
class _Waiting:
    """A stream that waits for an event of a study after the one seen."""

    study_id: str
    seen: int
    woken: asyncio.Future[None]


class News:
    """Wakes whoever waits for an event; belongs to one application, and to the event loop that serves it.

    Args:
        database: where the events are.
        look_seconds: time between two looks, in seconds, > 0.
    """

    def __init__(self, database: Database, look_seconds: float = LOOK_SECONDS) -> None:
        self._database = database
        self._look_seconds = look_seconds
        self._waiting: set[_Waiting] = set()
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, study_id: str, seen: int, seconds: float) -> bool:
        """Return when the study has an event after ``seen``, when there may be one, or after a while.

        Args:
            study_id: the study.
            seen: id of the last event that the caller knows.
            seconds: how long to wait at most, in seconds.

        Returns:
            Whether to read the events now: there are some, or the database could not be asked.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(study_id, seen, loop.create_future())
        self._waiting.add(waiting)
        if self._looking is None or self._looking.done() or self._looking.get_loop() is not loop:
            self._looking = asyncio.create_task(self._look_while_awaited())
        try:
            await asyncio.wait_for(waiting.woken, seconds)
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(waiting)
        return True

    async def _look_while_awaited(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._look_seconds)
            asked = tuple(self._waiting)
            study_ids = sorted({each.study_id for each in asked})
            try:
                newest = await run_in_threadpool(
                    self._database.glance, lambda c, ids=study_ids: _newest(c, ids)
                )
            except Exception:
                # Whatever it is, each stream meets it in its own read, and ends as it should. Were it to end the look,
                # streams would wait in silence.
                newest = dict.fromkeys(study_ids, 2**63)
            for each in asked:
                if newest.get(each.study_id, 0) > each.seen and not each.woken.done():
                    each.woken.set_result(None)


def _newest(connection: Connection, study_ids: Sequence[str]) -> dict[str, int]:
    """The id of the newest event by study: one step into an index for each."""
    found = connection.execute(select(StudyRow.id, _NEWEST).where(StudyRow.id.in_(study_ids)))
    return {study_id: newest or 0 for study_id, newest in found}
