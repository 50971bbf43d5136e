"""Batches are any nesting of tensors: tuples, lists and mappings, with plain values in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")


def to_device(batch: T, device: torch.device) -> T:
    """The same nesting with every tensor on a device; what is no tensor is left as it is.

    Args:
        batch: tensors, or tuples, lists or mappings of such.
        device: where to.

    Returns:
        The batch; its tensors are the same objects if they were there already.
    """
    return cast(T, _moved(batch, device))


def _moved(batch: object, device: torch.device) -> object:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        values = [_moved(value, device) for value in batch]
        make = getattr(type(batch), "_make", type(batch))  # a named tuple has its own constructor
        moved: object = make(values)
        return moved
    return batch


def tensors(batch: object) -> Iterator[Tensor]:
    """The tensors of a batch, depth first.

    Args:
        batch: as in `to_device`.

    Yields:
        Each tensor.
    """
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from tensors(value)


def batch_size(batch: object) -> int:
    """Number of examples: the first dimension of the first tensor that has one, 1 if there is none.

    Args:
        batch: as in `to_device`.

    Returns:
        At least 1 for a non-empty batch.

    Example:
        >>> batch_size({"pixels": torch.zeros(8, 64), "labels": torch.zeros(8)})
        8
    """
    return next((len(each) for each in tensors(batch) if each.ndim), 1)
