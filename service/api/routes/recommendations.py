"""Recommendations: the query that training jobs and CI ask, made to be cheap."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Literal

import anyio.to_thread
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from service import recommendations
from service.api.answers import answer, not_modified
from service.api.deps import App, Reader, Services, require_uuid
from service.errors import InvalidRequestError, NotFoundError
from service.keys import Principal
from service.recommendations import Found, Subject
from service.schemas import RecommendationAnswer, RecommendationOut

router = APIRouter(tags=["recommendations"])

_SHORT = "private, max-age=5"
_PRINTABLE = r"^[^\x00-\x1f\x7f]+$"


@router.get("/v1/recommendations", response_model=RecommendationAnswer)
async def find_recommendation(
    app: App,
    principal: Reader,
    request: Request,
    workload: Annotated[
        str | None, Query(max_length=255, pattern=_PRINTABLE, description="Name of the workload.")
    ] = None,
    fingerprint: Annotated[
        str | None,
        Query(pattern="^[0-9a-f]{16}$", description="What is trained, from a study; enough by itself."),
    ] = None,
    optimizer: Annotated[
        str | None,
        Query(
            pattern="^[a-z0-9_]{1,100}$",
            description="Its class in lower case, such as sgd: asks for similar studies.",
        ),
    ] = None,
    num_parameters: Annotated[
        int | None, Query(ge=1, le=10**15, description="Trainable parameters of the model.")
    ] = None,
    learning_rate: Annotated[float | None, Query(gt=0, le=1e9, description="Base learning rate.")] = None,
    batch_size: Annotated[
        int | None, Query(ge=1, le=10**12, description="Examples of an optimizer step.")
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"] | None, Query(description="Of the forward pass.")
    ] = None,
    model_signature: Annotated[
        str | None, Query(pattern="^[0-9a-f]{16}$", description="Of the model, from a study's probe.")
    ] = None,
    median_norm: Annotated[
        float | None,
        Query(ge=1e-30, le=1e30, description="Median L2 norm of the gradient at the start, before clipping."),
    ] = None,
) -> Response:
    """The newest recommendation of a fingerprint or a workload; with ``optimizer``, those of similar trainings.

    A fingerprint's own answer goes first, then similar trainings, then the workload's newest. With a workload alone its
    newest is the answer.

    Raises:
        InvalidRequestError: ``query_incomplete`` without ``workload``, ``fingerprint`` and ``optimizer``.
    """
    found = None
    described = (
        optimizer,
        num_parameters,
        learning_rate,
        batch_size,
        precision,
        model_signature,
        median_norm,
    )
    is_described = any(each is not None for each in described)
    if workload is not None or fingerprint is not None:
        found = await anyio.to_thread.run_sync(
            _find, app, principal, workload, fingerprint, is_described, limiter=app.fast_reads
        )
    if (found is None or found.match != "exact") and optimizer is not None:
        asked = Subject(
            optimizer=optimizer,
            num_parameters=num_parameters,
            learning_rate=learning_rate,
            batch_size=batch_size,
            precision=precision,
            model_signature=model_signature,
        )
        similar = await run_in_threadpool(_find_similar, app, principal, asked, median_norm)
        found = recommendations.better_of(found, similar)
    if found is None:
        raise InvalidRequestError(
            "the query names no workload, no fingerprint and no optimizer: give workload, or optimizer with what else "
            "is known of the training, to get what similar studies found",
            code="query_incomplete",
            errors=[{"detail": "is missing: give it, fingerprint or optimizer", "pointer": "query/workload"}],
        )
    if optimizer is None and is_described and found.match == "workload":
        found = replace(found, reason=f"{found.reason}; similar studies are looked for only with optimizer")
    response = answer(_document(found), headers={"Cache-Control": _SHORT}, with_etag=True)
    return not_modified(request, response) or response


@router.get("/v1/recommendations/{recommendation_id}", response_model=RecommendationOut)
def get_recommendation(app: App, principal: Reader, request: Request, recommendation_id: str) -> Response:
    """One recommendation; it never changes.

    Raises:
        NotFoundError: ``recommendation_not_found``.
    """
    require_uuid(recommendation_id, "recommendation_not_found", "recommendation")
    with app.database.read() as session:
        document = recommendations.get(
            session, tenant_id=principal.tenant_id, recommendation_id=recommendation_id
        )
    if document is None:
        raise NotFoundError(
            f"there is no recommendation {recommendation_id}: GET /v1/recommendations?workload=NAME finds the newest",
            code="recommendation_not_found",
        )
    response = answer(document, headers={"Cache-Control": _SHORT}, with_etag=True)
    return not_modified(request, response) or response


def _document(found: Found) -> bytes:
    """The answer as JSON text; the stored recommendation goes in as it is, nobody parses it on the way."""
    neighbours = ",".join(each.model_dump_json() for each in found.neighbours)
    return (
        f'{{"match":"{found.match}","recommendation":{found.document or "null"},'
        f'"reason":{json.dumps(found.reason)},"neighbours":[{neighbours}]}}'
    ).encode()


def _find_similar(app: Services, principal: Principal, asked: Subject, median_norm: float | None) -> Found:
    with app.database.read() as session:
        return recommendations.find_similar(
            session, tenant_id=principal.tenant_id, asked=asked, median_norm=median_norm
        )


def _find(
    app: Services, principal: Principal, workload: str | None, fingerprint: str | None, is_described: bool
) -> Found:
    return app.database.glance(
        lambda connection: recommendations.find(
            connection,
            tenant_id=principal.tenant_id,
            workload=workload,
            fingerprint=fingerprint,
            is_described=is_described,
        )
    )
