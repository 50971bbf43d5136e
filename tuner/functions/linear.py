"""Linear layers as one product over all rows of a lane.

vmap multiplies a batch of sequences step by step where its input is not contiguous; the same rows as one matrix
are one product per lane.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` for lanes.

    Args:
        input: (..., I).
        weight: (O, I).
        bias: (O,).

    Returns:
        (..., O).
    """
    if input.ndim <= 2:
        return functional.linear(input, weight, bias)
    rows = functional.linear(input.reshape(-1, input.shape[-1]), weight, bias)
    return rows.view(*input.shape[:-1], rows.shape[-1])
