"""The clipping methods: one line each, readable without torch.

A method is what a study chooses among; a clipper (in `tuner.clippers`) is the code that does it. This table
is the only registry: the service lists and validates methods from it, `tuner.clippers.create_clipper` imports
the class that ``clipper`` names. To add a method, write one file in `tuner/clippers/` and one entry here; the
contract suite in ``tests/contracts/`` then runs on it by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Literal

from tuner.errors import UnknownMethodError

#: A quantity of a gradient that a threshold is compared with, and that the probe measures.
GradientScale = Literal["l2_norm", "max_abs"]

#: What thresholds are spread evenly on: the logarithm of x, of x - low_bound, or of x / (high_bound - x).
Axis = Literal["log", "log_excess", "logit"]

#: Digits that survive the way to the axis and back.
_EXACT_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is known of a clipping method without running it.

    A threshold either is relative to a measured quantity, and then its range is given in kappa, or has a meaning of
    its own (a ratio, a percentile, a number of deviations), and then its range is given as it is.

    Attributes:
        name: the name in specs, tables and URLs.
        clipper: ``module:Class`` that implements it.
        summary: one sentence for people.
        threshold_name: the name of the tuned number, or None if the method has none.
        threshold_unit: the unit of that number, in words.
        scale: which measured quantity the threshold is relative to; None without a threshold, or if it is relative
            to none.
        kappa_low: lower end of the search range, in units of the median of ``scale``, > 0; None without a scale.
        kappa_high: upper end of the search range, same unit.
        threshold_low: lower end of the search range of a threshold without a scale; None with one.
        threshold_high: upper end of the search range, likewise.
        axis: what the search is uniform on: ``log`` of x, ``log_excess`` for the logarithm of x - 1 of a ratio, or
            ``logit`` for the logarithm of the odds of a share or a percentage.
        low_bound: every threshold is greater.
        high_bound: every threshold is smaller; infinite without such a bound.
    """

    name: str
    clipper: str
    summary: str
    threshold_name: str | None
    threshold_unit: str
    scale: GradientScale | None = None
    kappa_low: float | None = None
    kappa_high: float | None = None
    threshold_low: float | None = None
    threshold_high: float | None = None
    axis: Axis = "log"
    low_bound: float = 0.0
    high_bound: float = inf

    @property
    def has_threshold(self) -> bool:
        """Whether the method has a number to tune."""
        return self.threshold_name is not None

    def coordinate(self, threshold: float) -> float:
        """The positive number whose logarithm the search is uniform on.

        Args:
            threshold: between the bounds, which are excluded.

        Returns:
            The threshold itself, its excess over ``low_bound``, or its odds.

        Example:
            >>> get_method("global_norm").coordinate(0.3), get_method("autoclip").coordinate(80.0)
            (0.3, 4.0)
        """
        if self.axis == "logit":
            return threshold / (self.high_bound - threshold)
        return threshold - self.low_bound if self.axis == "log_excess" else threshold

    def at_coordinate(self, coordinate: float) -> float:
        """Undo `coordinate`.

        Args:
            coordinate: > 0.

        Returns:
            The threshold.

        Example:
            >>> get_method("autoclip").at_coordinate(4.0)
            80.0
        """
        if self.axis == "logit":
            return self.high_bound * coordinate / (1 + coordinate)
        return self.low_bound + coordinate if self.axis == "log_excess" else coordinate

    def rounded(self, threshold: float) -> float:
        """Three significant digits of what matters: finer differences are below the noise of any training.

        Args:
            threshold: between the bounds.

        Returns:
            A threshold with three digits of its value, of its excess over 1, or of its distance to the nearer end.

        Example:
            >>> get_method("norm_growth").rounded(1.0031416), get_method("quantile").rounded(0.991234)
            (1.00314, 0.99123)
        """
        if self.axis == "logit" and threshold > self.high_bound / 2:
            return _exact(self.high_bound - _three_digits(self.high_bound - threshold))
        if self.axis == "log_excess":
            return _exact(self.low_bound + _three_digits(threshold - self.low_bound))
        return _three_digits(threshold)


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def _exact(value: float) -> float:
    """Without the noise that a sum of decimal fractions leaves: 1.00314, not 1.0031399999999999."""
    return float(f"{value:.{_EXACT_DIGITS}g}")


OFF = "none"

