"""What one lane's training recorded, as plain figures: norms, losses, clipping, by phase of the run. No torch.

All gradient norms are *before* clipping. Figures rest on the lane's live steps: those up to its divergence. No
figure is NaN or infinite; what can't be said is None. Every field that an earlier version did not store has a
default, so that its rows are still read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Part of a full run, by steps; a phase of a very short run may be empty."""

    #: The first 5 % of the steps, at least one.
    WARM_UP = "warm_up"
    #: Up to a third of the steps.
    EARLY = "early"
    #: Up to two thirds.
    MID = "mid"
    #: The rest.
    LATE = "late"


@dataclass(frozen=True, kw_only=True)
class NormSketch:
    """Quantiles of gradient norms before clipping, over the finite steps of one lane.

    Quantiles and logarithms rest on every step of a short run, and on evenly spaced steps of a long one; ``min``
    and ``max`` are exact.

    Attributes:
        median: 50 % quantile.
        q90: 90 % quantile.
        q99: 99 % quantile.
        max: the largest.
        q01: 1 % quantile; None if not recorded.
        q10: 10 % quantile; None if not recorded.
        min: the smallest; None if not recorded.
        first: the norm of the first step; None if it was not finite, or is not part of the sketch.
        log_mean: mean of the natural logarithms of the norms above 0; None without any.
        log_std: their standard deviation, over the same number.
    """

    median: float
    q90: float
    q99: float
    max: float
    q01: float | None = None
    q10: float | None = None
    min: float | None = None
    first: float | None = None
    log_mean: float | None = None
    log_std: float | None = None


@dataclass(frozen=True, kw_only=True)
class PhaseSketch:
    """One phase of one lane: how large its gradients were, and what the clipper did about it.

    Attributes:
        phase: ``warm_up`` (first 5 % of a full run's steps), ``early`` (to a third), ``mid`` (to two thirds) or
            ``late``.
        num_steps: live steps in it, at least 1.
        clip_fraction: share of those steps whose gradient was scaled, clamped or skipped, in [0, 1].
        mean_scale: mean factor on the gradient norm, in [0, 1]; 1 = never clipped.
        norms: gradient norms before clipping; None if no step kept for quantiles lies in the phase.
    """

    phase: Phase
    num_steps: int
    clip_fraction: float
    mean_scale: float
    norms: NormSketch | None


@dataclass(frozen=True, kw_only=True)
class LossSketch:
    """Training losses of one lane, over its finite steps.

    Attributes:
        last: at the last of them.
        min: the smallest.
        mean: mean over the steps kept in the last phase that has any: all of a short run's, evenly spaced ones of
            a long run's.
    """

    last: float
    min: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class LaneRecord:
    """What one lane recorded while it trained; a `tuner.evidence.LaneResult` adds what it was and what it reached.

    Attributes:
        num_steps: steps taken, skipped ones included.
        divergence_step: step at which the loss or the gradient became non-finite, or the rung at which the objective
            passed the spec's bound; None if the lane did not diverge.
        clip_fraction: share of steps whose gradient was scaled, clamped or skipped, in [0, 1].
        mean_scale: mean factor on the gradient norm, in [0, 1]; 1 = never clipped.
        norms: gradient norms before clipping; None if no step was finite.
        num_non_finite: steps with a non-finite loss or gradient: the one that ended the lane, and overflows of
            half precision that were forgiven.
        num_skipped: steps that changed no weight: skipped by the clipper, or forgiven.
        min_scale: smallest factor on the gradient norm, in [0, 1]; None if no step was finite.
        first_clipped_step: first step, from 0, whose gradient was scaled, clamped or skipped; until then the lane
            was its seed's *off* lane, bit for bit. None if there is none.
        last_clipped_step: the last such step; None if there is none.
        spike_ratio: largest norm / median norm, at least 1; None if the median is 0 or no step was finite.
        tail_index: Hill's estimate of the exponent of the norms' tail, from the largest tenth of the norms kept;
            below about 2 the norms have no finite variance. None with fewer than 100 norms.
        loss: training losses; None if none was finite.
        phases: one sketch per phase that the lane has a step in, in order.
    """

    num_steps: int
    divergence_step: int | None
    clip_fraction: float
    mean_scale: float
    norms: NormSketch | None
    num_non_finite: int
    num_skipped: int = 0
    min_scale: float | None = None
    first_clipped_step: int | None = None
    last_clipped_step: int | None = None
    spike_ratio: float | None = None
    tail_index: float | None = None
    loss: LossSketch | None = None
    phases: tuple[PhaseSketch, ...] = ()
