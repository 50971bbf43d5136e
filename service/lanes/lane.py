"""What a lane is to those who ask, tell and drive: plain values; the SQL behind them is elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from sqlalchemy import Row

from service.errors import ConflictError
from service.lanes.token import LeaseToken
from service.states import JobState
from tuner.evidence import Stage
from tuner.spec import ClipSetting, StudySpec, study_spec


class LaneStatus(StrEnum):
    """Where a lane stands. A closed list, with a sentence each."""

    WAITING = "waiting"
    """Nobody has it; also after a lost process or an error that is retried."""
    LEASED = "leased"
    """A process trains it."""
    COMPLETE = "complete"
    """Trained to its end."""
    PRUNED = "pruned"
    """Its trial was among the worst at a rung; it had begun."""
    DIVERGED = "diverged"
    """Its objective was not finite, or passed the spec's bound: a result."""
    FAIL = "fail"
    """Given up after errors or lost processes; ``last_cause`` and ``last_error`` say why."""
    CLOSED = "closed"
    """Not wanted any more: its trial or its study has ended."""

    @property
    def is_open(self) -> bool:
        """Whether it is still to be trained to its end."""
        return self in (LaneStatus.WAITING, LaneStatus.LEASED)


@dataclass(frozen=True, kw_only=True)
class LaneState:
    """A lane as its rows have it.

    Attributes:
        trial_id: its trial; of a lane that measures norms, what its worker named it.
        seed: its training seed.
        position: order of asking.
        is_probe: whether it only measures gradient norms.
        state: where it stands.
        fence: number of its newest lease, 0 before the first.
        client_id: who has it, or had it last; None before the first lease.
        attempt: executions that ended in an error.
        lost_count: processes lost.
        last_cause: what interrupted it last, see `service.jobs.retry.Cause`; None if nothing did.
        last_error: in words.
        step: of the newest report with an objective under the newest lease; None without any.
        value: that objective, or what the completion brought; None if it was not finite, or without any.
        initial: the objective at step 0; None if it was not reported.
        record: what the completion told of the run: ``clip_fraction``, ``mean_scale``, ``num_steps``, ``seconds``; None
            if it told nothing.
        reports: objective by step, of the newest lease that reported; None = not finite. Without norms, only the first
            one at or past each rung but the last, under the newest lease that got there.
        norms: gradient norms before clipping, of the same lease, in order; empty if they were not asked for.
        created_at: milliseconds since 1970.
        leased_at: of the newest lease, likewise; None before the first.
        finished_at: when it ended; None while it is open.
    """

    trial_id: str
    seed: int
    position: int
    is_probe: bool
    state: LaneStatus
    fence: int
    client_id: str | None
    attempt: int
    lost_count: int
    last_cause: str | None
    last_error: str | None
    step: int | None
    value: float | None
    initial: float | None
    record: Mapping[str, Any] | None
    reports: Mapping[int, float | None]
    norms: tuple[float, ...]
    created_at: int
    leased_at: int | None
    finished_at: int | None


def trial_setting(trial: Row[Any]) -> ClipSetting:
    """The clip setting of a row with a trial's columns."""
    return ClipSetting(
        method=trial.method, threshold=trial.threshold, learning_rate_scale=trial.learning_rate_scale
    )


