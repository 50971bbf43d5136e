"""Bodies of asking and telling: an external training process leases a lane, reports, and ends the lease."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.schemas.answers import Model
from tuner.evidence import Stage
from tuner.parameters import ParameterValue
from tuner.spec import MAX_STEPS, ClipSetting

#: Longest name of a training process, in characters.
MAX_CLIENT_ID = 100
#: Longest time that asking waits for a lane, in seconds.
MAX_WAIT_SECONDS = 30.0
#: Most gradient norms of one report.
MAX_NORMS = 1000
#: Longest error text of a failed training, in characters.
MAX_ERROR = 8000


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must consist of printable characters; take out control characters")
    return text


ClientId = Annotated[str, Field(min_length=1, max_length=MAX_CLIENT_ID), AfterValidator(_printable)]
Token = Annotated[str, Field(max_length=200, description="The lease_token that trials:ask answered.")]
Norm = Annotated[float, Field(ge=0)]


class _Body(BaseModel):
    """Base of what a process sends: nothing unknown, nothing converted, no NaN and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AskRequest(_Body):
    """The body of ``POST /v1/studies/{study_id}/trials:ask``.

    Attributes:
        client_id: what the process calls itself, 1 to 100 printable characters. It holds at most one lane of a study:
            if it asks again it gets that lane under a new token, and the old token is dead.
        wait: how long to wait for a lane, 0 to 30 seconds.
    """

    client_id: ClientId
    wait: Annotated[float, Field(ge=0, le=MAX_WAIT_SECONDS)] = 0.0


class HeartbeatRequest(_Body):
    """The body of ``POST /v1/trials/{trial_id}/heartbeat``.

    Attributes:
        lease_token: of the lease.
    """

    lease_token: Token


class ReportRequest(_Body):
    """The body of ``POST /v1/trials/{trial_id}/report``.

    Attributes:
        lease_token: of the lease.
        step: optimizer steps taken, 0 to ``num_steps`` of the lease, rising.
        value: the objective on held-out data; null if it is not finite, which ends the lane as diverged. Left out, the
            report only brings norms.
        diverged: the training diverged, whatever ``value`` says.
        norms: gradient norms before clipping since the report before, at most 1000.
    """

    lease_token: Token
    step: Annotated[int, Field(ge=0, le=MAX_STEPS)]
    value: float | None = None
    diverged: bool = False
    norms: Annotated[list[Norm], Field(max_length=MAX_NORMS)] = []

    @property
    def has_value(self) -> bool:
        """Whether the report is one of the objective: ``value`` was sent, be it null."""
        return self.diverged or "value" in self.model_fields_set


class RunRecord(_Body):
    """Figures of a whole run.

    Attributes:
        clip_fraction: share of steps whose gradient was scaled, clamped or skipped, in [0, 1]; null if unknown.
        mean_scale: mean factor on the gradient norm, in [0, 1]; 1 = never clipped; null if unknown.
        num_steps: optimizer steps taken; null if unknown.
        seconds: wall time of the training; null if unknown.
    """

    clip_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    mean_scale: Annotated[float, Field(ge=0, le=1)] | None = None
    num_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] | None = None
    seconds: Annotated[float, Field(ge=0, le=1e12)] | None = None


class CompleteRequest(_Body):
    """The body of ``POST /v1/trials/{trial_id}/complete``.

    Attributes:
        lease_token: of the lease.
        outcome: ``complete``, or ``failed``: then the lane is tried again, by the rules for its ``cause``.
        value: the objective at the end; left out, the last report's.
        cause: why it failed: ``bug`` (the default), ``oom`` (out of memory, not tried again), ``stall``,
            ``device_lost`` (the process was killed), ``bad_output``, or ``preempted`` (given back on purpose, which is
            counted on nothing).
        error: the failure in words, up to 8000 characters.
        record: figures of the whole run.
    """

    lease_token: Token
    outcome: Literal["complete", "failed"]
    value: float | None = None
    cause: Literal["bug", "oom", "stall", "device_lost", "bad_output", "preempted"] | None = None
    error: Annotated[str, Field(max_length=MAX_ERROR)] = ""
    record: RunRecord | None = None


class LeaseOut(Model):
    """A lane to train: one trial under one seed, leased until ``expires_at``.

    Attributes:
        trial_id: the trial, for the addresses of the other calls.
        study_id: its study.
        number: of the trial, in the order of asking; null for a lane that only measures norms.
        stage: ``search``, ``confirm``, or ``probe`` for a lane that only measures norms.
        seed: to train under: weights, data order, dropout.
        setting: how to clip, and a factor on the learning rate.
        workload: what is trained, in the words of the study.
        parameters: of it, likewise.
        objective: name of the number to report, minimized.
        num_steps: optimizer steps of a full run.
        rung_steps: steps at which to report at least, ascending; the last one is ``num_steps``.
        reference_norm: median gradient norm without clipping, which some methods need; null before it was measured.
        lease_token: proves the lease; shown once.
        lease_seconds: how long a sign of life lasts; send one every quarter of it.
        expires_at: when the lease ends without one.
    """

    trial_id: str
    study_id: str
    number: int | None
    stage: Stage | Literal["probe"]
    seed: int
    setting: ClipSetting
    workload: str
    parameters: dict[str, ParameterValue]
    objective: str
    num_steps: int
    rung_steps: tuple[int, ...]
    reference_norm: float | None = None
    lease_token: str
    lease_seconds: float
    expires_at: datetime


class WaitingOut(Model):
    """No lane is ready: ask again.

    Attributes:
        state: ``waiting``.
        detail: what is waited for.
        retry_after: when to ask again, in seconds; the header ``Retry-After`` says the same.
    """

    state: Literal["waiting"] = "waiting"
    detail: str
    retry_after: int = 1


class DirectiveOut(Model):
    """Whether to go on.

    Attributes:
        go_on: false ends the training: the trial was pruned, the training diverged, the study has ended.
        reason: why; empty to go on.
        expires_at: when the lease ends without another sign of life; null at the end.
    """

    go_on: bool
    reason: str
    expires_at: datetime | None


class CompletedOut(Model):
    """Where a lane went.

    Attributes:
        state: ``complete``, ``diverged``, ``waiting`` (to be tried again), ``fail``, and ``pruned`` or ``closed`` if it
            was not wanted any more.
    """

    state: Literal["complete", "diverged", "waiting", "fail", "pruned", "closed"]
