"""Studies: submit, list, follow, cancel, extend."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from service import recommendations, studies, workloads
from service.api.answers import answer, not_modified, page_answer
from service.api.deps import App, JsonBody, Reader, Services, StudyId, Writer
from service.errors import ForbiddenError, InvalidRequestError, NotFoundError
from service.keys import Principal
from service.schemas import ExtendRequest, Page, RecommendationOut, StudyOut, StudyRequest, TrialOut
from service.settings import Settings
from service.states import JobState
from service.studies import Claim
from service.studies.extend import MAX_CONFIRMED, lane_steps
from tuner.spec import canonical_digest

router = APIRouter(tags=["studies"])

MAX_WAIT_SECONDS = 30.0
_WAIT_STEPS = (0.1, 0.2, 0.4, 0.8)
_KEY_FORM = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,198}[\x21-\x7e])?")

Limit = Annotated[int, Query(ge=1, le=100, description="Items per page.")]
Cursor = Annotated[str | None, Query(max_length=500, description="next_cursor of the page before.")]
IdempotencyKey = Annotated[str | None, Header(description="A new random value per submission.")]


@router.post(
    "/v1/studies",
    status_code=202,
    response_model=StudyOut,
    dependencies=[JsonBody],
    responses={200: {"model": StudyOut, "description": "The study was there already."}},
)
def create_study(
    app: App,
    principal: Writer,
    body: StudyRequest,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Submit a study. Repeat the same request with the same Idempotency-Key as often as you like."""
    key = _require_key(idempotency_key)
    _require_budget(body, app.settings)
    _require_priority(body.priority, principal)
    parameters = dict(body.parameters)
    if not body.external:
        with app.database.read() as session:
            parameters = workloads.resolve(session, body.workload, body.parameters)
    with app.database.write() as session:
        submitted = studies.create(
            session,
            app.queue,
            tenant_id=principal.tenant_id,
            spec=body.to_spec(parameters),
            name=body.name,
            idempotency_key=key,
            body_sha256=canonical_digest(body.to_json()),
            key_id=principal.key_id,
            priority=body.priority,
            max_attempts=app.settings.max_attempts,
        )
        study = studies.get(session, tenant_id=principal.tenant_id, study_id=submitted.study_id)
    return _accepted(study, submitted)


@router.get("/v1/studies", response_model=Page[StudyOut])
def list_studies(
    app: App,
    principal: Reader,
    request: Request,
    limit: Limit = 20,
    cursor: Cursor = None,
    prefix: Annotated[
        str | None, Query(pattern="^[0-9a-f-]{1,36}$", description="Only ids that begin with this.")
    ] = None,
) -> Response:
    """The studies of this key's tenant, newest first."""
    with app.database.read() as session:
        page = studies.list_page(
            session,
            tenant_id=principal.tenant_id,
            signing_key=principal.signing_key,
            limit=limit,
            cursor=cursor,
            prefix=prefix,
        )
    return page_answer(request, page)


@router.get("/v1/studies/{study_id}", response_model=StudyOut)
async def get_study(
    app: App,
    principal: Reader,
    study_id: StudyId,
    request: Request,
    wait: Annotated[
        float | None,
        Query(ge=0, le=MAX_WAIT_SECONDS, description="Seconds to wait for the study to be done."),
    ] = None,
) -> Response:
    """A study. With ``wait``, answers when it is done or the time is over, whichever comes first."""
    if wait:
        await _wait_until_done(app, principal, study_id, wait)
    study = await run_in_threadpool(_read_study, app, principal, study_id)
    response = answer(study, with_etag=True)
    return not_modified(request, response) or response


