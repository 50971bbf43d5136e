"""What a worker writes while it drives a study: every function runs inside `Queue.held`, under the fence.

One transaction holds the job's row, the effect (trials, reports, results, recommendation) and the event that
tells people about it. A worker whose lease is gone gets `LeaseLostError` before any of this runs. A commit whose
answer was lost on the way is tried again: trials, reports and results tolerate that, an event may then stand
twice, and a broken training may count twice.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import statistics
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, get_args

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service import recommendations
from service.db.clock import database_now
from service.db.models import JobEventRow, StudyRow, TrialReportRow, TrialResultRow, TrialRow
from service.db.upsert import insert_missing
from service.errors import TrainingError
from service.jobs.lease import Lease
from service.jobs.queue import Queue, storable
from service.jobs.retry import COUNTED_ON, Action, Backoff, Cause, Counter, decide
from service.launchers.protocol import Ready
from service.settings import Settings
from service.worker.side import Counted
from service.worker.stored import StoredStudy
from tuner.evidence import Reference, Stage, Trial, TrialState
from tuner.records import mean_known
from tuner.search.confirmation import Asked
from tuner.spec import StudySpec
from tuner.training.cohort import (
    CheckpointFailed,
    CheckpointSaved,
    Cohort,
    EngineChosen,
    Path,
    Progressed,
    Resumed,
    RungReached,
    TrialEnded,
)

#: What proposes settings, by Optuna's name.
SAMPLER = "TPESampler"
#: Between two tries of a broken training.
_BACKOFF = Backoff(base_seconds=1.0, max_seconds=60.0)


def insert_trials(session: Session, lease: Lease, asked: Asked, *, cohort: int) -> None:
    """Write a cohort's trials before anything is launched, so that a crash never asks for them twice.

    Args:
        session: held under ``lease``.
        lease: of the study's job.
        asked: settings in the order they were asked for, what for, and under which seeds.
        cohort: number of the cohort, from 0.
    """
    now = database_now(session)
    cohorts = session.scalars(select(TrialRow.cohort).where(TrialRow.study_id == lease.study_id)).all()
    if cohort in cohorts:
        return
    for number, setting in enumerate(asked.settings, start=len(cohorts)):
        session.add(
            TrialRow(
                id=str(uuid.uuid4()),
                study_id=lease.study_id,
                number=number,
                cohort=cohort,
                method=setting.method,
                threshold=setting.threshold,
                learning_rate_scale=setting.learning_rate_scale,
                stage=asked.stage,
                seeds=None if asked.stage is Stage.SEARCH else list(asked.seeds),
                state=TrialState.WAITING,
                created_at=now,
            )
        )


def start_cohort(
    session: Session, queue: Queue, lease: Lease, cohort: Cohort, open_trials: Sequence[Trial]
) -> None:
    """Mark a cohort's open trials as running and tell which they are."""
    ids = [trial.id for trial in open_trials]
    session.execute(update(TrialRow).where(TrialRow.id.in_(ids)).values(state=TrialState.RUNNING))
    payload = {
        "cohort": open_trials[0].cohort,
        "trials": [
            {"id": trial.id, "number": trial.number, "setting": dataclasses.asdict(trial.setting)}
            for trial in open_trials
        ],
        "stage": open_trials[0].stage,
        "seeds": list(cohort.seeds),
        "rung_steps": list(cohort.rung_steps),
    }
    queue.append_event(session, lease, "cohort", payload)


def record_reference(
    session: Session,
    queue: Queue,
    lease: Lease,
    reference: Reference,
    *,
    spec: StudySpec,
    begins_warm: bool,
) -> None:
    """Keep what the probe measured, and what follows from it: the next holder of the lease must search the same.

    Args:
        session: held under ``lease``.
        queue: for the event.
        lease: of the study's job.
        reference: the probe's result.
        spec: the study's question.
        begins_warm: whether to look for what similar studies recommend; looked for once, here.
    """
    found = None
    if begins_warm:
        found = recommendations.warm_start(
            session, tenant_id=lease.tenant_id, study_id=lease.study_id, spec=spec, reference=reference
        )
    document = dataclasses.asdict(reference)
    fingerprint = recommendations.study_fingerprint(spec, reference.features)
    values = {"reference": document, "warm_start": found, "fingerprint": fingerprint}
    session.execute(update(StudyRow).where(StudyRow.id == lease.study_id).values(**values))
    payload = {"reference": document, "fingerprint": fingerprint, "warm_start": found or []}
    queue.append_event(session, lease, "probe", payload)


