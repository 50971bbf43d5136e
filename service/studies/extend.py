"""Extending a study that has ended: further fresh seeds for the comparison, under a new job.

What is asked for is appended to the study's ``extensions`` together with the job, in one transaction with the study's
row locked: of two extensions at once the second one finds a study that runs.
"""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.db.clock import database_now
from service.db.models import JobRow, LaneRow, RecommendationRow, StudyRow, TrialRow
from service.errors import ConflictError, InvalidRequestError, NotFoundError
from service.jobs.queue import Queue
from service.settings import Settings
from service.states import CLOSING_ERRORS, JobState
from service.studies.idempotency import Claim, claim
from service.studies.stored import job_kind, stored_spec
from service.studies.submit import Submitted
from tuner.evidence import Stage, TrialState, Verdict
from tuner.spec import MAX_CONFIRM_SEEDS, StudySpec

#: Settings that are trained on fresh seeds at most: *off*, today's value, and three leaders (one that diverges gives
#: way), each with *off* at its matched rate: 2 + 2 x `tuner.search.confirmation.MAX_LEADERS`, which is not imported
#: because the search is not for the API.
MAX_CONFIRMED = 8


def extend(
    session: Session,
    queue: Queue,
    *,
    study_id: str,
    num_seeds: int | None,
    wanted: Claim,
    settings: Settings,
    now: int | None = None,
) -> Submitted:
    """Ask for further fresh seeds, once per Idempotency-Key, all in the caller's transaction.

    Args:
        session: a `Database.write` transaction; an exception must roll it back.
        queue: where the new job goes.
        study_id: the study.
        num_seeds: how many, at least 1; None takes what the newest recommendation says would about settle it, or goes
            on with an extension that was cancelled or failed.
        wanted: the request's key; its tenant owns the study.
        settings: ``max_lane_steps`` and ``max_attempts``.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        The study, ``created`` or ``replayed``.

    Raises:
        NotFoundError: ``study_not_found``.
        ConflictError: ``study_not_done``, ``nothing_to_extend``, ``already_settled`` or ``not_settleable``.
        InvalidRequestError: ``too_few_seeds``, ``too_many_seeds``, ``budget_exceeded`` or ``idempotency_key_reused``.
    """
    at = database_now(session, now)
    if claim(session, wanted, study_id=study_id, now=at) is not None:
        return Submitted(study_id, "replayed")
    locked = select(StudyRow).where(StudyRow.id == study_id, StudyRow.tenant_id == wanted.tenant_id)
    study = session.execute(locked.with_for_update()).scalar_one_or_none()
    if study is None:
        raise NotFoundError(
            f"there is no study {study_id}: GET /v1/studies lists the studies of this key",
            code="study_not_found",
        )
    body = _newest_answer(session, study)
    spec = stored_spec(study.spec)
    before = spec.num_confirm_seeds + sum(study.extensions)
    count = num_seeds
    if count is None:
        # What was asked for before and not judged is trained with whatever comes next.
        is_open = sum(study.extensions) > sum(body["provenance"].get("extensions", ()))
        count = 0 if is_open else _settling_seeds(study_id, body, before)
    _require_room(before, count)
    _require_budget(spec, before + count, settings.max_lane_steps)
    priority = session.get_one(JobRow, study.job_id).priority
    _reopen(session, study_id)
    study.job_id, study.extensions = str(uuid.uuid4()), [*study.extensions, *([count] if count else [])]
    queue.enqueue(
        session,
        job_id=study.job_id,
        study_id=study_id,
        tenant_id=wanted.tenant_id,
        kind=job_kind(spec),
        payload={"extension": count},
        priority=priority,
        max_attempts=settings.max_attempts,
    )
    return Submitted(study_id, "created")


def _reopen(session: Session, study_id: str) -> None:
    """Let the comparisons that an ended job cut short go on: nothing else asks for these seeds again."""
    cut = (
        select(TrialRow.id)
        .where(TrialRow.study_id == study_id, TrialRow.stage == str(Stage.CONFIRM))
        .where(TrialRow.state == str(TrialState.FAIL), TrialRow.last_error.in_(CLOSING_ERRORS.values()))
    )
    ids = session.scalars(cut).all()
    session.execute(
        update(TrialRow)
        .where(TrialRow.id.in_(ids))
        .values(state=str(TrialState.WAITING), last_error=None, finished_at=None)
    )
    session.execute(
        update(LaneRow)
        .where(LaneRow.trial_id.in_(ids), LaneRow.state == "closed")
        .values(state="waiting", finished_at=None)
    )


