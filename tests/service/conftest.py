"""An application over a migrated database, with a key and one workload; and rows as a worker would write them."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import select
from starlette.testclient import TestClient

from service import recommendations
from service.api.app import create_app
from service.db.clock import database_now
from service.db.models import StudyRow, TrialReportRow, TrialResultRow, TrialRow, WorkerRow
from service.db.session import Database
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.keys import create_key
from service.lanes import insert_lanes
from service.settings import Settings
from service.states import JobState
from service.workloads import publish_workloads
from tuner.evidence import (
    Estimate,
    LaneResult,
    NormSketch,
    PairedDifference,
    Recommendation,
    Reference,
    Verdict,
)
from tuner.parameters import ParameterField, WorkloadDescription
from tuner.spec import ClipSetting, study_spec

WORKLOAD = "charlm-rnn"
PARAMETERS = [
    ParameterField(name="hidden", type="integer", default=64, description="Units.", low=1, high=1024),
    ParameterField(
        name="learning_rate", type="number", default=8.0, description="Step size.", low=0.0, high=100.0
    ),
    ParameterField(
        name="optimizer", type="string", default="sgd", description="Rule.", choices=("sgd", "adam")
    ),
]


@dataclass
class Api:
    app: FastAPI
    database: Database
    settings: Settings
    key: str
    http: TestClient

    def body(self, **changes: Any) -> dict[str, Any]:
        return {"workload": WORKLOAD, "num_trials": 4, "num_seeds": 2, "num_steps": 9} | changes

    def submit(self, *, key: str | None = None, **changes: Any) -> Any:
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return self.http.post("/v1/studies", json=self.body(**changes), headers=headers)

    def study(self, **changes: Any) -> dict[str, Any]:
        response = self.submit(**changes)
        assert response.status_code == 202, response.text
        return dict(response.json())

    def new_key(self, **options: Any) -> str:
        with self.database.write() as session:
            return create_key(session, label="test", **options)

    def with_key(self, key: str | None) -> TestClient:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return TestClient(
            self.app, base_url="http://127.0.0.1", headers=headers, raise_server_exceptions=False
        )

    @property
    def queue(self) -> Queue:
        return Queue(self.database, lease_seconds=60)

    def acquire(self) -> Lease:
        lease = self.queue.acquire(str(uuid.uuid4()), ["study"])
        assert lease is not None
        return lease

    def put_up_lanes(self, study_id: str, num_lanes: int) -> str:
        """What its worker does for an external study: a trial with a lane per seed; the trial's id."""
        trial_id = str(uuid.uuid4())
        with self.database.write() as session:
            session.add(
                TrialRow(
                    id=trial_id,
                    study_id=study_id,
                    number=0,
                    cohort=0,
                    method="global_norm",
                    threshold=0.35,
                    state="running",
                    created_at=0,
                )
            )
            session.flush()
            insert_lanes(
                session, study_id=study_id, tenant_id="default", trial_ids=[trial_id], seeds=range(num_lanes)
            )
        return trial_id

    def write_trials(self, study_id: str, num_trials: int = 4, fence: int = 1) -> list[str]:
        """Trials that ended, with rungs and lanes; the first is off and its seed 1 diverged."""
        ids = [str(uuid.uuid4()) for _ in range(num_trials)]
        with self.database.write() as session:
            now = database_now(session)
            for number, trial_id in enumerate(ids):
                setting = (
                    {"method": "none", "threshold": None}
                    if number == 0
                    else {"method": "global_norm", "threshold": float(number)}
                )
                session.add(
                    TrialRow(
                        id=trial_id,
                        study_id=study_id,
                        number=number,
                        cohort=number // 2,
                        state="complete",
                        attempt=0,
                        lost_count=0,
                        created_at=now,
                        finished_at=now,
                        **setting,
                    )
                )
            session.flush()
            for number, trial_id in enumerate(ids):
                lanes = [lane(seed, diverged=number == 0 and seed == 1) for seed in (0, 1)]
                for step in (1, 3, 9):
                    for one in lanes:
                        session.add(
                            TrialReportRow(
                                trial_id=trial_id,
                                seed=one.seed,
                                step=step,
                                fence=fence,
                                value=None if one.diverged else 2.0 + one.seed - step / 10,
                                created_at=now,
                            )
                        )
                session.add(
                    TrialResultRow(
                        trial_id=trial_id,
                        fence=fence,
                        lanes=[dataclasses.asdict(one) for one in lanes],
                        created_at=now,
                    )
                )
        return ids

    def recommend(self, study_id: str, *, reference: Reference | None = None, **changes: Any) -> str:
        """Store the answer of a study, as its worker would."""
        with self.database.write() as session:
            study = session.get_one(StudyRow, study_id)
            return recommendations.store(
                session,
                study_id=study_id,
                tenant_id=study.tenant_id,
                spec=study_spec(study.spec),
                reference=reference,
                recommendation=dataclasses.replace(RECOMMENDATION, **changes),
                snippets={"pytorch": "torch.nn.utils.clip_grad_norm_(model.parameters(), 0.42)"},
                provenance={"torch": "2.13.0", "device": "cpu", "extensions": list(study.extensions)},
            ).id

    def succeed(self, study_id: str, **changes: Any) -> str:
        """Run a queued study to its end, as its worker would; trials are written the first time."""
        lease = self.acquire()
        assert lease.study_id == study_id
        with self.database.read() as session:
            is_new = session.scalars(select(TrialRow.id).filter_by(study_id=study_id)).first() is None
        if is_new:
            self.write_trials(study_id)
        recommendation_id = self.recommend(study_id, **changes)
        self.queue.finish(lease, JobState.SUCCEEDED)
        return recommendation_id

    def extend(self, study_id: str, num_seeds: int | None = None, *, key: str | None = None) -> Any:
        return self.http.post(
            f"/v1/studies/{study_id}/extend",
            json={"num_seeds": num_seeds},
            headers={"Idempotency-Key": key or str(uuid.uuid4())},
        )

    def add_worker(self, age_seconds: float = 0.0, slots: Sequence[dict[str, Any]] = ()) -> None:
        with self.database.write() as session:
            now = database_now(session)
            session.add(
                WorkerRow(
                    id=str(uuid.uuid4()),
                    hostname="here",
                    pid=1,
                    version="0.1.0",
                    device="cpu",
                    slots=list(slots),
                    started_at=now,
                    seen_at=now - int(age_seconds * 1000),
                    stopped_at=None,
                )
            )


