"""What there is to choose from: workloads, methods, workers."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import Response

from service import workloads
from service.api.answers import answer
from service.api.deps import App, Reader
from service.db.clock import database_now
from service.db.models import WorkerRow
from service.schemas import MethodOut, Page, WorkerOut, WorkloadOut
from tuner.methods import METHODS

router = APIRouter(tags=["catalog"])

#: A worker not seen for this long counts as gone, in milliseconds.
WORKER_SILENCE_MS = 60_000
#: Workers that have been gone for longer than this are not listed, in milliseconds.
_WORKER_HISTORY_MS = 24 * 3_600_000


@router.get("/v1/workloads", response_model=Page[WorkloadOut])
def list_workloads(app: App, principal: Reader) -> Response:
    """The workloads that workers have registered, with their parameters as JSON Schema."""
    del principal
    with app.database.read() as session:
        return answer(Page[WorkloadOut](items=workloads.list_workloads(session)))


@router.get("/v1/methods", response_model=Page[MethodOut])
def list_methods(principal: Reader) -> Response:
    """The clipping methods."""
    del principal
    wanted = MethodOut.model_fields
    items = [
        MethodOut(**{name: value for name, value in dataclasses.asdict(method).items() if name in wanted})
        for method in METHODS.values()
    ]
    return answer(Page[MethodOut](items=items))


@router.get("/v1/workers", response_model=Page[WorkerOut])
def list_workers(app: App, principal: Reader) -> Response:
    """The workers of the last day, the most recently seen first."""
    del principal
    with app.database.read() as session:
        return answer(Page[WorkerOut](items=read_workers(session)))


def read_workers(session: Session) -> list[WorkerOut]:
    """The workers of the last day, the most recently seen first."""
    now = database_now(session)
    statement = (
        select(WorkerRow)
        .where(WorkerRow.seen_at >= now - _WORKER_HISTORY_MS)
        .order_by(WorkerRow.seen_at.desc(), WorkerRow.id)
        .limit(1000)
    )
    return [
        WorkerOut(
            id=row.id,
            hostname=row.hostname,
            pid=row.pid,
            version=row.version,
            device=row.device,
            started_at=_time(row.started_at),
            seen_at=_time(row.seen_at),
            stopped_at=None if row.stopped_at is None else _time(row.stopped_at),
            alive=row.stopped_at is None and row.seen_at >= now - WORKER_SILENCE_MS,
        )
        for row in session.execute(statement).scalars()
    ]


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
