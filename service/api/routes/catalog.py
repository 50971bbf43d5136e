"""What there is to choose from: workloads, methods, workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.responses import Response

from service import workloads
from service.api.answers import answer
from service.api.deps import App, Reader
from service.db.clock import database_now
from service.db.models import StudyRow, WorkerRow
from service.schemas import MethodOut, Page, SlotOut, WorkerOut, WorkloadOut
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
    with app.database.read() as session:
        return answer(Page[WorkerOut](items=read_workers(session, principal.tenant_id)))


def read_workers(session: Session, tenant_id: str) -> list[WorkerOut]:
    """The workers of the last day, the most recently seen first.

    Args:
        session: any transaction.
        tenant_id: who asks; of other tenants' studies not even the id is told.
    """
    now = database_now(session)
    statement = (
        select(WorkerRow)
        .where(WorkerRow.seen_at >= now - _WORKER_HISTORY_MS)
        .order_by(WorkerRow.seen_at.desc(), WorkerRow.id)
        .limit(1000)
    )
    rows = session.execute(statement).scalars().all()
    busy = {each["study_id"] for row in rows for each in row.slots if each["study_id"]}
    mine = select(StudyRow.id).where(StudyRow.id.in_(busy), StudyRow.tenant_id == tenant_id)
    shown = set(session.scalars(mine)) if busy else set()
    return [
        WorkerOut(
            id=row.id,
            hostname=row.hostname,
            pid=row.pid,
            version=row.version,
            device=row.device,
            slots=tuple(_slot(each, shown) for each in row.slots),
            started_at=_time(row.started_at),
            seen_at=_time(row.seen_at),
            stopped_at=None if row.stopped_at is None else _time(row.stopped_at),
            alive=row.stopped_at is None and row.seen_at >= now - WORKER_SILENCE_MS,
        )
        for row in rows
    ]


def count_alive(session: Session) -> int:
    """How many workers were seen within a minute and have not stopped.

    Args:
        session: any transaction.
    """
    seen = WorkerRow.seen_at >= database_now(session) - WORKER_SILENCE_MS
    statement = select(func.count()).select_from(WorkerRow).where(WorkerRow.stopped_at.is_(None), seen)
    return session.scalar(statement) or 0


def _slot(document: Mapping[str, Any], shown: Collection[str]) -> SlotOut:
    study_id = document["study_id"]
    return SlotOut.model_validate({**document, "study_id": study_id if study_id in shown else None})


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
