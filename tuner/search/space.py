"""Where thresholds are searched: one range per method, uniform on the method's own axis.

An axis is the logarithm of a threshold's `tuner.methods.Method.coordinate`; everything that compares or spreads
thresholds here does it on coordinates, so that a factor of the coordinate is a distance on the axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tuner.evidence import NormSketch, Reference, Trial
from tuner.methods import GradientScale, Method, get_method
from tuner.spec import ClipSetting, StudySpec

#: Thresholds closer than this on their axis are the same candidate: 1 % of the coordinate.
SAME_THRESHOLD = 0.01
#: The golden ratio's fractional part: multiples of it fill an interval evenly however many there are.
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, kw_only=True)
class ThresholdRange:
    """The thresholds of one method.

    Attributes:
        method: a name in `tuner.methods.METHODS`.
        low: smallest threshold, inside the method's bounds, in the method's unit.
        high: largest threshold, > low, inside the bounds too.
    """

    method: str
    low: float
    high: float

    @property
    def axis(self) -> Method:
        """The method, which knows its axis."""
        return get_method(self.method)

    @property
    def coordinates(self) -> tuple[float, float]:
        """Both ends on the axis: what the logarithm is taken of."""
        return self.axis.coordinate(self.low), self.axis.coordinate(self.high)

    def spread(self, count: int) -> tuple[float, ...]:
        """Thresholds spread evenly on the axis: the middles of as many equal parts of the range.

        Args:
            count: how many, >= 0.

        Returns:
            Ascending thresholds, rounded as the method rounds.

        Example:
            >>> ThresholdRange(method="global_norm", low=0.01, high=10.0).spread(3)
            (0.0316, 0.316, 3.16)
        """
        low, high = self.coordinates
        return tuple(self.at(low * (high / low) ** ((part + 0.5) / count)) for part in range(count))

    def at(self, coordinate: float) -> float:
        """The threshold at a place on the axis, rounded.

        Args:
            coordinate: > 0.

        Returns:
            A threshold of the range.
        """
        return self.rounded(self.axis.at_coordinate(coordinate))

    def rounded(self, threshold: float) -> float:
        """A threshold at 3 significant digits of its place on the axis, within the range.

        Args:
            threshold: inside the method's bounds.

        Returns:
            The rounded number, or the end of the range it would pass.
        """
        return min(max(self.axis.rounded(threshold), self.low), self.high)

    def contains(self, setting: ClipSetting) -> bool:
        """Whether a setting lies in this range.

        Args:
            setting: any setting.

        Returns:
            True for this method and a threshold between the ends, both included.
        """
        return (
            setting.method == self.method
            and setting.threshold is not None
            and self.low <= setting.threshold <= self.high
        )


@dataclass(frozen=True, kw_only=True)
class RateRange:
    """Factors on the workload's learning rate.

    Attributes:
        low: smallest, > 0.
        high: largest, > low.
    """

    low: float
    high: float

    def spread(self, count: int) -> tuple[float, ...]:
        """Factors spread evenly on a logarithmic axis: the middles of as many equal parts.

        Args:
            count: how many, >= 0.

        Returns:
            Ascending factors at 3 significant digits.

        Example:
            >>> RateRange(low=0.1, high=10.0).spread(2)
            (0.316, 3.16)
        """
        ratio = self.high / self.low
        return tuple(self.at(self.low * ratio ** ((part + 0.5) / count)) for part in range(count))

    def at(self, factor: float) -> float:
        """A factor at 3 significant digits, within the range.

        Args:
            factor: > 0.

        Returns:
            The rounded number, or the end of the range it would pass.
        """
        return min(max(round_threshold(factor), self.low), self.high)


@dataclass(frozen=True, kw_only=True)
class Space:
    """Where the settings of a study may lie.

    Attributes:
        ranges: one per method.
        rates: factors on the learning rate, if that is tuned too.
        has_step_cap: whether rate and threshold are searched as (rate, rate x threshold): for plain SGD the longest
            step is what matters, and its optimum hardly moves with the rate.
    """

    ranges: tuple[ThresholdRange, ...]
    rates: RateRange | None = None
    has_step_cap: bool = False

    def spread(self, chosen: ThresholdRange, count: int) -> tuple[ClipSetting, ...]:
        """Settings of one method spread evenly over the space.

        Args:
            chosen: its range.
            count: how many, >= 0.

        Returns:
            Thresholds in ascending order; with a tuned rate, the rates follow a sequence that fills the square evenly.
        """
        thresholds = chosen.spread(count)
        if self.rates is None:
            return tuple(ClipSetting(method=chosen.method, threshold=threshold) for threshold in thresholds)
        ratio = self.rates.high / self.rates.low
        return tuple(
            ClipSetting(
                method=chosen.method,
                threshold=threshold,
                learning_rate_scale=self.rates.at(self.rates.low * ratio ** ((0.5 + number * _GOLDEN) % 1)),
            )
            for number, threshold in enumerate(thresholds)
        )


def search_space(spec: StudySpec, reference: Reference) -> Space:
    """The space of a study.

    Args:
        spec: gives the methods, perhaps a range of thresholds, and perhaps one of learning rates.
        reference: gives the scale of methods whose range is in kappa, and says which optimizer it is.

    Returns:
        The space.
    """
    ranges = threshold_ranges(spec, reference)
    if spec.learning_rate_low is None or spec.learning_rate_high is None:
        return Space(ranges=ranges)
    optimizer = None if reference.features is None else reference.features.optimizer
    return Space(
        ranges=ranges,
        rates=RateRange(low=spec.learning_rate_low, high=spec.learning_rate_high),
        has_step_cap=optimizer == "sgd",
    )


def refined(space: Space, trials: Sequence[Trial]) -> Space:
    """The part of a space that its trials leave open.

    Args:
        space: the whole.
        trials: of the search, ended or not.

    Returns:
        Each method's range from the trial below those that got furthest to the trial above them; a method without an
        ended trial keeps its range. With a tuned learning rate the space stays whole.
    """
    if space.rates is not None:
        return space
    return replace(space, ranges=tuple(_refined(each, trials) for each in space.ranges))


def _refined(whole: ThresholdRange, trials: Sequence[Trial]) -> ThresholdRange:
    inside = sorted(
        (trial for trial in trials if whole.contains(trial.setting) and trial.lanes),
        key=lambda trial: trial.setting.threshold or 0.0,
    )
    sound = [trial for trial in inside if trial.num_diverged == 0]
    furthest = max((max(lane.num_steps for lane in trial.lanes) for trial in sound), default=0)
    leading = [
        number
        for number, trial in enumerate(inside)
        if trial.num_diverged == 0 and max(lane.num_steps for lane in trial.lanes) == furthest
    ]
    if not leading:
        return whole
    thresholds = [trial.setting.threshold or 0.0 for trial in inside]
    low = thresholds[leading[0] - 1] if leading[0] else whole.low
    high = thresholds[leading[-1] + 1] if leading[-1] + 1 < len(inside) else whole.high
    return replace(whole, low=low, high=high) if low < high else whole


def threshold_ranges(spec: StudySpec, reference: Reference) -> tuple[ThresholdRange, ...]:
    """The range of every method of a study.

    Args:
        spec: gives the methods, and for a single one perhaps the range itself.
        reference: gives the scale of methods whose range is in kappa.

    Returns:
        One range per method, in the spec's order.

    Raises:
        ValueError: if the table gives a method of the spec no range.
        ProbeError: if a range is to be derived from norms, and none was told.
    """
    if spec.threshold_low is not None and spec.threshold_high is not None:
        return (ThresholdRange(method=spec.methods[0], low=spec.threshold_low, high=spec.threshold_high),)
    return tuple(_default_range(get_method(name), reference) for name in spec.methods)


def _default_range(method: Method, reference: Reference) -> ThresholdRange:
    if method.threshold_low is not None and method.threshold_high is not None:
        return ThresholdRange(method=method.name, low=method.threshold_low, high=method.threshold_high)
    if method.scale is None or method.kappa_low is None or method.kappa_high is None:
        raise ValueError(f"method {method.name!r} has no search range")
    sketch = reference.norms if method.scale == "l2_norm" else reference_sketch(reference, method.scale)
    if sketch is None:
        raise ValueError(f"the reference has nothing to scale method {method.name!r} by")
    low, high = (round_threshold(kappa * sketch.median) for kappa in (method.kappa_low, method.kappa_high))
    return ThresholdRange(method=method.name, low=low, high=high)


def reference_sketch(reference: Reference, scale: GradientScale) -> NormSketch | None:
    """The probe's quantiles of one quantity.

    Args:
        reference: what the probe measured.
        scale: which quantity.

    Returns:
        Its sketch; None if it was not measured.
    """
    return {"l2_norm": reference.l2_norm, "max_abs": reference.max_abs}[scale]


def kappa(setting: ClipSetting, reference: Reference) -> float | None:
    """A threshold relative to the median of what it is compared with.

    Args:
        setting: any setting.
        reference: what the probe measured.

    Returns:
        Threshold / median, dimensionless; None for *off*, and for a threshold that is relative to no measured
        quantity.
    """
    scale = get_method(setting.method).scale
    sketch = None if scale is None else reference_sketch(reference, scale)
    return None if setting.threshold is None or sketch is None else setting.threshold / sketch.median


def is_same(one: ClipSetting, other: ClipSetting) -> bool:
    """Whether two settings are the same candidate.

    Args:
        one: a setting.
        other: another.

    Returns:
        True for one method, learning rates within 1 %, and thresholds within 1 % on the method's axis (both absent
        counts as equal).

    Example:
        >>> is_same(ClipSetting.parse("value:1"), ClipSetting.parse("value:1.005"))
        True
        >>> is_same(ClipSetting.parse("norm_growth:1.001"), ClipSetting.parse("norm_growth:1.005"))
        False
    """
    if one.method != other.method:
        return False
    if abs(math.log(one.learning_rate_scale / other.learning_rate_scale)) >= SAME_THRESHOLD:
        return False
    if one.threshold is None or other.threshold is None:
        return one.threshold == other.threshold
    axis = get_method(one.method)
    return abs(math.log(axis.coordinate(one.threshold) / axis.coordinate(other.threshold))) < SAME_THRESHOLD


def is_known(setting: ClipSetting, known: Iterable[ClipSetting]) -> bool:
    """Whether a setting is among others.

    Args:
        setting: a candidate.
        known: settings tried or chosen.

    Returns:
        True if `is_same` holds for one of them.
    """
    return any(is_same(setting, other) for other in known)


def round_threshold(threshold: float) -> float:
    """Three significant digits: finer differences are below the noise of any training.

    Args:
        threshold: a positive number.

    Returns:
        The rounded number.

    Example:
        >>> round_threshold(0.123456)
        0.123
    """
    return float(f"{threshold:.3g}")
