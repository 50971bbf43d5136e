"""Trials rebuilt from their rows: for the search after a restart, and for whoever looks at a study."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.orm import Session

from service.db.models import StudyRow, TrialReportRow, TrialResultRow, TrialRow
from service.schemas import Page, TrialOut
from service.studies.cursor import InvalidCursorError, read_cursor, write_cursor
from service.studies.read import get_state
from service.studies.stored import stored_spec
from tuner.evidence import LaneResult, Stage, Trial, TrialState
from tuner.records import mean_known
from tuner.spec import ClipSetting

#: Reads what any version stored: a field that it did not know has its default.
_LANES: TypeAdapter[tuple[LaneResult, ...]] = TypeAdapter(tuple[LaneResult, ...])


def list_trials(
    session: Session,
    *,
    tenant_id: str,
    study_id: str,
    signing_key: bytes,
    limit: int,
    cursor: str | None = None,
) -> Page[TrialOut]:
    """Part of a study's trials, in the order of asking.

    Args:
        session: any transaction.
        tenant_id: whose studies.
        study_id: the study.
        signing_key: signs the cursor.
        limit: trials per page, at least 1.
        cursor: ``next_cursor`` of the page before; None for the first.

    Returns:
        The page.

    Raises:
        NotFoundError: ``study_not_found``.
        InvalidCursorError: if the cursor is none of this list's.
    """
    get_state(session, tenant_id=tenant_id, study_id=study_id)
    chosen: list[ColumnElement[bool]] = []
    if cursor is not None:
        number, owner = read_cursor(signing_key, "trials", cursor)
        if owner != study_id:
            raise InvalidCursorError()
        chosen.append(TrialRow.number > number)
    rows = _trial_rows(session, study_id, chosen, limit + 1)
    following = None
    if len(rows) > limit:
        rows = rows[:limit]
        following = write_cursor(signing_key, "trials", rows[-1].number, study_id)
    errors = {row.id: row.last_error for row in rows}
    seeds = stored_spec(session.get_one(StudyRow, study_id).spec).seeds
    items = [_trial_out(trial, seeds, errors[trial.id]) for trial in _trials(session, rows)]
    return Page[TrialOut](items=items, next_cursor=following)


def load_trials(session: Session, study_id: str) -> tuple[Trial, ...]:
    """Rebuild a study's trials from their rows, with rungs and lanes, in the order of asking.

    A resumed training reports a step again under a higher fence; the highest fence of a step wins.

    Args:
        session: any transaction.
        study_id: the study.

    Returns:
        The trials.
    """
    return tuple(_trials(session, _trial_rows(session, study_id, [], None)))


def _trial_rows(
    session: Session, study_id: str, chosen: Iterable[ColumnElement[bool]], limit: int | None
) -> Sequence[TrialRow]:
    statement = (
        select(TrialRow).where(TrialRow.study_id == study_id, *chosen).order_by(TrialRow.number).limit(limit)
    )
    return session.execute(statement).scalars().all()


def _trials(session: Session, rows: Sequence[TrialRow]) -> list[Trial]:
    if not rows:
        return []
    # By number range and not by a list of ids: SQLite allows 32,766 parameters, and the join is one index scan.
    study_id, low, high = rows[0].study_id, rows[0].number, rows[-1].number
    within = and_(TrialRow.study_id == study_id, TrialRow.number.between(low, high))
    rungs: dict[str, dict[int, dict[int, float | None]]] = defaultdict(lambda: defaultdict(dict))
    reports = (
        select(TrialReportRow.trial_id, TrialReportRow.step, TrialReportRow.seed, TrialReportRow.value)
        .join(TrialRow, TrialRow.id == TrialReportRow.trial_id)
        .where(within)
        .order_by(TrialReportRow.step, TrialReportRow.seed, TrialReportRow.fence)
    )
    for trial_id, step, seed, value in session.execute(reports):
        rungs[trial_id][step][seed] = value
    results = (
        select(TrialResultRow.trial_id, TrialResultRow.lanes)
        .join(TrialRow, TrialRow.id == TrialResultRow.trial_id)
        .where(within)
    )
    lanes = {trial_id: _LANES.validate_python(stored) for trial_id, stored in session.execute(results)}
    return [
        Trial(
            id=row.id,
            number=row.number,
            cohort=row.cohort,
            setting=ClipSetting(
                method=row.method, threshold=row.threshold, learning_rate_scale=row.learning_rate_scale
            ),
            state=TrialState(row.state),
            rungs={step: dict(values) for step, values in rungs.get(row.id, {}).items()},
            lanes=lanes.get(row.id, ()),
            stage=Stage(row.stage),
            seeds=tuple(row.seeds or ()),
        )
        for row in rows
    ]


def _trial_out(trial: Trial, seeds: tuple[int, ...], error: str | None) -> TrialOut:
    """A trial as callers see it; ``seeds`` are the study's own."""
    values = [lane.value for lane in trial.lanes if lane.value is not None]
    return TrialOut(
        id=trial.id,
        number=trial.number,
        cohort=trial.cohort,
        setting=trial.setting,
        stage=trial.stage,
        seeds=trial.seeds or seeds,
        state=trial.state,
        mean=statistics.fmean(values) if values else None,
        standard_error=statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None,
        num_diverged=trial.num_diverged,
        clip_fraction=mean_known(lane.clip_fraction for lane in trial.lanes),
        lanes=trial.lanes,
        rungs={step: dict(values) for step, values in trial.rungs.items()},
        error=error,
    )
