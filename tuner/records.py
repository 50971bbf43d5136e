"""What one lane's training recorded, as plain figures: norms, losses, clipping, by phase of the run. No torch.

All gradient norms are *before* clipping. Figures rest on the lane's live steps: those up to its divergence. No
figure is NaN or infinite; what can't be said is None. Every field that an earlier version did not store has a
default, so that its rows are still read.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

#: Most bins of a `NormHistogram`, and most points of a `LossCurve`: together less than a kilobyte of JSON.
MAX_BINS, MAX_POINTS = 40, 64
#: Bins per octave (doubling) of the finest grid; coarser grids have half as many, a quarter, and so on.
BINS_PER_OCTAVE = 32
#: The quantiles of a `NormSketch`.
_SHARES = {"q01": 0.01, "q10": 0.1, "median": 0.5, "q90": 0.9, "q99": 0.99}


def mean_known(values: Iterable[float | None]) -> float | None:
    """The mean of the figures that are known.

    Args:
        values: None where a training did not tell.

    Returns:
        Their mean; None without any.

    Example:
        >>> mean_known([0.2, None, 0.4]), mean_known([None])
        (0.30000000000000004, None)
    """
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def tail_index(norms: Iterable[float]) -> float | None:
    """Hill's estimate of how heavy the upper tail of norms is; `tuner.training.sketches.tail_indices` for numbers.

    Args:
        norms: >= 0; those that are not finite are left out.

    Returns:
        The exponent, > 0; None with fewer than 100 norms, and if the tail's values are all equal or begin at 0.

    Example:
        >>> round(tail_index((number / 1000) ** -0.5 for number in range(1, 1001)), 1)
        2.0
    """
    ranked = sorted((norm for norm in norms if math.isfinite(norm)), reverse=True)
    size = len(ranked) // 10
    if size < 10 or ranked[size] <= 0:
        return None
    excess = sum(math.log(norm / ranked[size]) for norm in ranked[:size])
    return size / excess if excess > 0 else None


def _quantile(ranked: Sequence[float], share: float) -> float:
    position = share * (len(ranked) - 1)
    below = math.floor(position)
    return ranked[below] + (ranked[math.ceil(position)] - ranked[below]) * (position - below)


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

    @classmethod
    def of(cls, norms: Iterable[float]) -> NormSketch | None:
        """Norms that a training told as numbers; `tuner.training.sketches` has the same for tensors.

        Args:
            norms: >= 0, in the order of the steps; those that are not finite are left out.

        Returns:
            The sketch, quantiles interpolated linearly; None without a finite norm.

        Example:
            >>> NormSketch.of([3.0, 1.0, 2.0]).median
            2.0
        """
        told = [norm for norm in norms if math.isfinite(norm)]
        if not told:
            return None
        ranked = sorted(told)
        logs = [math.log(norm) for norm in ranked if norm > 0]
        return cls(
            **{name: _quantile(ranked, share) for name, share in _SHARES.items()},
            min=ranked[0],
            max=ranked[-1],
            first=told[0],
            log_mean=statistics.fmean(logs) if logs else None,
            log_std=statistics.pstdev(logs) if logs else None,
        )


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
class LossCurve:
    """Training loss along one lane's run: the mean over each of its stretches, which are equally long.

    Attributes:
        stride: steps per stretch, at least 1; the last stretch may be shorter.
        losses: mean over the stretch's kept steps with a finite loss (every step of a short run), rounded to 6
            significant digits; None for a stretch without any. At most 64.
    """

    stride: int
    losses: tuple[float | None, ...]

    def points(self, num_steps: int) -> tuple[tuple[float, float], ...]:
        """The curve as (step, loss), the step being the middle of its stretch.

        Args:
            num_steps: steps that the lane took.

        Returns:
            One point per stretch that has a loss.

        Example:
            >>> LossCurve(stride=2, losses=(3.0, None, 1.0)).points(5)
            ((0.5, 3.0), (4.0, 1.0))
        """
        begins = range(0, num_steps, self.stride)
        return tuple(
            ((begin + min(begin + self.stride, num_steps) - 1) / 2, loss)
            for begin, loss in zip(begins, self.losses, strict=False)
            if loss is not None
        )


@dataclass(frozen=True, kw_only=True)
class NormHistogram:
    """How many gradients had which norm before clipping, over the norms that quantiles rest on.

    Bins are equally wide on a logarithmic scale and their edges lie on a fixed grid, ``2 ** (k * width)`` for whole
    k, whose width is 1/32 octave or that times a power of two. So histograms of several lanes can be added up.

    Attributes:
        low: lower edge of the first bin, > 0.
        high: upper edge of the last bin.
        counts: norms per bin, from its lower edge up to, not including, its upper one; at most 40.
        num_zero: norms of exactly 0, which are in no bin.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    num_zero: int = 0

    @classmethod
    def on_grid(cls, first: int, width: int, counts: Sequence[int], num_zero: int = 0) -> NormHistogram:
        """A histogram from positions on the grid.

        Args:
            first: the first bin's, in its own widths from 1.0.
            width: of a bin, in 1/32 octaves; a power of two.
            counts: norms per bin, at least one bin.
            num_zero: see the class.

        Returns:
            The histogram.

        Example:
            >>> NormHistogram.on_grid(-1, 32, [3, 1])
            NormHistogram(low=0.5, high=2.0, counts=(3, 1), num_zero=0)
        """
        edges = [2.0 ** (position * width / BINS_PER_OCTAVE) for position in (first, first + len(counts))]
        return cls(low=edges[0], high=edges[1], counts=tuple(counts), num_zero=num_zero)

    @classmethod
    def merged(cls, histograms: Iterable[NormHistogram]) -> NormHistogram | None:
        """Several histograms added up, on the finest grid that holds them all in 40 bins.

        Args:
            histograms: of any lanes.

        Returns:
            The sum; None without any.

        Example:
            >>> one, other = NormHistogram.on_grid(0, 32, [3, 1]), NormHistogram.on_grid(6, 8, [1, 0, 2])
            >>> NormHistogram.merged([one, other]).counts
            (3, 2, 2)
        """
        parts = list(histograms)
        if not parts:
            return None
        width = max(each.width for each in parts)
        sums = Counter[int]()
        for each in parts:
            same = each.coarsened(width)
            sums.update({same.first + index: count for index, count in enumerate(same.counts)})
        counts = [sums[position] for position in range(min(sums), max(sums) + 1)]
        whole = cls.on_grid(min(sums), width, counts, sum(each.num_zero for each in parts))
        while len(whole.counts) > MAX_BINS:
            whole = whole.coarsened(2 * whole.width)
        return whole

    def coarsened(self, width: int) -> NormHistogram:
        """The same norms in wider bins.

        Args:
            width: of the new bins, in 1/32 octaves; this histogram's times a power of two.

        Returns:
            The histogram.

        Example:
            >>> NormHistogram.on_grid(-1, 32, [3, 1]).coarsened(64)
            NormHistogram(low=0.25, high=4.0, counts=(3, 1), num_zero=0)
        """
        factor = width // self.width
        counts = [0] * ((self.first + len(self.counts) - 1) // factor - self.first // factor + 1)
        for index, count in enumerate(self.counts):
            counts[(self.first + index) // factor - self.first // factor] += count
        return NormHistogram.on_grid(self.first // factor, width, counts, self.num_zero)

    @property
    def width(self) -> int:
        """Of a bin, in 1/32 octaves; a power of two."""
        return round(math.log2(self.high / self.low) / len(self.counts) * BINS_PER_OCTAVE)

    @property
    def first(self) -> int:
        """Position of the first bin on the grid, in widths from 1.0."""
        return round(math.log2(self.low) * BINS_PER_OCTAVE / self.width)

    @property
    def edges(self) -> tuple[float, ...]:
        """Edges of the bins, ascending, one more than there are bins."""
        positions = range(self.first, self.first + len(self.counts) + 1)
        return tuple(2.0 ** (position * self.width / BINS_PER_OCTAVE) for position in positions)


@dataclass(frozen=True, kw_only=True)
class LaneRecord:
    """What one lane recorded while it trained; a `tuner.evidence.LaneResult` adds what it was and what it reached.

    Attributes:
        num_steps: steps taken, skipped ones included.
        divergence_step: step at which the loss or the gradient became non-finite, or the rung at which the objective
            passed the spec's bound; None if the lane did not diverge.
        clip_fraction: share of steps whose gradient was scaled, clamped or skipped, in [0, 1]; None if a training
            outside of Cliptune did not tell.
        mean_scale: mean factor on the gradient norm, in [0, 1]; 1 = never clipped; None likewise.
        norms: gradient norms before clipping; None if no step was finite, or if none was told.
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
        curve: training loss along the run; None if none was finite, or if it is not recorded.
        histogram: of the gradient norms before clipping; None if no norm was above 0, or if it is not recorded.
    """

    num_steps: int
    divergence_step: int | None
    clip_fraction: float | None
    mean_scale: float | None
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
    curve: LossCurve | None = None
    histogram: NormHistogram | None = None

    @property
    def may_have_clipped(self) -> bool:
        """Whether a gradient was scaled, clamped or skipped, as far as is known."""
        return self.clip_fraction is None or self.clip_fraction > 0