def _newest_answer(session: Session, study: StudyRow) -> dict[str, Any]:
    """The recommendation that an extension starts from; it stands, however the study's newest job ended.

    Raises:
        ConflictError: ``study_not_done`` or ``nothing_to_extend``.
    """
    state = JobState(session.execute(select(JobRow.state).where(JobRow.id == study.job_id)).scalar_one())
    if not state.is_done:
        raise ConflictError(
            f"study {study.id} is {state.value}: wait until it has ended, then extend it",
            code="study_not_done",
        )
    newest = (
        select(RecommendationRow.body)
        .where(RecommendationRow.study_id == study.id)
        .order_by(RecommendationRow.version.desc())
        .limit(1)
    )
    body: dict[str, Any] | None = session.execute(newest).scalar_one_or_none()
    if body is None:
        raise ConflictError(
            f"study {study.id} ended {state.value} and without a recommendation, so there is no comparison to extend: "
            "submit a new study",
            code="nothing_to_extend",
        )
    if body["best"] is None:
        raise ConflictError(
            f"study {study.id} found no clip setting that could be compared with off, so there is no comparison to "
            "extend: submit a new study, with another range or a lower learning rate",
            code="nothing_to_extend",
        )
    return body


def _settling_seeds(study_id: str, body: dict[str, Any], before: int) -> int:
    """As many seeds as the recommendation asks for.

    Raises:
        ConflictError: ``already_settled`` or ``not_settleable``.
    """
    more = body.get("more_seeds")
    if isinstance(more, int):
        if before + more > MAX_CONFIRM_SEEDS:
            raise ConflictError(
                f"study {study_id} would need about {more} further fresh seeds, of the {MAX_CONFIRM_SEEDS} that "
                f"a study has {_room(before)}: give num_seeds to narrow it all the same, or submit a study",
                code="not_settleable",
            )
        return more
    if body["verdict"] != Verdict.INCONCLUSIVE:
        raise ConflictError(
            f"study {study_id} is settled ({body['verdict']}): give num_seeds to measure it on further seeds all the "
            "same",
            code="already_settled",
        )
    raise ConflictError(
        f"study {study_id} is inconclusive, and no reasonable number of seeds would settle it: give num_seeds to try "
        "all the same, or submit a study with a larger effect",
        code="not_settleable",
    )


def _require_room(before: int, count: int) -> None:
    if before + count < 2:
        raise InvalidRequestError(
            "num_seeds is 1, and the study has no fresh seed yet: ask for 2 at least, because one has no error bar",
            code="too_few_seeds",
            errors=[
                {"detail": "must be >= 2 for a study without fresh seeds, got 1", "pointer": "/num_seeds"}
            ],
        )
    if before + count > MAX_CONFIRM_SEEDS:
        room = _room(before)
        raise InvalidRequestError(
            f"num_seeds is {count}, with {before} fresh seeds asked for before; a study has {MAX_CONFIRM_SEEDS} in "
            f"all: {room}",
            code="too_many_seeds",
            errors=[
                {"detail": f"must leave at most {MAX_CONFIRM_SEEDS} in all: {room}", "pointer": "/num_seeds"}
            ],
        )


def _room(before: int) -> str:
    left = MAX_CONFIRM_SEEDS - before
    return f"at most {left} more" if left > 0 else "none is left"


def lane_steps(spec: StudySpec, num_fresh_seeds: int) -> int:
    """The most optimizer steps a study can take, over all lanes.

    Args:
        spec: the question.
        num_fresh_seeds: of the confirmation and all extensions.

    Returns:
        Those of the search, and of every setting that can be confirmed.
    """
    lanes = spec.num_trials * spec.num_seeds + MAX_CONFIRMED * num_fresh_seeds
    return lanes * spec.num_steps


def _require_budget(spec: StudySpec, num_fresh_seeds: int, limit: int) -> None:
    if (steps := lane_steps(spec, num_fresh_seeds)) > limit:
        sentence = (
            f"would bring the study to {steps} lane-steps; this server allows at most {limit}: lower it, or have the "
            "operator raise CLIPTUNE_MAX_LANE_STEPS"
        )
        raise InvalidRequestError(
            f"num_seeds {sentence}",
            code="budget_exceeded",
            errors=[{"detail": sentence, "pointer": "/num_seeds"}],
        )
