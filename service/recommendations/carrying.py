"""A threshold of one training carried over to another through kappa, its size relative to the gradient norms: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tuner.methods import GradientScale, Method, get_method
from tuner.spec import ClipSetting


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What a setting becomes elsewhere.

    Attributes:
        setting: with the threshold of the other training.
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
) -> Carried | None:
    """Carry a recommended setting over to a training with other gradient norms.

    Args:
        setting: what was recommended.
        interval: thresholds as good there.
        kappa: its threshold / median reference norm there.
        medians: medians of the measured quantities here, before clipping, >= 0.

    Returns:
        The same kappa here, rounded as the method rounds, and the interval scaled alike. *Off*, and a threshold that
        is relative to no measured quantity (a percentile, a ratio), stay as they are. None if what the threshold is
        relative to is 0, or is not known here or there.

    Example:
        >>> carry_over(
        ...     ClipSetting.parse("global_norm:0.5"), (0.25, 1.0), kappa=2.0, medians={"l2_norm": 0.75}
        ... ).setting
        ClipSetting(method='global_norm', threshold=1.5, learning_rate_scale=1.0)
    """
    method = get_method(setting.method)
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


def _scaled(interval: tuple[float, float], factor: float, method: Method) -> tuple[float, float]:
    low, high = interval
    return method.rounded(low * factor), method.rounded(high * factor)
