"""What travels over HTTP: one class per body, shared by the API and the client.

Answers are frozen pydantic models; the evidence inside them is made of `tuner`'s own dataclasses, so a bound or
a word is defined once. The request that submits a study is `StudyRequest`, a `StudySpec` with a name. Times are
RFC 3339 in UTC. Importing this file loads neither a database nor a web library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from service.states import JobState
from tuner.errors import SpecError
from tuner.evidence import Estimate, LaneResult, NormSketch, PairedDifference, TrialState, Verdict
from tuner.parameters import ParameterValue
from tuner.spec import ClipSetting, StudySpec

Item = TypeVar("Item")

#: Longest name of a study, in characters.
MAX_NAME = 100
#: Kinds of event after which a study's stream ends.
TERMINAL_EVENTS = frozenset(str(state) for state in JobState if state.is_done)


class Model(BaseModel):
    """Base of every answer: frozen; a client ignores fields that a newer server adds."""

    model_config = ConfigDict(frozen=True, extra="ignore")


@dataclass(frozen=True, kw_only=True)
class StudyRequest(StudySpec):
    """The body of ``POST /v1/studies``: the question, and a name for people.

    Attributes:
        name: unique among your studies, up to 100 printable characters. The same name with the same question
            gives the same study; with another question it is refused.
    """

    name: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _require_printable(field.name, getattr(self, field.name))
        if self.name is not None and not 1 <= len(self.name) <= MAX_NAME:
            raise SpecError("name", f"must have 1 to {MAX_NAME} characters, got {len(self.name)}")
        super().__post_init__()

    def to_spec(self, parameters: Mapping[str, ParameterValue]) -> StudySpec:
        """The question alone, with all of the workload's parameters written out.

        Args:
            parameters: what `tuner.spec.resolve_parameters` gave.

        Returns:
            The spec to store.
        """
        names = [field.name for field in dataclasses.fields(StudySpec)]
        return StudySpec(**{name: getattr(self, name) for name in names} | {"parameters": dict(parameters)})


def _require_printable(field: str, value: Any) -> None:
    """Refuse what no database column takes: control characters (NUL) and lone surrogates.

    Raises:
        SpecError: if a text in the value has any.
    """
    if isinstance(value, str) and not value.isprintable():
        raise SpecError(field, "must consist of printable characters; take out control characters")
    if isinstance(value, tuple):
        for each in value:
            _require_printable(field, each)
    if isinstance(value, Mapping):
        for key, each in value.items():
            _require_printable(field, key)
            _require_printable(f"{field}.{key}", each)


class RecommendationOut(Model):
    """The answer of a study with its evidence; see `tuner.evidence.Recommendation` for the figures.

    Attributes:
        id: identity of the recommendation.
        study_id: the study that found it.
        workload: what was trained.
        fingerprint: workload with its parameters, 16 hexadecimal characters.
        parameters: the workload's parameters, all of them.
        created_at: when it was stored.
        threshold_name: the name of the tuned number, None for *off*.
        threshold_unit: its unit in words, empty for *off*.
        snippets: how to write the setting, by framework.
        provenance: versions and device behind the figures.
    """

    id: str
    study_id: str
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
    snippets: dict[str, str]
    provenance: dict[str, Any]


class RecommendationAnswer(Model):
    """What is known for a query.

    Attributes:
        match: ``exact`` (same fingerprint, or none was asked for), ``workload`` (same workload with other
            parameters: treat with care) or ``none``.
        recommendation: the newest that matches; None for ``none``.
        reason: why it is this one, or why there is none, in a sentence.
    """

    match: Literal["exact", "workload", "none"]
    recommendation: RecommendationOut | None
    reason: str


class StudyError(Model):
    """Why a study ended without a recommendation."""

    code: str
    detail: str


class StudyOut(Model):
    """A study and where it stands.

    Attributes:
        state: state of its job.
        done: whether the state is final; then exactly one of ``result`` and ``error`` is set.
        spec: the question with every default written out.
        attempt: executions that ended in an error, the current one included; lost and interrupted ones are not.
        num_trials_ended: settings whose evaluation has ended, pruned and failed ones included.
        reference: gradient norms that the probe measured, before clipping; None before the probe.
    """

    id: str
    name: str | None
    state: JobState
    done: bool
    workload: str
    spec: dict[str, Any]
    fingerprint: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int
    num_trials_ended: int
    reference: dict[str, Any] | None = None
    result: RecommendationOut | None
    error: StudyError | None


class TrialOut(Model):
    """One clip setting of a study.

    Attributes:
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
    state: TrialState
    mean: float | None
    standard_error: float | None
    num_diverged: int
    clip_fraction: float | None
    lanes: tuple[LaneResult, ...]
    rungs: dict[int, dict[int, float | None]]
    error: str | None = None


class EventOut(Model):
    """Something that happened to a study; ``id`` grows, and a stream goes on after it."""

    id: int
    kind: str
    created_at: datetime
    payload: dict[str, Any]

    @property
    def is_terminal(self) -> bool:
        """Whether the study's stream ends with this event."""
        return self.kind in TERMINAL_EVENTS


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


class WorkerOut(Model):
    """A worker process; ``alive`` says whether it was seen within a minute and has not stopped."""

    id: str
    hostname: str
    pid: int
    version: str
    device: str
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
