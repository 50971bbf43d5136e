"""Reading studies and their events, and cancelling them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.orm import Session

from service.db.models import JobEventRow, JobRow, RecommendationRow, StudyRow, TrialRow
from service.errors import ConflictError, NotFoundError
from service.jobs.queue import Queue
from service.schemas import (
    TERMINAL_EVENTS,
    EventOut,
    Page,
    RecommendationOut,
    StudyError,
    StudyOut,
    WarmStart,
)
from service.states import JobState
from service.studies.cursor import read_cursor, write_cursor
from service.studies.stored import stored_spec
from tuner.evidence import Stage, TrialState

_OPEN_TRIALS = (str(TrialState.WAITING), str(TrialState.RUNNING))


def get(session: Session, *, tenant_id: str, study_id: str) -> StudyOut:
    """A study.

    Args:
        session: any transaction.
        tenant_id: whose studies.
        study_id: its id.

    Returns:
        The study with its state, and its result or error once it is done.

    Raises:
        NotFoundError: ``study_not_found``.
    """
    found = session.execute(_studies(tenant_id).where(StudyRow.id == study_id)).one_or_none()
    if found is None:
        raise NotFoundError(_absent(study_id), code="study_not_found")
    study, job = found
    return _study_outs(session, [(study, job)])[0]


def get_state(session: Session, *, tenant_id: str, study_id: str) -> JobState:
    """A study's state alone, cheaply.

    Args:
        session: any transaction.
        tenant_id: whose studies.
        study_id: its id.

    Returns:
        The state of its job.

    Raises:
        NotFoundError: ``study_not_found``.
    """
    statement = (
        select(JobRow.state)
        .join(StudyRow, StudyRow.job_id == JobRow.id)
        .where(StudyRow.id == study_id, StudyRow.tenant_id == tenant_id)
    )
    state = session.execute(statement).scalar_one_or_none()
    if state is None:
        raise NotFoundError(_absent(study_id), code="study_not_found")
    return JobState(state)


@dataclass(frozen=True)
class LiveJob:
    """The job whose state is a study's state.

    Attributes:
        job_id: its id; extending the study puts another in its place.
        is_done: whether its state is final.
    """

    job_id: str
    is_done: bool


def live_job(session: Session, study_id: str) -> LiveJob:
    """A study's newest job. The caller has checked that the study is there and may be seen.

    Args:
        session: any transaction.
        study_id: the study.

    Returns:
        The job.
    """
    statement = (
        select(JobRow.id, JobRow.state)
        .join(StudyRow, StudyRow.job_id == JobRow.id)
        .where(StudyRow.id == study_id)
    )
    row = session.execute(statement).one()
    return LiveJob(row.id, JobState(row.state).is_done)


def list_page(
    session: Session,
    *,
    tenant_id: str,
    signing_key: bytes,
    limit: int,
    cursor: str | None = None,
    prefix: str | None = None,
) -> Page[StudyOut]:
    """Part of a tenant's studies, newest first.

    Args:
        session: any transaction.
        tenant_id: whose studies.
        signing_key: signs the cursor, so that one made up or of another list is refused.
        limit: studies per page, at least 1.
        cursor: ``next_cursor`` of the page before; None for the first.
        prefix: only ids that begin so.

    Returns:
        The page.

    Raises:
        InvalidCursorError: if the cursor is none of this list's.
    """
    statement = _studies(tenant_id).order_by(StudyRow.created_at.desc(), StudyRow.id.desc()).limit(limit + 1)
    if prefix:
        statement = statement.where(StudyRow.id.startswith(prefix, autoescape=True))
    if cursor is not None:
        created_at, last_id = read_cursor(signing_key, "studies", cursor)
        earlier = and_(StudyRow.created_at == created_at, StudyRow.id < last_id)
        statement = statement.where(or_(StudyRow.created_at < created_at, earlier))
    rows = [(study, job) for study, job in session.execute(statement)]
    following = None
    if len(rows) > limit:
        rows = rows[:limit]
        following = write_cursor(signing_key, "studies", rows[-1][0].created_at, rows[-1][0].id)
    return Page[StudyOut](items=_study_outs(session, rows), next_cursor=following)


def cancel(session: Session, queue: Queue, *, tenant_id: str, study_id: str) -> StudyOut:
    """Ask for a study to stop.

    Args:
        session: a `Database.write` transaction.
        queue: where its job is.
        tenant_id: whose studies.
        study_id: its id.

    Returns:
        The study: cancelled if it was queued, else running until its worker has stopped.

    Raises:
        NotFoundError: ``study_not_found``.
        ConflictError: ``study_finished``.
    """
    study = get(session, tenant_id=tenant_id, study_id=study_id)
    job_id = session.execute(select(StudyRow.job_id).where(StudyRow.id == study_id)).scalar_one()
    if study.done or queue.cancel(session, job_id) is None:
        state = get_state(session, tenant_id=tenant_id, study_id=study_id)
        raise ConflictError(
            f"study {study_id} has already {state.value}: there is nothing left to cancel"
            if state is not JobState.CANCELLED
            else f"study {study_id} is already cancelled: there is nothing left to do",
            code="study_finished",
        )
    session.expire_all()
    return get(session, tenant_id=tenant_id, study_id=study_id)


def list_events(
    session: Session, *, study_id: str, after: int = 0, limit: int = 500, job_id: str | None = None
) -> list[EventOut]:
    """What happened to a study after an event, in order. The caller has checked that the study may be seen.

    Args:
        session: any transaction.
        study_id: the study.
        after: id of the last event seen; 0 for none.
        limit: at most so many.
        job_id: the study's newest job: the end of any other one is superseded; None leaves every end an end.

    Returns:
        The events.
    """
    statement = (
        select(
            JobEventRow.id, JobEventRow.job_id, JobEventRow.kind, JobEventRow.created_at, JobEventRow.payload
        )
        .where(JobEventRow.study_id == study_id, JobEventRow.id > after)
        .order_by(JobEventRow.id)
        .limit(limit)
    )
    return [
        EventOut(
            id=row.id,
            kind=row.kind,
            created_at=_time(row.created_at),
            payload=row.payload,
            superseded=row.kind in TERMINAL_EVENTS and job_id is not None and row.job_id != job_id,
        )
        for row in session.execute(statement)
    ]


def _absent(study_id: str) -> str:
    return f"there is no study {study_id}: GET /v1/studies lists the studies of this key"


def _studies(tenant_id: str) -> Select[StudyRow, JobRow]:
    return (
        select(StudyRow, JobRow)
        .join(JobRow, JobRow.id == StudyRow.job_id)
        .where(StudyRow.tenant_id == tenant_id)
    )


def _study_outs(session: Session, rows: Sequence[tuple[StudyRow, JobRow]]) -> list[StudyOut]:
    ids = [study.id for study, _ in rows]
    counts = (
        select(TrialRow.study_id, func.count())
        .where(
            TrialRow.study_id.in_(ids),
            TrialRow.state.not_in(_OPEN_TRIALS),
            TrialRow.stage == str(Stage.SEARCH),
        )
        .group_by(TrialRow.study_id)
    )
    ended: dict[str, int] = {row[0]: row[1] for row in session.execute(counts)}
    # Of an extended study's versions the newest is read last, and stays.
    bodies = (
        select(RecommendationRow.study_id, RecommendationRow.body)
        .where(RecommendationRow.study_id.in_(ids))
        .order_by(RecommendationRow.version)
    )
    results: dict[str, dict[str, Any]] = {row[0]: row[1] for row in session.execute(bodies)}
    return [_study_out(study, job, ended.get(study.id, 0), results.get(study.id)) for study, job in rows]


def _study_out(study: StudyRow, job: JobRow, num_ended: int, result: dict[str, Any] | None) -> StudyOut:
    state = JobState(job.state)
    return StudyOut(
        id=study.id,
        name=study.name,
        state=state,
        priority=job.priority,
        done=state.is_done,
        workload=study.workload,
        spec=stored_spec(study.spec).to_json(),
        fingerprint=study.fingerprint,
        created_at=_time(study.created_at),
        started_at=None if job.started_at is None else _time(job.started_at),
        finished_at=None if job.finished_at is None else _time(job.finished_at),
        attempt=job.attempt,
        num_trials_ended=num_ended,
        device_seconds=study.device_milliseconds / 1000,
        reference=study.reference,
        extensions=tuple(study.extensions),
        warm_start=None
        if study.warm_start is None
        else tuple(map(WarmStart.model_validate, study.warm_start)),
        result=None if result is None else RecommendationOut.model_validate(result),
        error=_study_error(state, job, result),
    )


def _study_error(state: JobState, job: JobRow, result: dict[str, Any] | None) -> StudyError | None:
    """Why the newest job ended without a recommendation; with one of before, the job was an extension."""
    stands = ""
    if result is not None:
        version = result.get("version", 1)
        stands = f"version {version} of the recommendation stands, and the study can be extended again"
    if state is JobState.FAILED:
        detail = job.last_error or "the study failed without a message; the worker's log has more"
        if stands:
            detail = f"the extension failed ({stands}): {detail}"
        return StudyError(code="study_failed", detail=detail)
    if state is JobState.CANCELLED:
        detail = f"the extension was cancelled: {stands}"
        if not stands:
            detail = "the study was cancelled before it had a recommendation"
        return StudyError(code="study_cancelled", detail=detail)
    return None


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
