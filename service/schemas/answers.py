"""Bodies that the service answers with: frozen pydantic models around `tuner`'s own dataclasses."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from service.states import JobState
from tuner.evidence import (
    Estimate,
    FailureRate,
    LaneResult,
    NormSketch,
    PairedDifference,
    Stage,
    TrialState,
    Verdict,
)
from tuner.parameters import ParameterValue
from tuner.spec import ClipSetting

Item = TypeVar("Item")

#: Kinds of event after which a study's stream ends, unless the study was extended.
TERMINAL_EVENTS = frozenset(str(state) for state in JobState if state.is_done)


class Model(BaseModel):
    """Base of every answer: frozen; a client ignores fields that a newer server adds."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RecommendationOut(Model):
    """The answer of a study with its evidence; see `tuner.evidence.Recommendation` for the figures.

    Attributes:
        id: identity of the recommendation.
        study_id: the study that found it.
        version: 1, and one more each time the study was extended; older ones stay as they were.
        workload: what was trained.
        fingerprint: what was trained, see `StudyOut`, 16 hexadecimal characters.
        parameters: the workload's parameters, all of them.
        created_at: when it was stored.
        threshold_name: the name of the tuned number, None for *off*.
        threshold_unit: its unit in words, empty for *off*.
        reference_norm: median L2 gradient norm that the study's probe measured, before clipping, which methods with
            constants of that scale were trained with; None if it measured none.
        snippets: how to write the setting, by framework.
        provenance: versions, device, sampler, warm start and extensions behind the figures.
    """

    id: str
    study_id: str
    version: int = 1
    workload: str
    fingerprint: str
    parameters: dict[str, ParameterValue]
    created_at: datetime
    verdict: Verdict
    setting: ClipSetting
    threshold_name: str | None
    threshold_unit: str
    interval: tuple[float, float] | None
    reason: str
    best: ClipSetting | None
    value: Estimate | None
    off: Estimate
    difference: PairedDifference | None
    against_current: PairedDifference | None
    clip_fraction: float | None
    mean_scale: float | None
    norms: NormSketch | None
    kappa: float | None
    objective: str
    num_trials: int
    num_diverged_trials: int
    lane_steps: int
    full_runs: float
    train_seconds: float
    spike_ratio: float | None = None
    tail_index: float | None = None
    num_fresh_seeds: int = 0
    more_seeds: int | None = None
    failures: FailureRate | None = None
    off_failures: FailureRate | None = None
    step_cap: float | None = None
    matched: Estimate | None = None
    against_matched: PairedDifference | None = None
    search_end: str = ""
    reference_norm: float | None = None
    snippets: dict[str, str]
    provenance: dict[str, Any]


class NeighbourOut(Model):
    """The answer of a study of something similar, carried over to what was asked about.

    Attributes:
        recommendation_id: the answer itself is at ``/v1/recommendations/{recommendation_id}``.
        study_id: the study that found it.
        workload: what was trained there.
        verdict: there; ``no_difference`` and ``do_not_clip`` carry *off* over.
        setting: what it suggests here: the same kappa, times the median norm that was asked about; a tuned learning
            rate there as a factor on the one that was asked about.
        interval: equally good thresholds there, carried over by the same factor; None where there were none.
        kappa: threshold / median reference norm; None for a threshold that is relative to no norm, and for *off*.
        distance: see `service.recommendations.distance`; 0 is the same thing.
        quality: ``close`` or ``rough``, by the distance.
        differences: what differs, in words.
        created_at: when the answer was stored.
    """

    recommendation_id: str
    study_id: str
    workload: str
    verdict: Verdict
    setting: ClipSetting
    interval: tuple[float, float] | None
    kappa: float | None
    distance: float
    quality: Literal["close", "rough"]
    differences: tuple[str, ...]
    created_at: datetime


class RecommendationAnswer(Model):
    """What is known for a query.

    Attributes:
        match: ``exact`` (same fingerprint, or nothing but the workload was asked for), ``workload`` (same workload
            with something else different: treat with care), ``similar`` (by what is trained, the workload's own
            studies among them) or ``none``.
        recommendation: the newest that matches; None for ``similar`` and ``none``.
        reason: why it is this one, or why there is none, in a sentence.
        neighbours: for ``similar``, at most five, the nearest first.
    """

    match: Literal["exact", "workload", "similar", "none"]
    recommendation: RecommendationOut | None
    reason: str
    neighbours: tuple[NeighbourOut, ...] = ()


class WarmStart(Model):
    """A setting that a study's search began with, taken over from a similar study.

    Attributes:
        recommendation_id: the answer that it was taken from.
        study_id: the study that found it.
        distance: see `service.recommendations.distance`.
        setting: carried over to the norms of the study that begins with it.
    """

    recommendation_id: str
    study_id: str
    distance: float
    setting: ClipSetting


class StudyError(Model):
    """Why a study's newest job ended without a recommendation; of an extension, the version before stands."""

    code: str
    detail: str