def lane(seed: int, *, diverged: bool = False) -> LaneResult:
    return LaneResult(
        seed=seed,
        num_steps=9,
        value=None if diverged else 1.8 + seed / 10,
        divergence_step=5 if diverged else None,
        clip_fraction=0.25,
        mean_scale=0.97,
        norms=NormSketch(median=0.24, q90=0.3, q99=0.47, max=1.31),
        num_non_finite=0,
        seconds=0.5,
    )


RECOMMENDATION = Recommendation(
    objective="val_loss",
    verdict=Verdict.CLIP,
    setting=ClipSetting(method="global_norm", threshold=0.42),
    interval=(0.25, 0.71),
    reason="clipping at 0.42 lowers the objective by 0.054",
    best=ClipSetting(method="global_norm", threshold=0.42),
    value=Estimate(mean=1.805, standard_error=0.007, num_seeds=2, num_diverged=0),
    off=Estimate(mean=1.859, standard_error=0.016, num_seeds=2, num_diverged=0),
    difference=PairedDifference(mean=-0.054, low=-0.081, high=-0.027, num_pairs=2),
    against_current=None,
    clip_fraction=0.06,
    mean_scale=0.97,
    norms=NormSketch(median=0.24, q90=0.3, q99=0.47, max=1.31),
    kappa=1.75,
    num_trials=4,
    num_diverged_trials=1,
    lane_steps=72,
    full_runs=8.0,
    train_seconds=4.0,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, max_trials=100, max_steps=10_000, max_lane_steps=1_000_000)


@pytest.fixture
def api(database: Database, settings: Settings) -> Iterator[Api]:
    with database.write() as session:
        publish_workloads(
            session,
            [
                WorkloadDescription(
                    name=WORKLOAD,
                    description="Character model.",
                    objective="validation loss",
                    parameters=tuple(PARAMETERS),
                )
            ],
            database_now(session),
        )
        key = create_key(session, label="test")
    app = create_app(settings, database)
    with TestClient(
        app,
        base_url="http://127.0.0.1",
        headers={"Authorization": f"Bearer {key}"},
        raise_server_exceptions=False,
    ) as http:
        yield Api(app, database, settings, key, http)
