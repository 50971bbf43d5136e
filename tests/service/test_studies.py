"""Trials rebuilt from their rows, cursors, and workloads as workers publish them."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update

from service import studies, workloads
from service.db.models import IdempotencyRow, TrialReportRow, TrialResultRow, TrialRow
from service.db.session import Database
from service.studies import InvalidCursorError, cursor
from service.studies.idempotency import KEEP_IDEMPOTENCY_MS
from tuner.errors import SpecError, UnknownWorkloadError
from tuner.evidence import LaneResult, LossSketch, NormSketch, Phase, PhaseSketch, TrialState
from tuner.parameters import ParameterField, WorkloadDescription
from tuner.spec import OFF_SETTING, ClipSetting


def test_trials_are_rebuilt_with_rungs_and_lanes(api: Any) -> None:
    study_id = api.study()["id"]
    ids = api.write_trials(study_id, 3)
    with api.database.read() as session:
        trials = studies.load_trials(session, study_id)
    assert [trial.id for trial in trials] == ids
    off, clipped, _ = trials
    assert off.setting == OFF_SETTING and off.num_diverged == 1
    assert off.lanes[1].value is None and off.lanes[1].divergence_step == 5
    assert clipped.setting == ClipSetting(method="global_norm", threshold=1.0)
    assert clipped.state is TrialState.COMPLETE and clipped.cohort == 0
    assert clipped.rungs == {1: {0: 1.9, 1: 2.9}, 3: {0: 1.7, 1: 2.7}, 9: {0: 1.1, 1: 2.1}}
    assert clipped.lanes[0].norms is not None and clipped.lanes[0].norms.q99 == 0.47


def test_lanes_of_the_version_before_are_read(api: Any) -> None:
    """A row keeps the fields of whoever wrote it; what was not recorded then has its default."""
    study_id = api.study()["id"]
    (trial_id,) = api.write_trials(study_id, 1)
    stored = {
        "seed": 0,
        "num_steps": 9,
        "value": 1.5,
        "divergence_step": None,
        "clip_fraction": 0.25,
        "mean_scale": 0.75,
        "norms": {"median": 0.5, "q90": 0.75, "q99": 1.0, "max": 2.0},
        "num_non_finite": 0,
        "seconds": 0.5,
    }
    with api.database.write() as session:
        session.execute(
            update(TrialResultRow).where(TrialResultRow.trial_id == trial_id).values(lanes=[stored])
        )
    with api.database.read() as session:
        (trial,) = studies.load_trials(session, study_id)
    assert trial.lanes == (
        LaneResult(**stored | {"norms": NormSketch(median=0.5, q90=0.75, q99=1.0, max=2.0)}),
    )
    assert trial.lanes[0].phases == () and not trial.lanes[0].is_off_run
    (shown,) = api.http.get(f"/v1/studies/{study_id}/trials").json()["items"]
    assert shown["lanes"][0]["value"] == 1.5 and shown["lanes"][0]["tail_index"] is None


def test_all_that_a_lane_recorded_comes_back(api: Any) -> None:
    study_id = api.study()["id"]
    (trial_id,) = api.write_trials(study_id, 1)
    norms = NormSketch(median=0.5, q90=0.75, q99=1.0, max=2.0, q01=0.1, q10=0.2, min=0.1, first=0.25)
    lane = LaneResult(
        seed=0,
        num_steps=9,
        value=1.5,
        divergence_step=None,
        clip_fraction=0.25,
        mean_scale=0.75,
        norms=norms,
        num_non_finite=0,
        seconds=0.5,
        num_shared_steps=3,
        first_clipped_step=3,
        last_clipped_step=7,
        loss=LossSketch(last=1.0, min=0.5, mean=0.75),
        phases=(PhaseSketch(phase=Phase.LATE, num_steps=9, clip_fraction=0.5, mean_scale=0.5, norms=norms),),
    )
    with api.database.write() as session:
        session.execute(
            update(TrialResultRow)
            .where(TrialResultRow.trial_id == trial_id)
            .values(lanes=[dataclasses.asdict(lane)])
        )
    with api.database.read() as session:
        (trial,) = studies.load_trials(session, study_id)
    assert trial.lanes == (lane,)


def test_the_highest_fence_of_a_step_wins(api: Any) -> None:
    study_id = api.study()["id"]
    ids = api.write_trials(study_id, 1, fence=2)
    with api.database.write() as session:
        for fence, value in ((1, 100.0), (10, 0.5)):
            session.add(
                TrialReportRow(trial_id=ids[0], seed=0, step=9, fence=fence, value=value, created_at=1)
            )
        session.add(TrialReportRow(trial_id=ids[0], seed=0, step=3, fence=10, value=None, created_at=1))
    with api.database.read() as session:
        (trial,) = studies.load_trials(session, study_id)
    assert trial.rungs[9][0] == 0.5
    assert trial.rungs[3][0] is None
    assert trial.rungs[1][0] == 1.9


def test_a_waiting_trial_has_no_lanes_and_no_rungs(api: Any) -> None:
    study_id = api.study()["id"]
    (trial_id,) = api.write_trials(study_id, 1)
    with api.database.write() as session:
        session.execute(delete(TrialReportRow))
        session.execute(select(1))
        session.execute(delete(TrialResultRow))
        session.execute(update(TrialRow).where(TrialRow.id == trial_id).values(state="waiting"))
    with api.database.read() as session:
        (trial,) = studies.load_trials(session, study_id)
    assert trial.state.is_open and trial.lanes == () and trial.rungs == {}
    shown = api.http.get(f"/v1/studies/{study_id}/trials").json()["items"][0]
    assert shown["mean"] is None and shown["clip_fraction"] is None


def test_a_study_without_trials_has_none(api: Any) -> None:
    study_id = api.study()["id"]
    with api.database.read() as session:
        assert studies.load_trials(session, study_id) == ()


@pytest.mark.parametrize(("position", "tail"), [(0, ""), (1_700_000_000_000, "a:b:c"), (-5, "x" * 200)])
def test_a_cursor_reads_back(position: int, tail: str) -> None:
    text = cursor.write_cursor(b"key", "studies", position, tail)
    assert cursor.read_cursor(b"key", "studies", text) == (position, tail)
    for key, purpose, changed in (
        (b"other", "studies", text),
        (b"key", "trials", text),
        (b"key", "studies", text[1:]),
    ):
        with pytest.raises(InvalidCursorError):
            cursor.read_cursor(key, purpose, changed)


def test_old_idempotency_keys_are_forgotten(api: Any) -> None:
    first = api.submit(key="old").json()
    api.submit(key="new")
    week = KEEP_IDEMPOTENCY_MS
    with api.database.write() as session:
        aged = update(IdempotencyRow).where(IdempotencyRow.study_id == first["id"])
        session.execute(aged.values(created_at=IdempotencyRow.created_at - week - 1))
    studies.forget_idempotency_keys(api.database)
    with api.database.read() as session:
        assert session.execute(select(func.count()).select_from(IdempotencyRow)).scalar_one() == 1
    again = api.submit(key="old")
    assert again.status_code == 202 and again.json()["id"] != first["id"]


FIELDS = [
    ParameterField(name="hidden", type="integer", default=64, low=1, high=1024),
    ParameterField(name="kind", type="string", default="a", choices=("a", "b")),
]


def publish(database: Database, description: str = "first") -> None:
    with database.write() as session:
        workloads.publish_workloads(
            session,
            [
                WorkloadDescription(
                    name=name, description=description, objective="loss", parameters=tuple(FIELDS)
                )
                for name in ("w", "v")
            ],
            now=1,
        )


def test_workloads_are_listed_with_a_json_schema(database: Database) -> None:
    publish(database)
    publish(database, "second")
    with database.read() as session:
        listed = workloads.list_workloads(session)
    assert [(one.name, one.description) for one in listed] == [("v", "second"), ("w", "second")]
    hidden = listed[0].parameters["properties"]["hidden"]
    assert hidden == {"type": "integer", "default": 64, "description": "", "minimum": 1, "maximum": 1024}
    assert listed[0].parameters["properties"]["kind"]["enum"] == ("a", "b")


def test_workers_may_publish_at_the_same_time(database: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: publish(database, str(number)), range(16)))
    with database.read() as session:
        assert len(workloads.list_workloads(session)) == 2


def test_parameters_are_resolved_against_what_was_published(database: Database) -> None:
    publish(database)
    with database.read() as session:
        assert workloads.resolve(session, "w", {"hidden": 8}) == {"hidden": 8, "kind": "a"}
        with pytest.raises(SpecError, match=r"parameters.kind must be one of a, b"):
            workloads.resolve(session, "w", {"kind": "c"})
        with pytest.raises(UnknownWorkloadError, match="known workloads: v, w"):
            workloads.resolve(session, "x", {})


def test_without_a_worker_the_unknown_workload_says_so(database: Database) -> None:
    with database.read() as session, pytest.raises(UnknownWorkloadError, match="start a worker"):
        workloads.resolve(session, "w", {})
