"""The clipping methods: one line each, readable without torch.

A method is what a study chooses among; a clipper (in `tuner.clippers`) is the code that does it. This table
is the only registry: the service lists and validates methods from it, `tuner.clippers.create_clipper` imports
the class that ``clipper`` names. To add a method, write one file in `tuner/clippers/` and one entry here; the
contract suite in ``tests/contracts/`` then runs on it by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from tuner.errors import UnknownMethodError

#: A quantity of a gradient that a threshold is compared with, and that the probe measures.
GradientScale = Literal["l2_norm", "max_abs"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is known of a clipping method without running it.

    Attributes:
        name: the name in specs, tables and URLs.
        clipper: ``module:Class`` that implements it.
        summary: one sentence for people.
        threshold_name: the name of the tuned number, or None if the method has none.
        threshold_unit: the unit of that number, in words.
        scale: which measured quantity the threshold is relative to; None without a threshold.
        kappa_low: lower end of the search range, in units of the median of ``scale``, > 0.
        kappa_high: upper end of the search range, same unit.
    """

    name: str
    clipper: str
    summary: str
    threshold_name: str | None
    threshold_unit: str
    scale: GradientScale | None
    kappa_low: float
    kappa_high: float

    @property
    def has_threshold(self) -> bool:
        """Whether the method has a number to tune."""
        return self.threshold_name is not None


OFF = "none"

# Ranges: clipping-methods, "Scale-free parameterisation": kappa in [1e-2, 10] for norms, [1e-3, 1] for elements.
_ALL = (
    Method(
        name=OFF,
        clipper="tuner.clippers.none:NoClipper",
        summary="Leave the gradient as it is; the baseline of every study.",
        threshold_name=None,
        threshold_unit="",
        scale=None,
        kappa_low=1.0,
        kappa_high=1.0,
    ),
    Method(
        name="global_norm",
        clipper="tuner.clippers.global_norm:GlobalNormClipper",
        summary="Scale the whole gradient so that its L2 norm is at most max_norm.",
        threshold_name="max_norm",
        threshold_unit="gradient norm (L2, before clipping)",
        scale="l2_norm",
        kappa_low=1e-2,
        kappa_high=10.0,
    ),
    Method(
        name="global_norm_inf",
        clipper="tuner.clippers.global_norm:GlobalNormInfClipper",
        summary="Scale the whole gradient so that its largest element is at most max_norm; keeps the direction.",
        threshold_name="max_norm",
        threshold_unit="largest absolute element of the gradient, before clipping",
        scale="max_abs",
        kappa_low=1e-2,
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
