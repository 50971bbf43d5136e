"""A study's space in Optuna's words: which parameters stand for a setting, and the way back.

A setting is a method (if there are several), the coordinate of its threshold, and the factor on the learning rate if
that is tuned. With a step cap the coordinate is rate x threshold, because under plain SGD the best step cap hardly
moves with the rate (Zhang et al. 2020, https://arxiv.org/abs/1905.11881, theorem 3: rate x threshold = 1 / (10 L1)).
"""

from __future__ import annotations

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from tuner.methods import OFF, get_method
from tuner.search.space import RateRange, Space, ThresholdRange
from tuner.spec import ClipSetting

_METHOD, _RATE = "method", "learning_rate_scale"


def suggest(trial: optuna.Trial, space: Space) -> ClipSetting:
    """Ask Optuna for a setting.

    Args:
        trial: an open trial.
        space: where settings may lie.

    Returns:
        A setting of the space.
    """
    methods = _methods(space)
    method = trial.suggest_categorical(_METHOD, methods) if len(methods) > 1 else methods[0]
    scale = 1.0
    if space.rates is not None:
        scale = trial.suggest_float(_RATE, space.rates.low, space.rates.high, log=True)
        scale = space.rates.at(scale)
    if method == OFF:
        return ClipSetting(method=OFF, learning_rate_scale=scale)
    chosen = _range_of(space, method)
    low, high = _bounds(space, chosen)
    coordinate = trial.suggest_float(_parameter(method), low, high, log=True)
    if _is_capped(space, method):
        coordinate = min(max(coordinate / scale, chosen.coordinates[0]), chosen.coordinates[1])
    return ClipSetting(method=method, threshold=chosen.at(coordinate), learning_rate_scale=scale)


def params(space: Space, setting: ClipSetting) -> dict[str, str | float | None]:
    """The values that `suggest` would have drawn for a setting of the space.

    Args:
        space: where settings may lie.
        setting: inside it.

    Returns:
        Values by parameter.
    """
    found: dict[str, str | float | None] = {}
    if len(_methods(space)) > 1:
        found[_METHOD] = setting.method
    if space.rates is not None:
        found[_RATE] = setting.learning_rate_scale
    if setting.threshold is not None:
        coordinate = get_method(setting.method).coordinate(setting.threshold)
        scale = setting.learning_rate_scale if _is_capped(space, setting.method) else 1.0
        found[_parameter(setting.method)] = coordinate * scale
    return found


def distributions(space: Space, method: str) -> dict[str, BaseDistribution]:
    """The distributions of the parameters of a method's settings.

    Args:
        space: where settings may lie.
        method: one of the space's, or ``none`` with a tuned learning rate.

    Returns:
        Distributions by parameter.
    """
    found: dict[str, BaseDistribution] = {}
    methods = _methods(space)
    if len(methods) > 1:
        found[_METHOD] = CategoricalDistribution(methods)
    if space.rates is not None:
        found[_RATE] = FloatDistribution(space.rates.low, space.rates.high, log=True)
    if method != OFF:
        found[_parameter(method)] = FloatDistribution(*_bounds(space, _range_of(space, method)), log=True)
    return found


def is_inside(space: Space, setting: ClipSetting) -> bool:
    """Whether `suggest` could have drawn a setting.

    Args:
        space: where settings may lie.
        setting: any setting.

    Returns:
        True if its method is searched and both its threshold and its learning rate lie in their ranges.
    """
    rates = space.rates or RateRange(low=1.0, high=1.0)
    if not rates.low <= setting.learning_rate_scale <= rates.high:
        return False
    if setting.is_off:
        return space.rates is not None
    return any(each.contains(setting) for each in space.ranges)


def _methods(space: Space) -> list[str]:
    """Without a learning rate to tune, *off* is one setting, and always tried."""
    off = [OFF] if space.rates is not None else []
    return [*off, *(each.method for each in space.ranges)]


def _bounds(space: Space, chosen: ThresholdRange) -> tuple[float, float]:
    low, high = chosen.coordinates
    if space.rates is None or not _is_capped(space, chosen.method):
        return low, high
    return low * space.rates.low, high * space.rates.high


def _is_capped(space: Space, method: str) -> bool:
    return space.has_step_cap and space.rates is not None and get_method(method).scale is not None


def _parameter(method: str) -> str:
    return f"{method}.threshold"


def _range_of(space: Space, method: str) -> ThresholdRange:
    return next(each for each in space.ranges if each.method == method)