def record_engine(session: Session, queue: Queue, lease: Lease, event: EngineChosen, *, cohort: int) -> None:
    """Tell how a cohort is trained, together or one lane at a time, and why."""
    payload = _payload(event) | {"cohort": cohort, "reason": storable(event.reason)}
    queue.append_event(session, lease, "engine", payload)


def record_resumed(
    session: Session, queue: Queue, lease: Lease, event: Resumed, *, cohort: int, num_rungs: int
) -> None:
    """Tell from where a cohort goes on."""
    payload = _payload(event) | {"cohort": cohort, "num_rungs": num_rungs}
    del payload["is_again"]
    queue.append_event(session, lease, "resumed", payload)


def record_checkpoint(
    session: Session, queue: Queue, lease: Lease, event: CheckpointSaved, *, cohort: int
) -> None:
    """Tell that a cohort can go on from a rung; it also proves that the job makes progress."""
    queue.forget_losses(session, lease)
    queue.append_event(session, lease, "checkpoint", _payload(event) | {"cohort": cohort})


def record_checkpoint_failed(
    session: Session, queue: Queue, lease: Lease, event: CheckpointFailed, *, cohort: int
) -> None:
    """Tell that a checkpoint could not be written or used."""
    payload = {"cohort": cohort, "error": storable(event.error)}
    queue.append_event(session, lease, "checkpoint_failed", payload)


def _payload(event: EngineChosen | Progressed | Resumed | CheckpointSaved) -> dict[str, Any]:
    payload = dataclasses.asdict(event)
    del payload["kind"]
    return payload


def record_progress(session: Session, queue: Queue, lease: Lease, event: Progressed, *, cohort: int) -> None:
    """Tell how far the cohort is."""
    queue.append_event(session, lease, "progress", _payload(event) | {"cohort": cohort})


def record_rung(
    session: Session, queue: Queue, lease: Lease, event: RungReached, *, cohort: int, num_rungs: int
) -> None:
    """Write the objectives of a rung, lane by lane, and a summary per trial."""
    now = database_now(session)
    by_trial: dict[str, list[float | None]] = {}
    for lane in event.values:
        by_trial.setdefault(lane.trial_id, []).append(lane.value)
    reports = [
        dataclasses.asdict(lane) | {"step": event.step, "fence": lease.fence, "created_at": now}
        for lane in event.values
    ]
    insert_missing(session, TrialReportRow, reports)
    # Devices that were lost are counted in a row: this is progress.
    session.execute(update(TrialRow).where(TrialRow.id.in_(by_trial)).values(lost_count=0))
    payload = {
        "cohort": cohort,
        "index": event.index,
        "step": event.step,
        "num_rungs": num_rungs,
        "values": [{"trial_id": trial_id, **summary(values)} for trial_id, values in by_trial.items()],
        "pruned": list(event.pruned),
    }
    queue.append_event(session, lease, "rung", payload)


def record_trial(session: Session, queue: Queue, lease: Lease, event: TrialEnded) -> None:
    """Accept a trial's one result; it also proves that the job makes progress."""
    now = database_now(session)
    row = session.get_one(TrialRow, event.trial_id)
    if session.get(TrialResultRow, event.trial_id) is not None:
        return
    row.state, row.finished_at = event.state, now
    session.add(
        TrialResultRow(
            trial_id=event.trial_id,
            fence=lease.fence,
            lanes=[dataclasses.asdict(lane) for lane in event.lanes],
            created_at=now,
        )
    )
    queue.forget_losses(session, lease)
    payload = {
        "trial_id": event.trial_id,
        "number": row.number,
        "setting": {
            "method": row.method,
            "threshold": row.threshold,
            "learning_rate_scale": row.learning_rate_scale,
        },
        "stage": row.stage,
        "state": event.state,
        **summary([lane.value for lane in event.lanes]),
        "clip_fraction": mean_known(lane.clip_fraction for lane in event.lanes),
    }
    queue.append_event(session, lease, "trial", payload)


