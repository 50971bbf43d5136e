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

from tuner.errors import ProbeError
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


class Stage(StrEnum):
    """What a trial is for."""

    #: Finding the setting.
    SEARCH = "search"
    #: Comparing it with *off* and today's value on seeds that the search never saw.
    CONFIRM = "confirm"


@dataclass(frozen=True, kw_only=True)
class Smoothness:
    """How the curvature grows with the gradient: ``curvature <= l0 + l1 * norm`` ((L0, L1)-smoothness).

    Attributes:
        l0: curvature where the gradient vanishes, >= 0.
        l1: its growth per unit of gradient norm, >= 0; the theory expects clipping to help where it is large.
        num_points: places at which both were measured.
        correlation: Pearson's, between curvature and gradient norm over these places, in [-1, 1].
    """

    l0: float
    l1: float
    num_points: int
    correlation: float


@dataclass(frozen=True, kw_only=True)
class Features:
    """What is trained and with what, as far as it can be said without the workload's name.

    Attributes:
        model_signature: hash of the trainable parameters' names and shapes and of the modules' types, 16 hexadecimal
            characters.
        num_parameters: trainable ones.
        num_tensors: in which they come.
        optimizer: its class in lower case, for example ``sgd`` or ``adam``.
        learning_rate: its base rate; None if it was built by a function of the user's.
        batch_size: examples of an optimizer step, accumulation included; None if batches do not say.
        precision: ``fp32``, ``bf16`` or ``fp16``.
    """

    model_signature: str
    num_parameters: int
    num_tensors: int
    optimizer: str
    learning_rate: float | None
    batch_size: int | None
    precision: str


@dataclass(frozen=True, kw_only=True)
class SeedNorms:
    """What the probe measured at the initial weights of one seed: how far seeds differ is how sure a probe is.

    Attributes:
        l2_norm: sketch of the L2 norm of the whole gradient, before clipping.
        max_abs: sketch of the largest absolute element of the gradient.
    """

    l2_norm: NormSketch
    max_abs: NormSketch


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the probe measured at frozen weights: the scales that kappa is relative to.

    An external training has no probe: what it reported of its first run without clipping stands for it.

    Attributes:
        l2_norm: sketch of the L2 norm of the whole gradient, before clipping; None if an external training told none.
        max_abs: sketch of the largest absolute element of the gradient; None for external trainings.
        num_batches: training batches measured, over all seeds; norms that an external training reported.
        spike_ratio: largest L2 norm / median; None if not measured.
        tail_index: Hill's estimate of the exponent of the L2 norms' tail; None if not measured, or with too few.
        smoothness: how the curvature grows with the gradient; None if it could not be estimated.
        features: what was measured; None in references of earlier versions.
        by_seed: the same sketches seed by seed, without seeds that had no finite gradient; empty in references of
            earlier versions and of external trainings.
    """

    l2_norm: NormSketch | None
    max_abs: NormSketch | None
    num_batches: int
    spike_ratio: float | None = None
    tail_index: float | None = None
    smoothness: Smoothness | None = None
    features: Features | None = None
    by_seed: tuple[SeedNorms, ...] = ()

    @property
    def norms(self) -> NormSketch:
        """``l2_norm``, where it is needed.

        Raises:
            ProbeError: if an external training told no norm.
        """
        if self.l2_norm is None:
            raise ProbeError(
                "no gradient norm was reported, so that no range of thresholds can be derived",
                "report norms before clipping (cliptune run reads grad_norm), or give threshold_low and threshold_high",
            )
        return self.l2_norm

    @property
    def median_norm(self) -> float | None:
        """Median L2 norm; None if no norm was told."""
        return None if self.l2_norm is None else self.l2_norm.median


@dataclass(frozen=True, kw_only=True)
class LaneResult(LaneRecord):
    """What one lane (one trial under one seed) did until it ended.

    Attributes:
        seed: training seed.
        value: the objective on held-out data at the last rung reached (minimized); None if diverged.
        seconds: wall time spent on training this lane's steps.
        num_shared_steps: steps this lane did not train itself because it was, bit for bit, the *off* lane of its
            seed: its threshold was not exceeded until then; equal to ``num_steps`` if it never was.
        initial: the objective before the first step; None if it was not finite, or is not recorded.
    """

    seed: int
    value: float | None
    seconds: float
    num_shared_steps: int = 0
    initial: float | None = None

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
        initial: float | None = None,
    ) -> LaneResult:
        """A record with what only the loop knows.

        Args:
            record: what the lane recorded.
            seed: training seed.
            value: see the class.
            divergence_step: the record's, or the rung at which the objective passed the bound.
            seconds: see the class.
            num_shared_steps: see the class.
            initial: see the class.

        Returns:
            The result.
        """
        own = {
            "seed": seed,
            "value": value,
            "divergence_step": divergence_step,
            "seconds": seconds,
            "num_shared_steps": num_shared_steps,
            "initial": initial,
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
        stage: whether it searches or confirms; a setting that is confirmed has a trial of each stage.
        seeds: its training seeds; empty stands for the study's `tuner.spec.StudySpec.seeds`.
    """

    id: str
    number: int
    cohort: int
    setting: ClipSetting
    state: TrialState = TrialState.WAITING
    rungs: Mapping[int, Mapping[int, float | None]] = field(default_factory=dict)
    lanes: tuple[LaneResult, ...] = ()
    stage: Stage = Stage.SEARCH
    seeds: tuple[int, ...] = ()

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
        test: how it was judged, for example ``paired t, Bonferroni over 6 settings``.
        p_value: two-sided, of the test that decided where some seeds failed; None where the interval decides.
    """

    mean: float
    low: float
    high: float
    num_pairs: int
    test: str = "paired t"
    p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class FailureRate:
    """How often a setting failed: diverged, or ended less than half way from the start to the best.

    Attributes:
        num_failed: lanes that failed, the diverged ones included.
        num_lanes: lanes that ended, over all seeds of search and confirmation.
        low: lower end of the 95 % interval of the probability (Wilson), in [0, 1].
        high: upper end.
    """

    num_failed: int
    num_lanes: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The answer of a study, with its evidence.

    Attributes:
        verdict: see `Verdict`.
        setting: what to train with; *off* unless the verdict is ``clip``, and the best seen if inconclusive.
        interval: lowest and highest tried threshold of that method not distinguishable from the best;
            None when the setting is *off*, and with a tuned learning rate, where no two settings share one.
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
        num_fresh_seeds: seeds that the search never saw, on which ``value``, ``off`` and the differences rest; 0 if
            they rest on the search's own.
        more_seeds: further fresh seeds that would about settle an inconclusive verdict; None if it is settled, or if
            no reasonable number would.
        failures: how often ``best`` failed; None without ``best``.
        off_failures: the same without clipping; None without a result.
        step_cap: learning rate x threshold of ``best``, the longest step it allows, for SGD and a threshold in units
            of the L2 norm; None otherwise.
        matched: *off* at the learning rate times ``mean_scale``: what lowering the rate does without clipping; None
            unless ``best`` clipped more than half of the steps and the matched rate was confirmed.
        against_matched: paired difference of ``best`` against it; None likewise.
        search_end: why the search ended, as a sentence; empty if not told.
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
    num_fresh_seeds: int = 0
    more_seeds: int | None = None
    failures: FailureRate | None = None
    off_failures: FailureRate | None = None
    step_cap: float | None = None
    matched: Estimate | None = None
    against_matched: PairedDifference | None = None
    search_end: str = ""

    def to_json(self) -> dict[str, Any]:
        """The recommendation as plain JSON values."""
        return dataclasses.asdict(self)