# Ranges: clipping-methods, sections 2 and 5: kappa in [1e-2, 10] for norms, [1e-3, 1] for elements.
_ALL = (
    Method(
        name=OFF,
        clipper="tuner.clippers.none:NoClipper",
        summary="Leave the gradient as it is; the baseline of every study.",
        threshold_name=None,
        threshold_unit="",
    ),
    Method(
        name="global_norm",
        clipper="tuner.clippers.global_norm:GlobalNormClipper",
        summary="Scale the whole gradient so that its L2 norm is at most max_norm.",
        threshold_name="max_norm",
        threshold_unit="gradient norm (L2, before clipping)",
        scale="l2_norm",
        kappa_low=1e-3,
        kappa_high=10.0,
    ),
    Method(
        name="global_norm_inf",
        clipper="tuner.clippers.global_norm:GlobalNormInfClipper",
        summary="Scale the whole gradient so that its largest element is at most max_norm; keeps the direction.",
        threshold_name="max_norm",
        threshold_unit="largest absolute element of the gradient, before clipping",
        scale="max_abs",
        kappa_low=1e-3,
        kappa_high=10.0,
    ),
    Method(
        name="value",
        clipper="tuner.clippers.value:ValueClipper",
        summary="Clamp every element of the gradient to [-clip_value, clip_value]; changes the direction.",
        threshold_name="clip_value",
        threshold_unit="absolute element of the gradient",
        scale="max_abs",
        kappa_low=1e-3,
        kappa_high=1.0,
    ),
    Method(
        name="per_tensor_norm",
        clipper="tuner.clippers.per_tensor_norm:PerTensorNormClipper",
        summary="Scale each of the T parameter tensors so that its L2 norm is at most max_norm / sqrt(T).",
        threshold_name="max_norm",
        threshold_unit="gradient norm (L2, before clipping); a tensor's share is max_norm / sqrt(T)",
        scale="l2_norm",
        kappa_low=1e-3,
        kappa_high=10.0,
    ),
    Method(
        name="agc",
        clipper="tuner.clippers.agc:AgcClipper",
        summary="Scale each output unit whose gradient norm is above ratio times the norm of its weights.",
        threshold_name="ratio",
        threshold_unit="gradient norm / weight norm of an output unit",
        threshold_low=1e-3,
        threshold_high=1.0,
    ),
    Method(
        name="autoclip",
        clipper="tuner.clippers.autoclip:AutoClipper",
        summary="Scale the gradient so that its L2 norm is at most a percentile of the run's norms so far.",
        threshold_name="percentile",
        threshold_unit="percent of the norms so far that are left alone",
        threshold_low=1.0,
        threshold_high=99.0,
        axis="logit",
        high_bound=100.0,
    ),
    Method(
        name="zclip",
        clipper="tuner.clippers.zclip:ZClipper",
        summary="Scale the gradient if its L2 norm is z_threshold standard deviations above the mean norm.",
        threshold_name="z_threshold",
        threshold_unit="standard deviations of the gradient norm",
        threshold_low=1.5,
        threshold_high=5.0,
    ),
    Method(
        name="adagc",
        clipper="tuner.clippers.adagc:AdaGCClipper",
        summary="Scale each parameter tensor to lambda_rel times the moving average of its L2 norm.",
        threshold_name="lambda_rel",
        threshold_unit="gradient norm of a tensor / its moving average",
        threshold_low=1.01,
        threshold_high=2.0,
        axis="log_excess",
        low_bound=1.0,
    ),
    Method(
        name="norm_growth",
        clipper="tuner.clippers.norm_growth:NormGrowthClipper",
        summary="Scale the gradient so that its L2 norm rises by at most the factor growth_ratio per step.",
        threshold_name="growth_ratio",
        threshold_unit="gradient norm / norm after clipping of the step before",
        threshold_low=1.001,
        threshold_high=2.0,
        axis="log_excess",
        low_bound=1.0,
    ),
    Method(
        name="quantile",
        clipper="tuner.clippers.quantile:QuantileClipper",
        summary="Scale the gradient to a norm that moves until unclipped_share of the steps is left alone.",
        threshold_name="unclipped_share",
        threshold_unit="share of steps that are left alone",
        threshold_low=0.01,
        threshold_high=0.99,
        axis="logit",
        high_bound=1.0,
    ),
    Method(
        name="skip_step",
        clipper="tuner.clippers.skip_step:SkipStepClipper",
        summary="Skip a step whose loss or L2 norm is num_sigmas standard deviations above the recent mean.",
        threshold_name="num_sigmas",
        threshold_unit="standard deviations of the last 128 losses and gradient norms",
        threshold_low=3.0,
        threshold_high=10.0,
    ),
)

METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})


def get_method(name: str) -> Method:
    """The method registered under a name.

    Args:
        name: a key of `METHODS`.

    Returns:
        Its description.

    Raises:
        UnknownMethodError: if no method has that name.

    Example:
        >>> get_method("value").threshold_name
        'clip_value'
    """
    try:
        return METHODS[name]
    except KeyError:
        raise UnknownMethodError(name, METHODS) from None