@router.get("/v1/studies/{study_id}/trials", response_model=Page[TrialOut])
def list_trials(
    app: App, principal: Reader, request: Request, study_id: StudyId, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """A study's trials, in the order of asking."""
    with app.database.read() as session:
        page = studies.list_trials(
            session,
            tenant_id=principal.tenant_id,
            study_id=study_id,
            signing_key=principal.signing_key,
            limit=limit,
            cursor=cursor,
        )
    return page_answer(request, page)


@router.post("/v1/studies/{study_id}/cancel", status_code=202, response_model=StudyOut)
def cancel_study(app: App, principal: Writer, study_id: StudyId) -> Response:
    """Ask for a study to stop. A queued one is cancelled at once, a running one within seconds."""
    with app.database.write() as session:
        study = studies.cancel(session, app.queue, tenant_id=principal.tenant_id, study_id=study_id)
    return answer(study, status=202, headers={"Location": f"/v1/studies/{study.id}", "Retry-After": "5"})


@router.post(
    "/v1/studies/{study_id}/extend",
    status_code=202,
    response_model=StudyOut,
    dependencies=[JsonBody],
    responses={200: {"model": StudyOut, "description": "The request was carried out already."}},
)
def extend_study(
    app: App,
    principal: Writer,
    study_id: StudyId,
    body: ExtendRequest,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Compare on further fresh seeds. The study runs again and ends with the next version of its recommendation."""
    wanted = Claim(
        tenant_id=principal.tenant_id,
        route=f"POST /v1/studies/{study_id}/extend",
        key=_require_key(idempotency_key),
        body_sha256=canonical_digest({"num_seeds": body.num_seeds}),
    )
    with app.database.write() as session:
        submitted = studies.extend(
            session,
            app.queue,
            study_id=study_id,
            num_seeds=body.num_seeds,
            wanted=wanted,
            settings=app.settings,
        )
        session.flush()
        study = studies.get(session, tenant_id=principal.tenant_id, study_id=study_id)
    return _accepted(study, submitted)


@router.get("/v1/studies/{study_id}/recommendation", response_model=RecommendationOut)
def get_study_recommendation(
    app: App,
    principal: Reader,
    study_id: StudyId,
    version: Annotated[
        int | None, Query(ge=1, le=1000, description="Which one of an extended study; default: the newest.")
    ] = None,
) -> Response:
    """A study's answer.

    Raises:
        NotFoundError: ``no_recommendation_yet``, or ``recommendation_not_found`` for a version that there is not.
    """
    with app.database.read() as session:
        state = studies.get_state(session, tenant_id=principal.tenant_id, study_id=study_id)
        newest = recommendations.find_of_study(session, tenant_id=principal.tenant_id, study_id=study_id)
        found = newest
        if version is not None:
            found = recommendations.find_of_study(
                session, tenant_id=principal.tenant_id, study_id=study_id, version=version
            )
    if found is None and newest is not None:
        raise NotFoundError(
            f"study {study_id} has no version {version} of its recommendation: the newest is "
            f"{newest.get('version', 1)}",
            code="recommendation_not_found",
        )
    if found is None:
        advice = "it will not get one" if state.is_done else "wait for it with GET /v1/studies/{id}?wait=30"
        raise NotFoundError(
            f"study {study_id} is {state.value} and has no recommendation: {advice}",
            code="no_recommendation_yet",
        )
    return answer(found)


def _accepted(study: StudyOut, submitted: studies.Submitted) -> Response:
    headers = {"Location": f"/v1/studies/{study.id}", "Retry-After": "5"}
    if submitted.outcome == "replayed":
        headers["Idempotency-Replayed"] = "true"
    return answer(study, status=202 if submitted.outcome == "created" else 200, headers=headers)


def _read_study(app: Services, principal: Principal, study_id: str) -> StudyOut:
    with app.database.read() as session:
        return studies.get(session, tenant_id=principal.tenant_id, study_id=study_id)


def _read_state(app: Services, principal: Principal, study_id: str) -> JobState:
    with app.database.read() as session:
        return studies.get_state(session, tenant_id=principal.tenant_id, study_id=study_id)


async def _wait_until_done(app: Services, principal: Principal, study_id: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for turn in itertools.count():
        state = await run_in_threadpool(_read_state, app, principal, study_id)
        left = deadline - time.monotonic()
        if state.is_done or left <= 0 or app.stopping.is_set():
            return
        await asyncio.sleep(min(left, _WAIT_STEPS[min(turn, len(_WAIT_STEPS) - 1)]))


def _require_key(key: str | None) -> str:
    if not key:
        raise InvalidRequestError(
            "this request needs the header Idempotency-Key: send a new random value, for example from `uuidgen`, and "
            "the same one again when you repeat the request",
            code="idempotency_key_missing",
            status=400,
        )
    if not _KEY_FORM.fullmatch(key):
        raise InvalidRequestError(
            "the Idempotency-Key must have 1 to 200 printable ASCII characters: use a UUID",
            code="idempotency_key_invalid",
            status=400,
        )
    return key


def _require_priority(priority: int, principal: Principal) -> None:
    """Refuse to go before everybody else's studies without an admin's key.

    Raises:
        ForbiddenError: for a priority above 0.
    """
    if priority > 0 and not principal.may("admin"):
        raise ForbiddenError(
            f"a priority of {priority} goes before everybody else's studies: that needs the scope admin, and the key "
            f"{principal.key_id} has {', '.join(sorted(principal.scopes)) or 'none'}; leave it at 0 or below"
        )


def _require_budget(body: StudyRequest, settings: Settings) -> None:
    budgets = (
        ("num_trials", body.num_trials, settings.max_trials, "CLIPTUNE_MAX_TRIALS"),
        ("num_steps", body.num_steps, settings.max_steps, "CLIPTUNE_MAX_STEPS"),
        (
            f"(num_trials x num_seeds + {MAX_CONFIRMED} x num_confirm_seeds) x num_steps",
            lane_steps(body, body.num_confirm_seeds),
            settings.max_lane_steps,
            "CLIPTUNE_MAX_LANE_STEPS",
        ),
    )
    for name, value, bound, setting in budgets:
        if value > bound:
            sentence = f"is {value}; this server allows at most {bound}: lower it, or have the operator raise {setting}"
            pointer = "/" + name.split()[-1]
            raise InvalidRequestError(
                f"{name} {sentence}",
                code="budget_exceeded",
                errors=[{"detail": sentence, "pointer": pointer}],
            )
