"""What trainings showed: results of lanes and trials, and the recommendation built on them. No torch.

A lane is one trial under one seed. Divergence is a value here (``value is None``, with its step), never an
exception. What a lane recorded on the way is `tuner.records`. These types are what the training process reports, what
the search reads, what the service stores and what the API shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tuner.records import LaneRecord as LaneRecord
from tuner.records import LossSketch as LossSketch
from tuner.records import NormSketch as NormSketch
from tuner.records import Phase as Phase
from tuner.records import PhaseSketch as PhaseSketch
from tuner.spec import ClipSetting


class TrialState(StrEnum):
    """Where a trial stands (Optuna's words)."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAIL = "fail"

    @property
    def is_open(self) -> bool:
        """Whether a result is still to come."""
        return self in (TrialState.WAITING, TrialState.RUNNING)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the probe measured at frozen weights: the scales that kappa is relative to.

    Attributes:
        l2_norm: sketch of the L2 norm of the whole gradient, before clipping.
        max_abs: sketch of the largest absolute element of the gradient.
        num_batches: training batches measured, over all seeds.
    """

    l2_norm: NormSketch
    max_abs: NormSketch
    num_batches: int


@dataclass(frozen=True, kw_only=True)
class LaneResult(LaneRecord):
    """What one lane (one trial under one seed) did until it ended.

    Attributes:
        seed: training seed.
        value: the objective on held-out data at the last rung reached (minimized); None if diverged.
        seconds: wall time spent on training this lane's steps.
        num_shared_steps: steps this lane did not train itself because it was, bit for bit, the *off* lane of its
            seed: its threshold was not exceeded until then; equal to ``num_steps`` if it never was.
    """

    seed: int
    value: float | None
    seconds: float
    num_shared_steps: int = 0

    @classmethod
    def of(
        cls,
        record: LaneRecord,
        *,
        seed: int,
        value: float | None,
        divergence_step: int | None,
        seconds: float,
        num_shared_steps: int = 0,
    ) -> LaneResult:
        """A record with what only the loop knows.

        Args:
            record: what the lane recorded.
            seed: training seed.
            value: see the class.
            divergence_step: the record's, or the rung at which the objective passed the bound.
            seconds: see the class.
            num_shared_steps: see the class.

        Returns:
            The result.
        """
        own = {
            "seed": seed,
            "value": value,
            "divergence_step": divergence_step,
            "seconds": seconds,
            "num_shared_steps": num_shared_steps,
        }
        return cls(**vars(record) | own)

    @property
    def diverged(self) -> bool:
        """Whether the lane diverged."""
        return self.divergence_step is not None

    @property
    def is_off_run(self) -> bool:
        """Whether the whole lane was its seed's *off* lane, trained once for both."""
        return self.num_shared_steps == self.num_steps > 0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One clip setting of a study and what is known of it.

    Attributes:
        id: identity in the database, or any unique text.
        number: position in the order of asking, from 0.
        cohort: number of the cohort it was asked in, from 0.
        setting: the candidate.
        state: where it stands.
        rungs: objective by rung step and seed; None where the lane had diverged.
        lanes: one result per seed once the trial ended, ordered by seed; empty before, and if it failed.
    """

    id: str
    number: int
    cohort: int
    setting: ClipSetting
    state: TrialState = TrialState.WAITING
    rungs: Mapping[int, Mapping[int, float | None]] = field(default_factory=dict)
    lanes: tuple[LaneResult, ...] = ()

    @property
    def num_diverged(self) -> int:
        """How many of its lanes diverged."""
        return sum(lane.diverged for lane in self.lanes)


class Verdict(StrEnum):
    """The answer to "does clipping matter here?"."""

    CLIP = "clip"
    NO_DIFFERENCE = "no_difference"
    DO_NOT_CLIP = "do_not_clip"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Objective of one setting over the seeds that did not diverge.

    Attributes:
        mean: mean over those seeds; None if every seed diverged.
        standard_error: of that mean; None with fewer than two values.
        num_seeds: seeds that ended with a value.
        num_diverged: seeds that diverged.
    """

    mean: float | None
    standard_error: float | None
    num_seeds: int
    num_diverged: int


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean over seeds of (best clip setting - other setting); negative favours the best.

    Attributes:
        mean: mean difference of the objective.
        low: lower end of the simultaneous 95 % confidence interval: if the best was chosen among N settings on these
            same seeds, the quantile is that of 1 - 0.025 / N (Bonferroni), so that the choice is allowed for.
        high: upper end of the same interval.
        num_pairs: seeds in which both have a value, at least 2.
        test: how the interval was computed, for example ``paired t, Bonferroni over 6 settings``.
    """

    mean: float
    low: float
    high: float
    num_pairs: int
    test: str = "paired t"


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The answer of a study, with its evidence.

    Attributes:
        verdict: see `Verdict`.
        setting: what to train with; *off* unless the verdict is ``clip``, and the best seen if inconclusive.
        interval: lowest and highest tried threshold of that method not distinguishable from the best;
            None when the setting is *off*.
        reason: the verdict in a sentence, with the figures it rests on.
        value: objective of the best clip setting, the one ``difference`` is about; None if every one diverged.
        best: that best clip setting; None if every one diverged.
        off: objective without clipping.
        difference: paired difference of ``best`` against *off*; None with fewer than two common seeds.
        against_current: the same against the value in use today; None if the study named none.
        clip_fraction: share of steps that ``best`` scaled, mean over seeds; None without ``best``.
        mean_scale: mean factor of ``best``; None without ``best``.
        norms: gradient norms before clipping under ``best``, medians over seeds; None without ``best``.
        kappa: threshold of ``best`` / median reference norm; None without ``best``.
        spike_ratio: largest norm / median norm under ``best``, median over seeds; None if not recorded.
        tail_index: Hill's estimate of the exponent of the norms' tail under ``best``, median over seeds; None if not
            recorded, or with fewer than 100 norms.
        objective: name of the minimized number, for example ``val_loss``.
        num_trials: settings evaluated.
        num_diverged_trials: settings with at least one diverged seed.
        lane_steps: optimizer steps spent over all lanes; steps shared with *off* count once.
        full_runs: the same in full single-seed runs.
        train_seconds: wall time spent in training steps.
    """

    verdict: Verdict
    setting: ClipSetting
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

    def to_json(self) -> dict[str, Any]:
        """The recommendation as plain JSON values."""
        return dataclasses.asdict(self)