class StudyOut(Model):
    """A study and where it stands.

    Attributes:
        state: state of its newest job; extending a study queues another one.
        priority: studies with a higher one go first.
        done: whether the state is final; then ``result`` or ``error`` is set, and both if an extension failed.
        spec: the question with every default written out.
        fingerprint: what is trained: workload, parameters and, once the probe has looked at it, model, optimizer,
            learning rate, batch size and precision; 16 hexadecimal characters.
        attempt: executions that ended in an error, the current one included; lost and interrupted ones are not.
        num_trials_ended: settings whose evaluation in the search has ended, pruned and failed ones included; repeats
            on fresh seeds are not counted.
        device_seconds: how long devices were held for it, in seconds, summed over the devices.
        reference: gradient norms that the probe measured, before clipping; None before the probe.
        extensions: numbers of further fresh seeds that were asked for, in order.
        warm_start: settings taken over from similar studies; None before the probe, or if it was switched off.
        result: its newest recommendation; while an extension runs, the one before.
        error: why its newest job ended without one.
    """

    id: str
    name: str | None
    state: JobState
    priority: int = 0
    done: bool
    workload: str
    spec: dict[str, Any]
    fingerprint: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int
    num_trials_ended: int
    device_seconds: float = 0.0
    reference: dict[str, Any] | None = None
    extensions: tuple[int, ...] = ()
    warm_start: tuple[WarmStart, ...] | None = None
    result: RecommendationOut | None
    error: StudyError | None


class TrialOut(Model):
    """One clip setting of a study.

    Attributes:
        stage: ``search``, or ``confirm`` for a repeat on fresh seeds.
        seeds: its training seeds.
        mean: mean objective over the seeds that did not diverge; None before the end or if all diverged.
        standard_error: of that mean; None with fewer than two values.
        num_diverged: seeds that diverged.
        clip_fraction: share of steps, in [0, 1], whose gradient was scaled; mean over seeds.
        lanes: one result per seed once the trial has ended.
        rungs: objective by step and seed; None where the lane had diverged.
        error: why the trial failed, if it did.
    """

    id: str
    number: int
    cohort: int
    setting: ClipSetting
    stage: Stage = Stage.SEARCH
    seeds: tuple[int, ...] = ()
    state: TrialState
    mean: float | None
    standard_error: float | None
    num_diverged: int
    clip_fraction: float | None
    lanes: tuple[LaneResult, ...]
    rungs: dict[int, dict[int, float | None]]
    error: str | None = None


class EventOut(Model):
    """Something that happened to a study; ``id`` grows, and a stream goes on after it.

    Attributes:
        superseded: whether the study was extended after it, so that a ``succeeded`` is not the end.
    """

    id: int
    kind: str
    created_at: datetime
    payload: dict[str, Any]
    superseded: bool = False

    @property
    def is_terminal(self) -> bool:
        """Whether the study's stream ends with this event."""
        return self.kind in TERMINAL_EVENTS and not self.superseded


class WorkloadOut(Model):
    """A workload that workers can train; ``parameters`` is a JSON Schema object."""

    name: str
    description: str
    objective: str
    parameters: dict[str, Any]


class MethodOut(Model):
    """A clipping method with its default search range, in kappa or in the threshold's own unit.

    Attributes:
        kappa_low: lower end of the range in units of the median reference norm; None if the threshold is relative to
            no norm.
        kappa_high: upper end, likewise.
        threshold_low: lower end of the range of a threshold that is relative to no norm; None otherwise.
        threshold_high: upper end, likewise.
        axis: what the search is uniform on: ``log``, ``log_excess`` (of x - 1) or ``logit``.
    """

    name: str
    summary: str
    threshold_name: str | None
    threshold_unit: str
    kappa_low: float | None
    kappa_high: float | None
    threshold_low: float | None
    threshold_high: float | None
    axis: str


class BadgeOut(Model):
    """Where a badge is, for a README; ``token`` opens this badge and nothing else, as long as its key lives."""

    json_url: str
    svg_url: str
    markdown: str
    token: str


class SlotOut(Model):
    """A device that a worker trains on.

    Attributes:
        name: different from the worker's other slots.
        device: ``cpu`` or ``cuda``; ``any`` for a node of a cluster.
        threads: CPU threads of a training, 0 is PyTorch's choice.
        state: ``busy``, ``free``, or ``aside`` while it can't be used.
        study_id: whose training it has.
        reason: why it is set aside; it is tried again from time to time.
    """

    name: str
    device: str
    threads: int
    state: Literal["busy", "free", "aside"]
    study_id: str | None
    reason: str | None


class WorkerOut(Model):
    """A worker process; ``alive`` says whether it was seen within a minute and has not stopped."""

    id: str
    hostname: str
    pid: int
    version: str
    device: str
    slots: tuple[SlotOut, ...]
    started_at: datetime
    seen_at: datetime
    stopped_at: datetime | None
    alive: bool


class Page(Model, Generic[Item]):
    """Part of a list; hand ``next_cursor`` back as ``cursor`` for the next one, None at the end."""

    items: list[Item]
    next_cursor: str | None = None


class FieldProblem(Model):
    """One invalid field; ``pointer`` is a JSON Pointer into the body, or ``query/NAME``."""

    detail: str
    pointer: str


class Problem(Model):
    """Every error (RFC 9457). ``code`` is stable; ``detail`` says what to do."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[FieldProblem] = Field(default_factory=list)


class Health(Model):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(Model):
    """The service can take and run studies; ``workers`` were seen within a minute."""

    ready: bool
    workers: int


class Version(Model):
    """What is running."""

    name: str = "cliptune"
    version: str
    api: str = "v1"
