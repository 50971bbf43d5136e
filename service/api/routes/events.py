"""A study's events as a stream (Server-Sent Events), resumable at any event."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from service import studies
from service.api.deps import App, Reader, Services, StudyId, authenticate_reader
from service.errors import ProblemError
from service.schemas import EventOut

router = APIRouter(tags=["studies"])

#: How long a stream waits for news before it looks whether the process stops or its key was revoked, in seconds.
_QUIET_SECONDS = 0.5
_BATCH = 500
#: Time between two looks at the reader's key and at the study's state, in seconds: with what is remembered of a key,
#: a revoked one ends its streams within a minute.
_KEY_SECONDS = 25.0
_RECONNECT_MILLISECONDS = 1000

EventId = Annotated[int | None, Query(ge=0, le=2**62, description="Skip events up to this id.")]
LastEventId = Annotated[
    int | None, Header(ge=0, le=2**62, description="As EventSource sends it; wins over after.")
]


def _visible_study(app: App, principal: Reader, study_id: StudyId) -> str:
    """The study's id, checked before the stream begins: afterwards no problem can be answered any more."""
    with app.database.read() as session:
        studies.get_state(session, tenant_id=principal.tenant_id, study_id=study_id)
    return study_id


@router.get("/v1/studies/{study_id}/events", response_class=EventSourceResponse)
async def stream_events(
    request: Request,
    app: App,
    study_id: Annotated[str, Depends(_visible_study)],
    after: EventId = None,
    last_event_id: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    """What happened and what happens next; ends after the event that ends the study.

    Each ``data`` is an event as JSON, each ``id`` the number to resume after. The stream of a study that was extended
    goes on past its earlier ends, which are marked as ``superseded``.
    """
    seen = last_event_id if last_event_id is not None else after or 0
    yield ServerSentEvent(retry=_RECONNECT_MILLISECONDS, comment="cliptune")
    has_news, checked_at = True, time.monotonic()
    while True:
        events, is_done = list[EventOut](), False
        try:
            if time.monotonic() - checked_at > _KEY_SECONDS:
                await authenticate_reader(request)
                # And read, news or not: who comes with an id that is not reached (of a database that was restored from
                # a copy since) is not woken, and has to be told that the study ended.
                checked_at, has_news = time.monotonic(), True
            if has_news:
                events, is_done = await run_in_threadpool(_read, app, study_id, seen)
        except ProblemError:
            # A reader that may read no longer is told so when it comes back.
            return
        except SQLAlchemyError as error:
            # The reader comes back with the last id; a problem can't be sent in the middle of a stream.
            cause = str(getattr(error, "orig", error))
            structlog.get_logger().warning("an event stream ended early", action="stream_cut", error=cause)
            return
        for event in events:
            seen = event.id
            yield ServerSentEvent(raw_data=event.model_dump_json(), event=event.kind, id=str(event.id))
            if event.is_terminal:
                return
        if app.stopping.is_set() or (is_done and len(events) < _BATCH):
            return
        has_news = len(events) == _BATCH or await app.news.wait(study_id, seen, _QUIET_SECONDS)


def _read(app: Services, study_id: str, after: int) -> tuple[list[EventOut], bool]:
    with app.database.read() as session:
        # The job first: if its state is final, its event was committed with it and is seen by the second read. If the
        # study is extended between the two, that event still is the end of this stream; the next one goes on.
        job = studies.live_job(session, study_id)
        events = studies.list_events(session, study_id=study_id, after=after, limit=_BATCH, job_id=job.job_id)
        return events, job.is_done
