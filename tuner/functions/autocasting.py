"""Layers with a bias under autocast, in the lower precision throughout.

vmap takes such a layer apart into a product, which autocast puts into the lower precision, and a sum, which it
does not: what follows would run in single precision, and train something else than a plain run does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tuner.functions.linear import linear


def _in_lower_precision(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function whose tensors autocast would put into the lower precision, with that done before the call."""

    def call(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device = input.device.type
        if not torch.is_autocast_enabled(device):
            return function(input, *args, **kwargs)
        dtype = torch.get_autocast_dtype(device)

        def cast(value: Any) -> Any:
            is_cast = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
            return value.to(dtype) if is_cast else value

        return function(
            cast(input), *map(cast, args), **{name: cast(value) for name, value in kwargs.items()}
        )

    return call


def batch_norm(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`torch.nn.functional.batch_norm` for lanes: in the precision of its statistics, as torch's kernels compute it.

    Args:
        input: (B, C, ...).
        *args: as torch's.
        **kwargs: as torch's.

    Returns:
        The shape and type of ``input``.
    """
    if input.dtype in (torch.bfloat16, torch.float16):
        return functional.batch_norm(input.float(), *args, **kwargs).to(input.dtype)
    return functional.batch_norm(input, *args, **kwargs)


REPLACEMENTS: dict[Any, Any] = {
    functional.linear: _in_lower_precision(linear),
    functional.batch_norm: batch_norm,
} | {
    function: _in_lower_precision(function)
    for function in (
        functional.conv1d,
        functional.conv2d,
        functional.conv3d,
        functional.conv_transpose1d,
        functional.conv_transpose2d,
        functional.conv_transpose3d,
    )
}
"""What replaces what; see `tuner.functions.substitution`."""
