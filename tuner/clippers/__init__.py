"""Clipping methods, one file each; `tuner.methods` is the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from math import inf

import torch

from tuner.clippers.base import Clipper as Clipper
from tuner.clippers.base import ClipResult as ClipResult
from tuner.clippers.base import ClipState as ClipState
from tuner.clippers.mixed import MixedClipper as MixedClipper
from tuner.lanes import Layout
from tuner.methods import OFF, get_method
from tuner.spec import ClipSetting


def clipper_class(method: str) -> type[Clipper]:
    """The class that implements a method.

    Args:
        method: a name in `tuner.methods.METHODS`.

    Returns:
        The class; its module is imported when first asked for.

    Raises:
        UnknownMethodError: if no method has that name.

    Example:
        >>> clipper_class("value").__name__
        'ValueClipper'
    """
    module, _, name = get_method(method).clipper.partition(":")
    found: type[Clipper] = getattr(import_module(module), name)
    return found


def create_clipper(
    settings: Sequence[ClipSetting],
    layout: Layout,
    *,
    reference_norm: float | None = None,
    device: torch.device | str = "cpu",
) -> Clipper:
    """The clipper of a batch of lanes, one setting per lane; methods may be mixed.

    Args:
        settings: at least one.
        layout: of a lane's row.
        reference_norm: median L2 gradient norm that the probe measured; None takes each paper's own constants.
        device: where the gradients will be.

    Returns:
        A clipper of one method if *off* and at most one other are asked for, a `MixedClipper` otherwise. Thresholds
        are kept in double precision and rounded to the gradients' type when used.

    Example:
        >>> layout = Layout(("weight",), ((2,),))
        >>> create_clipper([ClipSetting(method="none"), ClipSetting.parse("value:0.5")], layout).thresholds
        tensor([   inf, 0.5000], dtype=torch.float64)
    """
    methods = sorted({setting.method for setting in settings} - {OFF}) or [OFF]
    parts = []
    for method in methods:
        # Lanes without clipping are the first method's, under a threshold that is never exceeded.
        own = [method, OFF] if method == methods[0] else [method]
        lanes = [lane for lane, setting in enumerate(settings) if setting.method in own]
        thresholds = [inf if (each := settings[lane].threshold) is None else each for lane in lanes]
        clipper = clipper_class(method)(
            torch.tensor(thresholds, dtype=torch.float64, device=device),
            layout,
            reference_norm=reference_norm,
        )
        parts.append((clipper, torch.tensor(lanes, device=device)))
    return parts[0][0] if len(parts) == 1 else MixedClipper(parts, layout)
