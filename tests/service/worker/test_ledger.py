"""What the ledger writes, on both databases: texts that a database refuses, and writes that are repeated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import select

from service.db.models import TrialReportRow, TrialResultRow, TrialRow
from service.db.session import Database
from service.errors import TrainingError
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.settings import Settings
from service.worker import ledger
from tuner.evidence import LaneResult, Stage
from tuner.search.confirmation import Asked
from tuner.spec import OFF_SETTING, ClipSetting, StudySpec
from tuner.training.cohort import LaneValue, RungReached, TrialEnded

SPEC = StudySpec(workload="w")


def asked(*settings: ClipSetting) -> Asked:
    return Asked(settings=settings, stage=Stage.SEARCH, seeds=SPEC.seeds)


@pytest.fixture
def lease(queue: Queue, lease_of: Callable[[StudySpec], Lease]) -> Lease:
    found = lease_of(SPEC)
    with queue.held(found) as session:
        ledger.insert_trials(session, found, asked(OFF_SETTING, ClipSetting.parse("value:1")), cohort=0)
    return found


def trials_of(database: Database) -> list[TrialRow]:
    with database.read() as session:
        return list(session.scalars(select(TrialRow).order_by(TrialRow.number)))


def test_trials_of_a_cohort_are_inserted_once(database: Database, queue: Queue, lease: Lease) -> None:
    before = [trial.id for trial in trials_of(database)]
    with queue.held(lease) as session:
        ledger.insert_trials(session, lease, asked(OFF_SETTING, ClipSetting.parse("value:1")), cohort=0)
    assert [trial.id for trial in trials_of(database)] == before
    with queue.held(lease) as session:
        ledger.insert_trials(session, lease, asked(ClipSetting.parse("value:2")), cohort=1)
    assert [(trial.number, trial.cohort) for trial in trials_of(database)] == [(0, 0), (1, 0), (2, 1)]


@pytest.mark.parametrize("text", ["a\0b", "lone \ud800 surrogate", "x" * 100_000])
def test_any_error_text_can_be_kept(text: str, database: Database, queue: Queue, lease: Lease) -> None:
    trial = trials_of(database)[0]
    error = TrainingError(text, cause="bug")
    with queue.held(lease) as session:
        ledger.record_failure(
            session, queue, lease, [trial.id], error=error, settings=Settings(max_attempts=1), jitter=0.0
        )
    row = trials_of(database)[0]
    assert (row.state, row.attempt) == ("fail", 1)
    assert row.last_error and "\0" not in row.last_error and len(row.last_error) <= 8_100


def test_result_and_reports_are_accepted_once(database: Database, queue: Queue, lease: Lease) -> None:
    trial = trials_of(database)[1]
    rung = RungReached(
        index=0,
        step=10,
        values=tuple(LaneValue(trial_id=trial.id, seed=seed, value=1.5) for seed in range(3)),
        pruned=(),
    )
    lane = LaneResult(
        seed=0,
        num_steps=10,
        value=1.5,
        divergence_step=None,
        clip_fraction=0.5,
        mean_scale=0.9,
        norms=None,
        num_non_finite=0,
        seconds=0.1,
    )
    for _ in range(2):
        with queue.held(lease) as session:
            ledger.record_rung(session, queue, lease, rung, cohort=0, num_rungs=1)
            ledger.record_trial(
                session, queue, lease, TrialEnded(trial_id=trial.id, state="complete", lanes=(lane,))
            )
    with database.read() as session:
        assert [row.seed for row in session.scalars(select(TrialReportRow))] == [0, 1, 2]
        assert [row.fence for row in session.scalars(select(TrialResultRow))] == [lease.fence]
