"""A cohort, the unit of training, and the events it tells while it runs. Plain values, no torch.

A cohort is K clip settings x S seeds of one workload. Whoever trains it (one lane at a time, or all lanes as
one batched program) takes a `Cohort` and yields `Event`s: a few `Progressed`, one `RungReached` per rung,
one `TrialEnded` per trial. The training process sends them as JSON lines; `Cohort.to_json` and
`Cohort.from_json` carry the request the other way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tuner.evidence import LaneResult, Reference
from tuner.parameters import ParameterValue
from tuner.spec import ClipSetting, Lanes

#: How lanes train: as one batched program, or one at a time.
Path = Literal["lanes", "solo"]
#: The reason of a part of a cohort that did not measure which is faster.
AS_OTHERS = "as it was measured for the cohort's other parts"


@dataclass(frozen=True, kw_only=True)
class CohortTrial:
    """One clip setting of a cohort.

    Attributes:
        id: the trial's identity, as in `tuner.evidence.Trial`.
        setting: the candidate.
        protected: True for *off* and the value in use today: never pruned, because everything is compared
            with them.
    """

    id: str
    setting: ClipSetting
    protected: bool = False


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """What to train together.

    Attributes:
        workload: registered name.
        parameters: all the workload's parameters, resolved.
        trials: settings, at least one.
        seeds: training seeds, the same for every trial.
        rung_steps: ascending steps at which trials are compared; the last is the length of a full run.
        divergence_factor: see `tuner.spec.StudySpec`.
        history: per rung step, the objectives (means over seeds; inf = diverged) of earlier cohorts' trials.
        reference_norm: median L2 gradient norm that the probe measured; what clippers with a scale of their own need.
        largest_norm: largest L2 gradient norm that the probe measured: a trial with a clearly larger threshold
            starts as the *off* lane of its seed.
        lanes: how many lanes may train as one batch: a number, ``auto`` to measure, ``solo`` for one at a time.
        ended: trials that were trained with these and have their results already: a checkpoint from before they
            ended trains them again beside the others, untold, so that those end as if nothing had happened.
    """

    workload: str
    parameters: Mapping[str, ParameterValue]
    trials: tuple[CohortTrial, ...]
    seeds: tuple[int, ...]
    rung_steps: tuple[int, ...]
    divergence_factor: float
    history: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    reference_norm: float | None = None
    largest_norm: float | None = None
    lanes: Lanes = "auto"
    ended: tuple[str, ...] = ()

    @property
    def clips(self) -> tuple[str, ...]:
        """Ids of the trials with a clipper."""
        return tuple(trial.id for trial in self.trials if not trial.setting.is_off)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an infinity is written as None."""
        document = dataclasses.asdict(self)
        document["history"] = {
            str(step): [value if value != float("inf") else None for value in values]
            for step, values in self.history.items()
        }
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Cohort:
        """Read what `to_json` wrote."""
        return cls(
            workload=document["workload"],
            parameters=document["parameters"],
            trials=tuple(
                CohortTrial(
                    id=trial["id"], setting=ClipSetting(**trial["setting"]), protected=trial["protected"]
                )
                for trial in document["trials"]
            ),
            seeds=tuple(document["seeds"]),
            rung_steps=tuple(document["rung_steps"]),
            divergence_factor=document["divergence_factor"],
            history={
                int(step): tuple(float("inf") if value is None else value for value in values)
                for step, values in document["history"].items()
            },
            reference_norm=document["reference_norm"],
            largest_norm=document["largest_norm"],
            lanes=document["lanes"],
            ended=tuple(document["ended"]),
        )


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """Lanes moved on; told about once a second, and proof that the training is not stalled.

    Attributes:
        lane_steps: optimizer steps taken so far in this cohort, over all lanes.
        total_lane_steps: steps the cohort will have taken if no further lane ends early: those of the lanes
            that ended, and full runs of the others.
        step: the step of the lane that is training now.
    """

    lane_steps: int
    total_lane_steps: int
    step: int
    kind: Literal["progress"] = "progress"