def record_failure(
    session: Session,
    queue: Queue,
    lease: Lease,
    trial_ids: Sequence[str],
    *,
    error: TrainingError,
    settings: Settings,
    jitter: float,
) -> Counted:
    """Count a broken training against its trials; those that used up their tries fail.

    Args:
        session: held under ``lease``.
        queue: for the events.
        lease: of the study's job.
        trial_ids: trials that did not get a result because of it, at least one.
        error: what happened.
        settings: ``max_attempts`` and ``max_lost``.
        jitter: uniform in [0, 1], drawn by the caller.

    Returns:
        How long to wait before the rest is tried again, and how many failed.
    """
    delay, num_failed, reason = 0.0, 0, storable(str(error))
    for trial_id in trial_ids:
        row = session.get_one(TrialRow, trial_id)
        row.last_error = reason
        counter = COUNTED_ON[Cause(error.cause)]
        row.lost_count += counter is Counter.TRIAL_LOST
        row.attempt += counter is Counter.TRIAL_ATTEMPT
        decision = decide(
            Cause(error.cause),
            attempt=max(1, row.attempt),
            max_attempts=settings.max_attempts,
            lost_count=max(1, row.lost_count),
            max_lost=settings.max_lost,
            backoff=_BACKOFF,
            jitter=jitter,
        )
        if error.is_final or decision.action is Action.FAIL:
            num_failed += 1
            row.state, row.finished_at = TrialState.FAIL, database_now(session)
            payload = {"trial_id": trial_id, "number": row.number, "error": reason.splitlines()[0]}
            queue.append_event(session, lease, "trial_failed", payload)
        delay = max(delay, 0.0 if error.is_final else decision.delay_seconds)
    return Counted(delay, num_failed)


def last_error(session: Session, trial_id: str) -> str:
    """Why a trial failed; its first line says what."""
    return session.get_one(TrialRow, trial_id).last_error or "no error was recorded"


def summary(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean over the lanes that have a value (None without any), and how many diverged.

    Example:
        >>> summary([1.0, 3.0, None])
        {'mean': 2.0, 'num_diverged': 1}
    """
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return {"mean": statistics.fmean(finite) if finite else None, "num_diverged": len(values) - len(finite)}


def record_device_time(session: Session, lease: Lease, seconds: float) -> None:
    """Add to the time that devices were held for a study.

    Args:
        session: held under ``lease``.
        lease: of the study's job.
        seconds: since the last time, over all devices.
    """
    total = StudyRow.device_milliseconds + round(seconds * 1000)
    session.execute(update(StudyRow).where(StudyRow.id == lease.study_id).values(device_milliseconds=total))


def engine_paths(session: Session, study_id: str) -> list[str]:
    """How a study's cohorts were trained: ``lanes``, ``solo``, or both; empty if nobody told."""
    return sorted({payload["path"] for payload in _engines(session, study_id)})


def cohort_paths(session: Session, study_id: str) -> dict[int, Path]:
    """How the lanes of each cohort began to train, by its number; without those that people train."""
    found: dict[int, Path] = {}
    for payload in _engines(session, study_id):
        if payload["path"] in get_args(Path):
            found.setdefault(payload["cohort"], payload["path"])
    return found


def _engines(session: Session, study_id: str) -> Sequence[Mapping[str, Any]]:
    """What was told of the ways in which a study trains, oldest first."""
    query = select(JobEventRow.payload).where(JobEventRow.study_id == study_id, JobEventRow.kind == "engine")
    return session.scalars(query.order_by(JobEventRow.id)).all()


def provenance(ready: Ready | None, paths: Sequence[str], study: StoredStudy) -> dict[str, Any]:
    """Which versions, which device, which way of training and which search a recommendation rests on.

    Args:
        ready: what the training process said of itself; None if this worker had nothing left to train.
        paths: from `engine_paths`.
        study: as it ended.
    """
    document: dict[str, Any] = {name: version(name) for name in ("cliptune", "optuna")}
    document |= {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    document |= {"engine": " and ".join(paths)} if paths else {}
    document |= {"torch": ready.torch, "device": ready.device} if ready is not None else {}
    return document | {
        "sampler": SAMPLER,
        "extensions": list(study.extensions),
        "warm_start": [
            {"study_id": each.study_id, "setting": str(each.setting)} for each in study.warm_start
        ],
    }
