"""Rows of a service that has worked for a while: answers of many studies, and a long queue."""

from __future__ import annotations

import time
import uuid
from typing import Any

from sqlalchemy import insert, text

from service.db.models import JobRow, RecommendationRow, StudyRow, WorkloadRow
from service.db.session import Database
from tuner.spec import study_spec

#: Workloads that the answers are dealt out over.
NUM_WORKLOADS = 100


def reset(database: Database, recording: dict[str, Any], queued: int) -> None:
    """End what the measurement before left running, and fill the queue up again."""
    with database.write() as session:
        session.execute(
            text(
                "UPDATE cliptune_jobs SET state = 'cancelled', owner = NULL, lease_until = 0 WHERE state = 'running'"
            )
        )
        left = session.execute(text("SELECT count(*) FROM cliptune_jobs WHERE state = 'queued'")).scalar_one()
    queue_studies(database, recording, queued - int(left))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))


def fill(database: Database, recording: dict[str, Any], queued: int, stored: int) -> None:
    """A service that has worked for a while: many answers, and a long queue."""
    queue_studies(database, recording, queued)
    spec = study_spec(recording["study"])
    answer = recording["answer"]
    features = recording["reference"]["features"] or {}
    with database.write() as session:
        workload = {
            "name": spec.workload,
            "description": "Recorded.",
            "objective": "val_loss",
            "parameters": [],
            "updated_at": 0,
        }
        session.execute(insert(WorkloadRow), [workload])
        for start in range(0, stored, 5_000):
            rows = [
                {
                    "id": str(uuid.uuid4()),
                    "tenant_id": "default",
                    "study_id": str(uuid.uuid4()),
                    "workload": f"workload-{number % NUM_WORKLOADS}",
                    "fingerprint": f"{number:016x}",
                    "verdict": answer["verdict"],
                    "method": answer["setting"]["method"],
                    "threshold": answer["setting"]["threshold"],
                    "optimizer": features.get("optimizer"),
                    "num_parameters": 1000 + number,
                    "learning_rate": features.get("learning_rate"),
                    "batch_size": features.get("batch_size"),
                    "precision": features.get("precision"),
                    "median_norm": 0.5,
                    "kappa": 1.0,
                    "body": answer,
                    "created_at": number,
                }
                for number in range(start, min(stored, start + 5_000))
            ]
            session.execute(insert(RecommendationRow), rows)


def queue_studies(database: Database, recording: dict[str, Any], count: int) -> None:
    spec = study_spec(recording["study"])
    for start in range(0, count, 2_000):
        ids = [(str(uuid.uuid4()), str(uuid.uuid4())) for _ in range(start, min(count, start + 2_000))]
        now = int(time.time() * 1000)
        studies = [
            {
                "id": study_id,
                "tenant_id": "default",
                "workload": spec.workload,
                "spec": spec.to_json(),
                "spec_sha256": spec.digest,
                "fingerprint": spec.fingerprint,
                "job_id": job_id,
                "extensions": [],
                "created_at": now,
            }
            for study_id, job_id in ids
        ]
        jobs = [
            {
                "id": job_id,
                "tenant_id": "default",
                "study_id": study_id,
                "kind": "study",
                "payload": {},
                "run_after": now,
                "max_attempts": 3,
                "created_at": now,
            }
            for study_id, job_id in ids
        ]
        with database.write() as session:
            session.execute(insert(StudyRow), studies)
            session.execute(insert(JobRow), jobs)