@dataclass(frozen=True, kw_only=True)
class LaneStarted:
    """One lane trains by itself from here on, with the user's own loop: whatever breaks now is this trial's.

    Attributes:
        trial_id: which.
        seed: its training seed.
    """

    trial_id: str
    seed: int
    kind: Literal["lane"] = "lane"


@dataclass(frozen=True, kw_only=True)
class LaneValue:
    """Objective of one lane at one rung; ``value`` is None if the lane has diverged."""

    trial_id: str
    seed: int
    value: float | None


@dataclass(frozen=True, kw_only=True)
class RungReached:
    """Every live trial of the cohort reached a rung; a training function's trials do so one after the other.

    Attributes:
        index: number of the rung, from 0.
        step: the step it stands for.
        values: one per live trial and seed; of a training function's trial, one per seed that was trained so far.
        pruned: trials that end here because they were worse than the median.
    """

    index: int
    step: int
    values: tuple[LaneValue, ...]
    pruned: tuple[str, ...]
    kind: Literal["rung"] = "rung"


@dataclass(frozen=True, kw_only=True)
class PartReached:
    """Every live trial of a part of a cohort reached a rung; the part waits there for a decision, but for the last.

    Attributes:
        index: number of the rung, from 0.
        step: the step it stands for.
        values: one per live trial and seed of the part.
    """

    index: int
    step: int
    values: tuple[LaneValue, ...]
    kind: Literal["part"] = "part"


@dataclass(frozen=True, kw_only=True)
class TrialEnded:
    """A trial has its result.

    Attributes:
        trial_id: which.
        state: ``complete`` (trained to the last rung, diverged lanes included) or ``pruned``.
        lanes: one result per seed, ordered by seed; of a pruned trial of a training function, of the seeds that were
            trained.
    """

    trial_id: str
    state: Literal["complete", "pruned"]
    lanes: tuple[LaneResult, ...]
    kind: Literal["trial"] = "trial"


@dataclass(frozen=True, kw_only=True)
class ProbeMeasured:
    """The probe has the reference norms."""

    reference: Reference
    kind: Literal["probe"] = "probe"


@dataclass(frozen=True, kw_only=True)
class EngineChosen:
    """How the cohort is trained, and why; told once, before the first step, and again if it changes.

    Attributes:
        path: ``lanes`` (as one batched program), ``solo`` (one lane at a time) or ``external`` (by people's own
            processes).
        num_lanes: lanes that train together in one program.
        reason: a sentence.
        lanes_per_second: measured optimizer steps per second over all lanes, batched; None if not measured.
        solo_per_second: the same one lane at a time.
    """

    path: Path | Literal["external"]
    num_lanes: int
    reason: str
    lanes_per_second: float | None = None
    solo_per_second: float | None = None
    kind: Literal["engine"] = "engine"


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """The cohort goes on from a checkpoint; told once, before the first step.

    Attributes:
        index: the rung at which it was written, from 0.
        step: optimizer steps that its lanes had taken.
        lane_steps: the same over all lanes: what need not be trained again.
        seconds: what reading and restoring it took.
        is_again: whether whoever counts steps has counted these, because they were taken before its eyes.
    """

    index: int
    step: int
    lane_steps: int
    seconds: float
    is_again: bool = False
    kind: Literal["resumed"] = "resumed"


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    """What is needed to go on from a rung is on the disk.

    Attributes:
        index: the rung, from 0.
        step: the step it stands for.
        num_bytes: size of the checkpoint.
        seconds: what the write took.
    """

    index: int
    step: int
    num_bytes: int
    seconds: float
    kind: Literal["checkpoint"] = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class CheckpointFailed:
    """A checkpoint could not be written, or not be used; training goes on without it.

    Attributes:
        error: which and why, as one sentence.
    """

    error: str
    kind: Literal["checkpoint_failed"] = "checkpoint_failed"


CheckpointEvent = Resumed | CheckpointSaved | CheckpointFailed
RungEvent = RungReached | PartReached
Event = EngineChosen | LaneStarted | Progressed | RungEvent | TrialEnded | ProbeMeasured | CheckpointEvent
