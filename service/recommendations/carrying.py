"""A setting of one training carried over to another: pure.

A threshold goes through kappa, its size relative to the gradient norms; a tuned learning rate through the two base
rates, because a setting holds it as a factor on its own training's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tuner.methods import GradientScale, Method, get_method
from tuner.spec import RATE_SCALES, ClipSetting


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What a setting becomes elsewhere.

    Attributes:
        setting: with the threshold and the factor on the learning rate of the other training.
        interval: equally good thresholds, likewise; None where there were none.
    """

    setting: ClipSetting
    interval: tuple[float, float] | None


def carry_over(
    setting: ClipSetting,
    interval: tuple[float, float] | None,
    *,
    kappa: float | None,
    medians: Mapping[GradientScale, float],
    rate_there: float | None = None,
    rate_here: float | None = None,
) -> Carried | None:
    """Carry a recommended setting over to a training with other gradient norms.

    Args:
        setting: what was recommended.
        interval: thresholds as good there.
        kappa: its threshold / median reference norm there.
        medians: medians of the measured quantities here, before clipping, >= 0.
        rate_there: base learning rate there; None or 0 if it is not known.
        rate_here: base learning rate here, likewise.

    Returns:
        The same kappa here, rounded as the method rounds, and the interval scaled alike. *Off*, and a threshold that
        is relative to no measured quantity (a percentile, a ratio), stay as they are. A factor of 1 stays 1: the rate
        was left alone there; another one stands for the same rate, at 3 digits, within the bounds. None if what the
        threshold is relative to is 0, or is not known here or there, and if a factor has an unknown base.

    Example:
        >>> carry_over(
        ...     ClipSetting.parse("global_norm:0.5@0.5"),
        ...     (0.25, 1.0),
        ...     kappa=2.0,
        ...     medians={"l2_norm": 0.75},
        ...     rate_there=0.1,
        ...     rate_here=0.2,
        ... ).setting
        ClipSetting(method='global_norm', threshold=1.5, learning_rate_scale=0.25)
    """
    method = get_method(setting.method)
    scale = carried_scale(setting.learning_rate_scale, rate_there, rate_here)
    if scale is None:
        return None
    setting = replace(setting, learning_rate_scale=scale)
    if setting.threshold is None or method.scale is None:
        return Carried(setting=setting, interval=interval)
    median = medians.get(method.scale)
    if not median or kappa is None:
        return None
    factor = kappa * median / setting.threshold
    return Carried(
        setting=replace(setting, threshold=method.rounded(kappa * median)),
        interval=None if interval is None else _scaled(interval, factor, method),
    )


def carried_scale(scale: float, rate_there: float | None, rate_here: float | None) -> float | None:
    """A factor on the learning rate there as a factor on the one here.

    Args:
        scale: the factor; 1 leaves the rate alone, there and here.
        rate_there: base learning rate there; None or 0 if it is not known.
        rate_here: base learning rate here, likewise.

    Returns:
        The factor of the same rate, at 3 digits, within `tuner.spec.RATE_SCALES`; None if a base is unknown.

    Example:
        >>> carried_scale(0.5, 0.3, 0.9), carried_scale(0.5, None, 0.9), carried_scale(1.0, 0.3, 0.9)
        (0.167, None, 1.0)
    """
    if scale == 1:
        return scale
    if not rate_there or not rate_here:
        return None
    low, high = RATE_SCALES
    return min(max(float(f"{scale * rate_there / rate_here:.3g}"), low), high)


def _scaled(interval: tuple[float, float], factor: float, method: Method) -> tuple[float, float]:
    low, high = interval
    return method.rounded(low * factor), method.rounded(high * factor)
