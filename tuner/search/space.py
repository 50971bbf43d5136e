"""Where thresholds are searched: one log-uniform range per method."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tuner.evidence import NormSketch, Reference
from tuner.methods import GradientScale, get_method
from tuner.spec import ClipSetting, StudySpec

#: Thresholds closer than this, relatively, are the same candidate.
SAME_THRESHOLD = 0.01


@dataclass(frozen=True, kw_only=True)
class ThresholdRange:
    """The thresholds of one method.

    Attributes:
        method: a name in `tuner.methods.METHODS`.
        low: smallest threshold, > 0, in the method's unit.
        high: largest threshold, > low.
    """

    method: str
    low: float
    high: float

    def spread(self, count: int) -> tuple[float, ...]:
        """Thresholds spread evenly on the log scale: the middles of as many equal parts of the range.

        Args:
            count: how many, >= 0.

        Returns:
            Ascending thresholds, rounded as `round_threshold` does.

        Example:
            >>> ThresholdRange(method="global_norm", low=0.01, high=10.0).spread(3)
            (0.0316, 0.316, 3.16)
        """
        ratio = self.high / self.low
        return tuple(self.rounded(self.low * ratio ** ((part + 0.5) / count)) for part in range(count))

    def rounded(self, threshold: float) -> float:
        """A threshold at 3 significant digits, within the range.

        Args:
            threshold: any positive number.

        Returns:
            The rounded number, or the end of the range it would pass.
        """
        return min(max(round_threshold(threshold), self.low), self.high)

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


def threshold_ranges(spec: StudySpec, reference: Reference) -> tuple[ThresholdRange, ...]:
    """The range of every method of a study.

    Args:
        spec: gives the methods, and for a single one perhaps the range itself.
        reference: gives the scale that each method's kappa range is relative to.

    Returns:
        One range per method, in the spec's order.
    """
    if spec.threshold_low is not None and spec.threshold_high is not None:
        return (ThresholdRange(method=spec.methods[0], low=spec.threshold_low, high=spec.threshold_high),)
    ranges = []
    for name in spec.methods:
        method = get_method(name)
        median = reference_sketch(reference, method.scale or "l2_norm").median
        low, high = (round_threshold(kappa * median) for kappa in (method.kappa_low, method.kappa_high))
        ranges.append(ThresholdRange(method=name, low=low, high=high))
    return tuple(ranges)


def reference_sketch(reference: Reference, scale: GradientScale) -> NormSketch:
    """The probe's quantiles of one quantity.

    Args:
        reference: what the probe measured.
        scale: which quantity.

    Returns:
        Its sketch.
    """
    return {"l2_norm": reference.l2_norm, "max_abs": reference.max_abs}[scale]


def kappa(setting: ClipSetting, reference: Reference) -> float | None:
    """A threshold relative to the median of what it is compared with.

    Args:
        setting: any setting.
        reference: what the probe measured.

    Returns:
        Threshold / median, dimensionless; None for *off*.
    """
    scale = get_method(setting.method).scale
    if setting.threshold is None or scale is None:
        return None
    return setting.threshold / reference_sketch(reference, scale).median


def is_same(one: ClipSetting, other: ClipSetting) -> bool:
    """Whether two settings are the same candidate.

    Args:
        one: a setting.
        other: another.

    Returns:
        True for one method and thresholds within 1 % (both absent counts as equal).

    Example:
        >>> is_same(ClipSetting.parse("value:1"), ClipSetting.parse("value:1.005"))
        True
    """
    if one.method != other.method:
        return False
    if one.threshold is None or other.threshold is None:
        return one.threshold == other.threshold
    return abs(math.log(one.threshold / other.threshold)) < SAME_THRESHOLD


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
