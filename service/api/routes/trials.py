"""Asking and telling: external training processes lease lanes, report, and end their leases.

Every call but the waiting of `ask_trial` is one or two short transactions in a thread. A body's token is read here, so
that a text that can't be one is a wrong field and not a lost lease.
"""

from __future__ import annotations

import itertools
import time
from asyncio import sleep
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from service.api.answers import answer
from service.api.deps import App, Asker, JsonBody, StudyId, require_uuid
from service.errors import InvalidRequestError
from service.jobs.retry import Cause
from service.lanes import Completion, Directive, LaneQueue, Leased, LeaseToken, Report
from service.schemas import (
    AskRequest,
    CompletedOut,
    CompleteRequest,
    DirectiveOut,
    HeartbeatRequest,
    LeaseOut,
    ReportRequest,
    WaitingOut,
)
from tuner.spec import EXTERNAL_OBJECTIVE

router = APIRouter(tags=["trials"])

T = TypeVar("T")

_WAIT_STEPS = (0.1, 0.2, 0.4, 0.8)


async def _trial_id(trial_id: Annotated[str, Path(max_length=100)]) -> str:
    return require_uuid(trial_id, "trial_not_found", "trial")


class LaneCalls:
    """The lanes of an application's database, reached through a few threads of their own.

    On SQLite it is one thread: writers that wait for the file's lock do so asleep and unfairly, and those that wait for
    a thread are served in turn. On PostgreSQL a few are enough, because more would only wait for Python's lock.

    Args:
        queue: the lanes.
        num_threads: how many.
    """

    def __init__(self, queue: LaneQueue, num_threads: int) -> None:
        self.queue = queue
        self._threads = CapacityLimiter(num_threads)

    async def run(self, call: Callable[..., T], **arguments: Any) -> T:
        """Call a method of the lanes.

        Args:
            call: which.
            **arguments: its arguments.

        Returns:
            What it returned.
        """
        return await to_thread.run_sync(partial(call, **arguments), limiter=self._threads)


async def _lanes(request: Request) -> LaneCalls:
    lanes: LaneCalls = request.app.state.lanes
    return lanes


Lanes = Annotated[LaneCalls, Depends(_lanes)]
TrialId = Annotated[str, Depends(_trial_id)]


@router.post(
    "/v1/studies/{study_id}/trials:ask",
    response_model=LeaseOut,
    dependencies=[JsonBody],
    responses={202: {"model": WaitingOut, "description": "No lane is ready."}},
)
async def ask_trial(
    request: Request, app: App, lanes: Lanes, principal: Asker, study_id: StudyId, body: AskRequest
) -> Response:
    """Lease a lane of an external study: one trial under one seed, to be trained by whoever asks.

    With ``wait``, answers when a lane is ready or the time is over, whichever comes first. A client that asks again
    gets the lane that it holds, under a new token.
    """
    deadline = time.monotonic() + body.wait
    waits = itertools.chain(_WAIT_STEPS, itertools.repeat(_WAIT_STEPS[-1]))
    while True:
        found = await lanes.run(
            lanes.queue.ask, tenant_id=principal.tenant_id, study_id=study_id, client_id=body.client_id
        )
        if isinstance(found, Leased):
            return answer(_lease_out(found, lanes.queue.lease_seconds))
        left = deadline - time.monotonic()
        if left <= 0 or app.stopping.is_set():
            waiting = WaitingOut(detail=found.detail)
            return answer(waiting, status=202, headers={"Retry-After": str(waiting.retry_after)})
        await sleep(min(left, next(waits)))
        if await request.is_disconnected():
            # A lane leased to nobody would be lost for the time of its lease, and lost too often it fails.
            return answer(WaitingOut(detail=found.detail), status=202)


@router.post("/v1/trials/{trial_id}/heartbeat", response_model=DirectiveOut, dependencies=[JsonBody])
async def heartbeat_trial(
    lanes: Lanes, principal: Asker, trial_id: TrialId, body: HeartbeatRequest
) -> Response:
    """Tell that the training of a lane lives; the lease is valid for its whole time again."""
    directive = await lanes.run(
        lanes.queue.heartbeat,
        tenant_id=principal.tenant_id,
        trial_id=trial_id,
        token=_token(body.lease_token),
    )
    return answer(_directive_out(directive))


@router.post("/v1/trials/{trial_id}/report", response_model=DirectiveOut, dependencies=[JsonBody])
async def report_trial(lanes: Lanes, principal: Asker, trial_id: TrialId, body: ReportRequest) -> Response:
    """Tell a lane's objective at a step, or gradient norms; answers whether to go on. A repetition changes nothing."""
    directive = await lanes.run(
        lanes.queue.report,
        tenant_id=principal.tenant_id,
        trial_id=trial_id,
        token=_token(body.lease_token),
        report=Report(
            step=body.step,
            has_value=body.has_value,
            value=None if body.diverged else body.value,
            norms=tuple(body.norms),
        ),
    )
    return answer(_directive_out(directive))


@router.post("/v1/trials/{trial_id}/complete", response_model=CompletedOut, dependencies=[JsonBody])
async def complete_trial(
    lanes: Lanes, principal: Asker, trial_id: TrialId, body: CompleteRequest
) -> Response:
    """End a lease: the lane is trained, or its training failed. A repetition changes nothing."""
    is_failed = body.outcome == "failed"
    state = await lanes.run(
        lanes.queue.complete,
        tenant_id=principal.tenant_id,
        trial_id=trial_id,
        token=_token(body.lease_token),
        completion=Completion(
            cause=(body.cause or str(Cause.BUG)) if is_failed else None,
            error=body.error or "the process told no error",
            value=None if is_failed else body.value,
            record=None if body.record is None else body.record.model_dump(exclude_none=True),
        ),
    )
    return answer({"state": str(state)})


def _token(text: str) -> LeaseToken:
    """Read a body's token.

    Raises:
        InvalidRequestError: if it can't be one.
    """
    try:
        return LeaseToken.parse(text)
    except ValueError as error:
        raise InvalidRequestError(
            f"lease_token {error}", errors=[{"detail": str(error), "pointer": "/lease_token"}]
        ) from None


def _lease_out(leased: Leased, lease_seconds: float) -> LeaseOut:
    spec = leased.spec
    rungs = spec.rung_steps if leased.num_steps == spec.num_steps else (leased.num_steps,)
    return LeaseOut(
        trial_id=leased.trial_id,
        study_id=leased.study_id,
        number=leased.number,
        stage=leased.stage or "probe",
        seed=leased.seed,
        setting=leased.setting,
        workload=spec.workload,
        parameters=dict(spec.parameters),
        objective=spec.objective or EXTERNAL_OBJECTIVE,
        num_steps=leased.num_steps,
        rung_steps=rungs,
        reference_norm=leased.reference_norm,
        lease_token=leased.token,
        lease_seconds=lease_seconds,
        expires_at=_time(leased.expires_at),
    )


def _directive_out(directive: Directive) -> DirectiveOut:
    expires_at = None if directive.expires_at is None else _time(directive.expires_at)
    return DirectiveOut(go_on=directive.go_on, reason=directive.reason, expires_at=expires_at)


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
