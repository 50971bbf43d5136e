"""Batches of several seeds as one: the same nesting, every tensor with a leading seed axis.

Shape letters: S = seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tuner.training.not_batchable import NotBatchableError


@dataclass(frozen=True)
class Nesting:
    """How a batch is put together, apart from the numbers in its tensors.

    Attributes:
        tree: the nesting.
        constants: what is no tensor, by position; the traced program holds these as they are.
        shapes: of each tensor, without the seed axis, with its type.
    """

    tree: pytree.TreeSpec
    constants: tuple[tuple[int, str], ...]
    shapes: tuple[tuple[tuple[int, ...], str], ...]


class Stacked:
    """One batch, ready for a lane program.

    Attributes:
        tensors: each of shape (S, ...), or without the seed axis if `stack` got a single batch for all.
        nesting: what identifies the program it needs.
    """

    def __init__(self, tensors: list[Tensor], nesting: Nesting, leaves: list[Any]) -> None:
        self.tensors = tensors
        self.nesting = nesting
        self._leaves = leaves

    def to(self, device: torch.device) -> Stacked:
        """The same batch on a device; from a CPU the copy does not wait for the device's earlier work."""
        if device.type == "cpu":
            return self
        pinned = [each.pin_memory() if each.device.type == "cpu" else each for each in self.tensors]
        return Stacked([each.to(device, non_blocking=True) for each in pinned], self.nesting, self._leaves)

    def copy(self) -> Stacked:
        """The same batch in tensors of its own."""
        return Stacked([each.clone() for each in self.tensors], self.nesting, self._leaves)

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        """The batch of one lane, with the given tensors in place of its own."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        return pytree.tree_unflatten(leaves, self.nesting.tree)


def stack(batches: Sequence[object]) -> Stacked:
    """Put the batches of all seeds side by side.

    Args:
        batches: one per seed, alike in nesting, shapes and plain values.

    Returns:
        Tensors of shape (S, ...).

    Raises:
        NotBatchableError: if two seeds' batches differ in anything but numbers.
    """
    each = [single(batch) for batch in batches]
    first = each[0]
    for other in each[1:]:
        if other.nesting != first.nesting:
            raise NotBatchableError(
                "train_batch gives batches of different shapes or plain values to different seeds "
                f"({_shapes(first)} and {_shapes(other)}): pad or drop the odd ones"
            )
    columns = zip(*(one.tensors for one in each), strict=True)
    return Stacked([torch.stack(column) for column in columns], first.nesting, first._leaves)


def single(batch: object) -> Stacked:
    """A batch that all seeds share.

    Args:
        batch: any nesting of tensors and plain values.

    Returns:
        Its tensors as they are.

    Raises:
        NotBatchableError: if it holds something else than tensors, numbers and texts.
    """
    leaves, tree = pytree.tree_flatten(batch)
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, bool, int, float, str, type(None))):
            raise NotBatchableError(
                f"a batch holds a {type(leaf).__name__}, of which nobody can tell whether it changes: make it a tensor"
            )
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    nesting = Nesting(
        tree=tree,
        constants=tuple((n, repr(leaf)) for n, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)),
        shapes=tuple((tuple(each.shape), str(each.dtype)) for each in tensors),
    )
    return Stacked(tensors, nesting, leaves)


def _shapes(batch: Stacked) -> str:
    return ", ".join(str(shape) for shape, _ in batch.nesting.shapes)