@dataclass(frozen=True, kw_only=True)
class Leased:
    """A lane that was just leased, with what its training needs to know.

    Attributes:
        trial_id: its trial.
        study_id: its study.
        number: of the trial, in the order of asking; None for a probe.
        stage: what it is for; None for a probe.
        seed: training seed.
        setting: how to clip.
        spec: the study's question.
        num_steps: optimizer steps of a full run.
        reference_norm: median gradient norm that the study's probe measured; None before it.
        token: proves the lease.
        expires_at: when the lease ends without a sign of life, in milliseconds since 1970.
    """

    trial_id: str
    study_id: str
    number: int | None
    stage: Stage | None
    seed: int
    setting: ClipSetting
    spec: StudySpec
    num_steps: int
    reference_norm: float | None
    token: str
    expires_at: int

    @classmethod
    def of(
        cls,
        row: Row[Any],
        trial: Row[Any] | None,
        *,
        study_id: str,
        spec: StudySpec,
        reference_norm: float | None,
        secret: str,
    ) -> Self:
        """What the statement that leased a lane returned, with what belongs to it.

        Args:
            row: of ``lease`` or ``reenter``.
            trial: its trial; None for a probe, which trains without clipping.
            study_id: see the class.
            spec: see the class.
            reference_norm: see the class.
            secret: what the row keeps the digest of.

        Returns:
            The lane.
        """
        setting = ClipSetting(method="none") if trial is None else trial_setting(trial)
        return cls(
            trial_id=row.trial_id,
            study_id=study_id,
            number=None if trial is None else trial.number,
            stage=None if trial is None else Stage(trial.stage),
            seed=row.seed,
            setting=setting,
            spec=spec,
            num_steps=row.num_steps or spec.num_steps,
            reference_norm=reference_norm,
            token=str(LeaseToken(row.seed, row.fence, secret)),
            expires_at=row.lease_until,
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a training process tells at a step.

    Attributes:
        step: optimizer steps taken, from 0.
        has_value: False if it only brings norms.
        value: the objective; None if it is not finite.
        norms: gradient norms before clipping since the report before.
    """

    step: int
    has_value: bool
    value: float | None
    norms: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Completion:
    """How a process ends its lease.

    Attributes:
        cause: why it failed, see `service.jobs.retry.Cause`; None if it is complete.
        error: the failure in words.
        value: the objective at the end; None takes the last report's.
        record: figures of the whole run; None without any.
    """

    cause: str | None = None
    error: str = ""
    value: float | None = None
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Directive:
    """Whether to go on.

    Attributes:
        go_on: False ends the training.
        reason: why; empty to go on.
        expires_at: when the lease ends without another sign of life, in milliseconds since 1970; None at the end.
    """

    go_on: bool
    reason: str = ""
    expires_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Held:
    """A lane's row as a call finds it, locked, with its study and that study's job.

    Attributes:
        trial_id: its trial.
        study_id: its study.
        seed: training seed.
        state: where it stands.
        fence: of the newest lease.
        token_sha256: of that lease; None once it was reaped.
        is_probe: whether it only measures norms.
        num_steps: of a full run.
        attempt: executions that ended in an error.
        lost_count: processes lost.
        step: of the last objective under this lease; None without any.
        value: that objective.
        initial: the objective at step 0; None if it was not reported.
        rungs: by rung, as text: step and objective of the first report at or past it.
        num_reports: stored under any lease.
        spec: the study's question.
        job_state: where the study stands.
        cancel_requested: whether somebody cancelled it.
    """

    trial_id: str
    study_id: str
    seed: int
    state: LaneStatus
    fence: int
    token_sha256: str | None
    is_probe: bool
    num_steps: int
    attempt: int
    lost_count: int
    step: int | None
    value: float | None
    initial: float | None
    rungs: Mapping[str, Any]
    num_reports: int
    spec: StudySpec
    job_state: JobState
    cancel_requested: bool

    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        """What the statement ``hold`` returned."""
        spec = study_spec(row.spec)
        values = row._asdict() | {
            "state": LaneStatus(row.state),
            "job_state": JobState(row.job_state),
            "spec": spec,
            "num_steps": row.num_steps or spec.num_steps,
        }
        return cls(**values)

    @property
    def ended_study(self) -> str | None:
        """Why the study wants nothing more; None while it runs."""
        if self.cancel_requested or self.job_state is JobState.CANCELLED:
            return "the study was cancelled"
        return f"the study has {self.job_state}" if self.job_state.is_done else None


class LaneLostError(ConflictError):
    """The token's lease is over; nothing was written."""

    code = "lease_lost"

    def __init__(self, trial_id: str, seed: int) -> None:
        super().__init__(
            f"the lease of trial {trial_id} with seed {seed} is lost: it expired, was given back, or was asked for "
            "again; stop this training and ask for another lane"
        )
