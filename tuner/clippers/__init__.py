"""Clipping methods, one file each; `tuner.methods` is the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch

from tuner.clippers.base import Clipper as Clipper
from tuner.clippers.base import ClipResult as ClipResult
from tuner.clippers.base import ClipState as ClipState
from tuner.clippers.base import Gradients as Gradients
from tuner.clippers.global_norm import GlobalNormClipper as GlobalNormClipper
from tuner.clippers.global_norm import GlobalNormInfClipper as GlobalNormInfClipper
from tuner.clippers.none import NoClipper as NoClipper
from tuner.clippers.value import ValueClipper as ValueClipper
from tuner.methods import get_method
from tuner.spec import ClipSetting


def create_clipper(setting: ClipSetting, *, device: torch.device | str = "cpu") -> Clipper:
    """The clipper of a setting, for one lane.

    Args:
        setting: method and threshold.
        device: where the gradients will be.

    Returns:
        A clipper whose lane axis has length 1.

    Example:
        >>> create_clipper(ClipSetting(method="value", threshold=0.5)).thresholds
        tensor([0.5000], dtype=torch.float64)
    """
    threshold = float("inf") if setting.threshold is None else setting.threshold
    return create_lane_clipper(setting.method, [threshold], device=device)


def create_lane_clipper(
    method: str, thresholds: Sequence[float], *, device: torch.device | str = "cpu"
) -> Clipper:
    """The clipper of a method for a batch of lanes.

    Args:
        method: a name in `tuner.methods.METHODS`.
        thresholds: one per lane, > 0; ``inf`` in lanes that never clip.
        device: where the gradients will be.

    Returns:
        The clipper; thresholds are kept in double precision and rounded to the gradients' type when used.

    Raises:
        UnknownMethodError: if no method has that name.

    Example:
        >>> create_lane_clipper("global_norm", [0.1, 1.0]).num_lanes
        2
    """
    module, _, name = get_method(method).clipper.partition(":")
    clipper: type[Clipper] = getattr(import_module(module), name)
    return clipper(torch.tensor(thresholds, dtype=torch.float64, device=device))
