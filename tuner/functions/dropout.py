"""Dropout in all its forms, with masks that all trials of a seed share.

Torch draws a dropout mask in place, into a tensor shaped like the input. Under vmap that input usually is
batched over trials, and then one mask for all trials cannot be drawn. Here a mask is drawn out of place from
the lane's shape alone: `aten.bernoulli.p` of a fresh tensor, which vmap gives a seed axis (randomness
"different") and no trial axis (randomness "same").

The numbers are those torch draws on the CPU, in the same order from the same generator. On some processors
torch draws in memory order, and then so does the mask: in that of the lane's input.
"""

from __future__ import annotations

from math import sqrt
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tuner.functions.rebinding import rebind

_ALPHA = 1.7580993408473766  # -(the negative limit of selu)


def draw_kept(like: Tensor, keep: float, by_channel: bool = False) -> Tensor:
    """Ones with probability `keep`, zeros otherwise.

    Args:
        like: gives shape, dtype, device and memory order; its values and vmapped axes are ignored.
        keep: probability of a one, in (0, 1).
        by_channel: one number for all of (N, C, ...) but the first two axes.

    Returns:
        Tensor (...) or (N, C, 1, ...), not batched by trial.
    """
    if by_channel:
        shape = (*like.shape[:2], *[1] * (like.ndim - 2))
        return torch.bernoulli(torch.empty(shape, dtype=like.dtype, device=like.device), keep)
    axes = list(range(like.ndim))
    order = sorted(axes, key=like.stride, reverse=True) if _IN_MEMORY_ORDER else axes
    blank = torch.empty([like.shape[axis] for axis in order], dtype=like.dtype, device=like.device)
    kept = torch.bernoulli(blank, keep)
    return kept if order == axes else kept.permute([order.index(axis) for axis in axes])


def _draws_in_memory_order() -> bool:
    """Whether filling a transposed tensor follows its memory; with MKL on Intel it follows the indices."""
    contiguous, transposed = torch.empty(8, 8), torch.empty(8, 8).T
    for each in (contiguous, transposed):
        each.bernoulli_(0.5, generator=torch.Generator().manual_seed(0))
    return not torch.equal(contiguous, transposed)


# Now, since inside a trace the question itself would be traced.
_IN_MEMORY_ORDER = _draws_in_memory_order()


def dropout(input: Tensor, p: float, train: bool) -> Tensor:
    """`torch.dropout` for lanes.

    Args:
        input: any shape.
        p: probability of a zero, in [0, 1].
        train: without it the input is returned as it is.

    Returns:
        The input times a scaled mask.
    """
    return _scaled(input, p, train, by_channel=False)


def feature_dropout(input: Tensor, p: float, train: bool) -> Tensor:
    """`torch.feature_dropout` for lanes: whole channels are zeroed.

    Args:
        input: (N, C, ...).
        p: probability that a channel is zeroed, in [0, 1].
        train: without it the input is returned as it is.

    Returns:
        The input times a scaled mask.
    """
    return _scaled(input, p, train, by_channel=True)


def alpha_dropout(input: Tensor, p: float, train: bool) -> Tensor:
    """`torch.alpha_dropout` for lanes: keeps mean and variance behind selu.

    Args:
        input: any shape.
        p: probability of a dropped value, in [0, 1].
        train: without it the input is returned as it is.

    Returns:
        The transformed input.

    Source:
        Klambauer et al., Self-Normalizing Neural Networks, 2017, https://arxiv.org/abs/1706.02515
    """
    return _alpha(input, p, train, by_channel=False)


def feature_alpha_dropout(input: Tensor, p: float, train: bool) -> Tensor:
    """`torch.feature_alpha_dropout` for lanes: `alpha_dropout` of whole channels.

    Args:
        input: (N, C, ...).
        p: probability that a channel is dropped, in [0, 1].
        train: without it the input is returned as it is.

    Returns:
        The transformed input.
    """
    return _alpha(input, p, train, by_channel=True)


def _scaled(input: Tensor, p: float, train: bool, by_channel: bool) -> Tensor:
    if not train or p == 0 or input.numel() == 0:
        return input
    if p == 1:
        return input * torch.zeros((), dtype=input.dtype, device=input.device)
    return input * draw_kept(input, 1 - p, by_channel).div(1 - p)


def _alpha(input: Tensor, p: float, train: bool, by_channel: bool) -> Tensor:
    if not train or p == 0 or input.numel() == 0:
        return input
    if p == 1:
        return input * torch.zeros((), dtype=input.dtype, device=input.device)
    kept = draw_kept(input, 1 - p, by_channel)
    gain = 1 / sqrt((_ALPHA * _ALPHA * p + 1) * (1 - p))
    shift = kept.add(-1).mul(_ALPHA * gain).add(_ALPHA * gain * p)
    return input * kept.mul(gain) + shift


_torch_functions = {
    name: function
    for function in (dropout, feature_dropout, alpha_dropout, feature_alpha_dropout)
    # The in-place forms too: what the mask multiplies may lack the mask's seed axis.
    for name in (function.__name__, function.__name__ + "_")
}

REPLACEMENTS: dict[Any, Any] = {
    **{getattr(torch, name): function for name, function in _torch_functions.items()},
    **{
        getattr(functional, name): rebind(getattr(functional, name), _VF=SimpleNamespace(**_torch_functions))
        for name in (
            "dropout",
            "dropout1d",
            "dropout2d",
            "dropout3d",
            "alpha_dropout",
            "feature_alpha_dropout",
        )
    },
}
"""What replaces what; see `tuner.functions.substitution`."""
