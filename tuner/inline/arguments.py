"""What a caller hands to a clipper, checked."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from tuner.clippers import clipper_class
from tuner.errors import SpecError
from tuner.inline.errors import CliptuneWarning
from tuner.lanes import Layout
from tuner.spec import ClipSetting

#: A module, whose parameters are taken, or what ``clip_grad_norm_`` takes.
Parameters = nn.Module | Tensor | Iterable[Tensor]


def listed(parameters: Parameters) -> Sequence[Tensor]:
    """The parameters one by one; a generator that is used up is warned of.

    Args:
        parameters: as the caller gave them.

    Returns:
        The tensors, those without a gradient too.
    """
    if isinstance(parameters, nn.Module):
        return list(parameters.parameters())
    if isinstance(parameters, Tensor):
        return [parameters]
    if isinstance(parameters, list | tuple):
        return parameters
    taken = list(parameters)
    if not taken:
        warnings.warn(
            CliptuneWarning(
                "there are no parameters, so nothing is clipped: a generator can be read only once, so call "
                "model.parameters() in each step"
            ),
            stacklevel=3,
        )
    return taken


def told_loss(loss: Tensor | float | None) -> Tensor | None:
    """The loss as a tensor of its own: the caller may go on computing with theirs in place.

    Args:
        loss: as the caller gave it; None if it is not told.

    Returns:
        A 0-dim tensor, detached.

    Raises:
        ValueError: if it is not one number.
    """
    if loss is None:
        return None
    if not isinstance(loss, Tensor):
        return torch.tensor(float(loss))
    if loss.numel() != 1:
        raise ValueError(f"loss must be one number, got shape {tuple(loss.shape)}: give its mean")
    return loss.detach().reshape(()).clone()


def check_constants(setting: ClipSetting, reference_norm: float | None, constants: Mapping[str, Any]) -> None:
    """Refuse a constant now, not in the first step: the method's own class checks it for a model of one number.

    Args:
        setting: which method.
        reference_norm: median gradient norm that a probe measured, or None.
        constants: the method's others, by name.

    Raises:
        SpecError: if a constant needs more than norms.
    """
    if "excluded" in constants:
        raise SpecError(
            "excluded",
            "needs the parameters' names, which a clipper of loose tensors does not see: use "
            "tuner.clippers.plain.PlainClipper, or leave those parameters out of the call",
        )
    threshold = inf if setting.threshold is None else setting.threshold
    clipper_class(setting.method)(
        torch.tensor([threshold], dtype=torch.float64),
        Layout(("weight",), ((1,),)),
        reference_norm=reference_norm,
        **constants,
    )
