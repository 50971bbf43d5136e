"""Table look-up whose padding row gets no gradient in any lane.

Torch's batching rule flattens the lanes' tables into one and leaves `padding_idx` as it is, so that only
lane 0's padding row is spared (BatchRulesModules.cpp, as of torch 2.13).

Shape letters: V = rows of the table, E = width of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tuner.functions.errors import NotLaneFriendlyError


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """`torch.nn.functional.embedding` for lanes.

    Args:
        input: integer tensor of any shape, values in [0, V).
        weight: (V, E).
        padding_idx: row without a gradient, in [-V, V).
        max_norm: not supported.
        norm_type: unused without `max_norm`.
        scale_grad_by_freq: divide a row's gradient by how often the lane's indices name it.
        sparse: not supported.

    Returns:
        Rows of the table, input.shape + (E,).

    Raises:
        NotLaneFriendlyError: with `max_norm` or `sparse`.
    """
    del norm_type
    if max_norm is not None:
        raise NotLaneFriendlyError(
            f"nn.Embedding(max_norm={max_norm})",
            "it rewrites rows of its table during the forward pass",
            "leave max_norm out, or normalise the rows that were looked up in your own forward",
        )
    if sparse:
        raise NotLaneFriendlyError(
            "nn.Embedding(sparse=True)",
            "a sparse gradient has no lane axis",
            "use sparse=False",
        )
    rows = torch.embedding(weight, input, scale_grad_by_freq=scale_grad_by_freq)
    if padding_idx is None:
        return rows
    is_padding = (input == padding_idx % weight.shape[0]).unsqueeze(-1)
    return torch.where(is_padding, rows.detach(), rows)


REPLACEMENTS: dict[Any, Any] = {functional.embedding: embedding}
"""What replaces what; see `tuner.functions.substitution`."""
