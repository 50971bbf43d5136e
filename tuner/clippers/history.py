"""The last values of every lane, in tensors whose shape never changes: what a rule about the past is computed from.

A ring is a matrix of W columns per lane; a lane's step counter says which column is next, so lanes may have
different numbers of values and nothing is read back to the host.

Shape letters: L = lanes, W = capacity of the ring.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor
from torch.nn.functional import pad


def pushed(ring: Tensor, count: Tensor, values: Tensor) -> Tensor:
    """Write one value per lane over the oldest one.

    Args:
        ring: shape (L, W). Not modified.
        count: values written before, shape (L,), int64.
        values: shape (L,).

    Returns:
        The new ring.

    Example:
        >>> ring = torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, 0.0]])
        >>> pushed(ring, torch.tensor([3, 1]), torch.tensor([7.0, 8.0]))
        tensor([[7., 2., 3.],
                [1., 8., 0.]])
    """
    return ring.scatter(1, _next_column(ring, count), values.to(ring.dtype).unsqueeze(1))


def overwritten(ring: Tensor, count: Tensor) -> Tensor:
    """What `pushed` is about to overwrite.

    Args:
        ring: shape (L, W).
        count: values written before, shape (L,), int64.

    Returns:
        The oldest value of a full ring, otherwise what the ring was filled with, shape (L,).
    """
    return ring.gather(1, _next_column(ring, count)).squeeze(1)


def replaced(ordered: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Take one value out of ascending rows and put another in, in a few elementwise passes instead of a sort.

    Args:
        ordered: ascending rows, shape (L, W); an empty place is ``inf``. Not modified.
        old: a value of each row, bit for bit, shape (L,); ``inf`` takes out an empty place.
        new: shape (L,).

    Returns:
        Ascending rows, shape (L, W).

    Example:
        >>> replaced(torch.tensor([[1.0, 3.0, 5.0, torch.inf]]), torch.tensor([3.0]), torch.tensor([4.0]))
        tensor([[1., 4., 5., inf]])
    """
    following = pad(ordered[:, 1:], (0, 1), value=inf)
    kept = torch.where(ordered < old.unsqueeze(1), ordered, following)
    previous = pad(kept[:, :-1], (1, 0), value=-inf)
    # The middle one of a place's old value, its left neighbour's and the new value.
    return torch.maximum(previous, torch.minimum(kept, new.to(ordered.dtype).unsqueeze(1)))


def percentile(ordered: Tensor, num: Tensor, share: Tensor) -> Tensor:
    """Percentile with linear interpolation, as NumPy's default.

    Args:
        ordered: ascending rows, shape (L, W).
        num: values in each row, >= 1, shape (L,), int64.
        share: percentile / 100, in [0, 1], shape (L,).

    Returns:
        Shape (L,).

    Example:
        >>> ordered = torch.tensor([[1.0, 2.0, 4.0, torch.inf]])
        >>> percentile(ordered, torch.tensor([3]), torch.tensor([0.75]))
        tensor([3.])
    """
    last = num - 1
    index = share * last
    below = index.floor().to(torch.int64)
    low = ordered.gather(1, below.unsqueeze(1)).squeeze(1)
    high = ordered.gather(1, torch.minimum(below + 1, last).unsqueeze(1)).squeeze(1)
    return low + (high - low) * (index - below)


def _next_column(ring: Tensor, count: Tensor) -> Tensor:
    return (count % ring.shape[1]).unsqueeze(1)
