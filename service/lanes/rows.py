"""The worker's side of lanes: putting a cohort's lanes up, reading what became of them, taking them back.

Every function works in the caller's transaction, which holds the study's job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select
from sqlalchemy.orm import Session

from service.db.clock import database_now
from service.db.models import LaneReportRow, LaneRow
from service.db.upsert import insert_missing
from service.lanes.lane import LaneState, LaneStatus
from service.lanes.statements import Statements, statements_for

#: Delay after the second process that a lane loses in a row and each later one, in seconds; the first is at once.
BACKOFF_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ReapedLane:
    """A lease of a lane that expired and was ended.

    Attributes:
        study_id: the study.
        trial_id: the trial.
        seed: the training seed.
        state: where the lane went: ``waiting``, or ``fail`` (lost too often).
        fence: number of the lease that was ended.
        lost_count: processes lost, this one included.
    """

    study_id: str
    trial_id: str
    seed: int
    state: LaneStatus
    fence: int
    lost_count: int


def insert_lanes(
    session: Session,
    *,
    study_id: str,
    tenant_id: str,
    trial_ids: Sequence[str],
    seeds: Sequence[int],
    is_probe: bool = False,
    num_steps: int | None = None,
    now: int | None = None,
) -> None:
    """Put lanes up, seed by seed: all trials of the first seed are asked for first. Twice is as good as once.

    Args:
        session: a `Database.write` transaction.
        study_id: the study.
        tenant_id: whose it is.
        trial_ids: in the order of asking.
        seeds: training seeds, likewise.
        is_probe: whether they only measure gradient norms; their trials are in no table then.
        num_steps: optimizer steps of a full run; None takes the study's.
        now: replaces the database's clock in tests, in milliseconds.
    """
    created_at = database_now(session, now)
    query = select(func.max(LaneRow.position)).where(LaneRow.study_id == study_id)
    begin = 1 + (session.execute(query).scalar_one() or 0)
    pairs = [(trial_id, seed) for seed in seeds for trial_id in trial_ids]
    rows: list[dict[str, Any]] = [
        {
            "trial_id": trial_id,
            "seed": seed,
            "study_id": study_id,
            "tenant_id": tenant_id,
            "position": position,
            "is_probe": is_probe,
            "num_steps": num_steps,
            "state": str(LaneStatus.WAITING),
            "attempt": 0,
            "lost_count": 0,
            "created_at": created_at,
        }
        for position, (trial_id, seed) in enumerate(pairs, start=begin)
    ]
    insert_missing(session, LaneRow, rows)


def load_lanes(
    session: Session, study_id: str, trial_ids: Sequence[str], *, with_norms: bool = True
) -> tuple[LaneState, ...]:
    """Lanes as they stand, in the order of asking, each with the reports of its newest lease that reported.

    Args:
        session: any transaction.
        study_id: the study.
        trial_ids: which trials of it.
        with_norms: whether to read all reports with their gradient norms; if not, a lane has the first report at or
            past each rung but the last, which stands in its row: who looks often must not read thousands of reports.

    Returns:
        The lanes.
    """
    wanted = (LaneRow.study_id == study_id, LaneRow.trial_id.in_(trial_ids))
    lanes = session.execute(select(LaneRow.__table__).where(*wanted).order_by(LaneRow.position)).all()
    if not with_norms:
        return tuple(_lane_state(lane, dict(lane.rungs.values()), ()) for lane in lanes)
    of_these = LaneReportRow.trial_id.in_(trial_ids)
    found = session.execute(
        select(LaneReportRow.__table__).where(of_these).order_by(LaneReportRow.fence, LaneReportRow.step)
    )
    reports: dict[tuple[str, int], dict[int, list[Any]]] = {}
    for row in found:
        reports.setdefault((row.trial_id, row.seed), {}).setdefault(row.fence, []).append(row)
    states = []
    for lane in lanes:
        by_fence = reports.get((lane.trial_id, lane.seed), {})
        newest = by_fence[max(by_fence)] if by_fence else []
        values = {row.step: row.value for row in newest if row.has_value}
        states.append(_lane_state(lane, values, tuple(norm for row in newest for norm in row.norms)))
    return tuple(states)


def _lane_state(lane: Row[Any], reports: dict[int, float | None], norms: tuple[float, ...]) -> LaneState:
    return LaneState(
        trial_id=lane.trial_id,
        seed=lane.seed,
        position=lane.position,
        is_probe=lane.is_probe,
        state=LaneStatus(lane.state),
        fence=lane.fence,
        client_id=lane.client_id,
        attempt=lane.attempt,
        lost_count=lane.lost_count,
        last_cause=lane.last_cause,
        last_error=lane.last_error,
        step=lane.step,
        value=lane.value,
        initial=lane.initial,
        record=lane.record,
        reports=reports,
        norms=norms,
        created_at=lane.created_at,
        leased_at=lane.leased_at,
        finished_at=lane.finished_at,
    )


def close_lanes(
    session: Session, *, study_id: str, trial_id: str | None = None, now: int | None = None
) -> int:
    """Take back what is not wanted any more; its holders are told to stop at their next call.

    Args:
        session: a `Database.write` transaction.
        study_id: the study.
        trial_id: one trial of it; None takes back all its open lanes.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        How many lanes were open.
    """
    parameters = {"study_id": study_id, "trial_id": trial_id, "now": now}
    return len(session.execute(_statements(session).close, parameters).all())


def reap_lanes(
    session: Session | Connection, *, max_lost: int, study_id: str | None = None, now: int | None = None
) -> list[ReapedLane]:
    """End expired leases: their lanes wait again, first at once and then after a pause, or fail when lost too often.

    Args:
        session: a `Database.write` transaction, or its connection.
        max_lost: processes that a lane may lose; the last one fails it, at least 1.
        study_id: one study; None looks at all.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        What was ended, ordered by trial and seed.
    """
    parameters = {
        "max_lost": max_lost,
        "delay": round(1000 * BACKOFF_SECONDS),
        "error": "the process that trained it was not heard of for the time of its lease",
        "study_id": study_id,
        "now": now,
    }
    rows = session.execute(_statements(session).reap, parameters).all()
    reaped = [ReapedLane(**row._asdict() | {"state": LaneStatus(row.state)}) for row in rows]
    return sorted(reaped, key=lambda each: (each.trial_id, each.seed))


def _statements(session: Session | Connection) -> Statements:
    bind = session.get_bind() if isinstance(session, Session) else session
    return statements_for(bind.dialect.name)
