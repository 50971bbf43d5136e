"""Shampoo: gradients of matrices multiplied from both sides by roots of their second moments.

Shape letters: L = lanes, P = parameters of one lane, m, n = rows and columns, K = sides of one dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from tuner.errors import SpecError
from tuner.optimizers.base import OptimizerSetting, OptimizerState
from tuner.optimizers.bounds import require_at_least, require_count, require_decay
from tuner.optimizers.schedules import CONSTANT, Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from tuner.lanes import Layout

# A matrix in a row: its first column and one past its last, m, n, and its place among the sides of each size.
Matrix = tuple[int, int, int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Shampoo(OptimizerSetting):
    """Shampoo of order two, for all lanes at once.

    A tensor of two or more dimensions is a matrix of its first dimension by the product of the others. If it
    has one dimension or none, or a side longer than ``max_dimension``, the diagonal form applies: Adagrad.

    Attributes:
        momentum: factor on the sum of preconditioned gradients, in [0, 1).
        eps: what the diagonal of every second moment starts with, > 0.
        ridge: share of a second moment's norm added to its eigenvalues before the root, in [1e-12, 1).
        max_dimension: longest side that gets a second moment of its own, >= 1.
        weight_decay: decoupled, >= 0.
    """

    momentum: float = 0.0
    eps: float = 1e-4
    ridge: float = 1e-6
    max_dimension: int = 512
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_decay("momentum", self.momentum)
        require_at_least("eps", self.eps, 0, is_open=True)
        require_count("max_dimension", self.max_dimension)
        require_at_least("weight_decay", self.weight_decay, 0)
        if not 1e-12 <= self.ridge < 1:
            raise SpecError("ridge", f"must be in [1e-12, 1), got {self.ridge}")

    def initial_state(self, weights: Tensor, layout: Layout) -> OptimizerState:  # noqa: D102
        import torch

        _, rest, num_sides = self._split(layout)
        state: OptimizerState = {}
        for size, count in num_sides.items():
            moments = weights.new_zeros(len(weights), count, size, size)
            moments.diagonal(dim1=2, dim2=3).fill_(self.eps)
            state[_key(size)] = moments
        if rest:
            width = sum(end - start for start, end in rest)
            state["diagonal"] = weights.new_full((len(weights), width), self.eps)
        if self.momentum:
            state["momentum"] = torch.zeros_like(weights)
        return state

    def update(  # noqa: D102
        self,
        weights: Tensor,
        grads: Tensor,
        state: OptimizerState,
        *,
        layout: Layout,
        lr: Tensor,
        applied: Tensor,
    ) -> None:
        from tuner.optimizers.coefficients import accumulate_, mask_of, rate_of, shrinkage

        matrices, rest, num_sides = self._split(layout)
        mask = mask_of(applied, weights)
        rate = rate_of(lr, mask)
        if rest:
            _precondition_diagonal_(grads, state["diagonal"], rest)
        self._precondition_matrices_(grads, state, matrices, num_sides)
        steps = accumulate_(state["momentum"], grads, mask, self.momentum) if self.momentum else grads
        if self.weight_decay:
            weights.mul_(shrinkage(rate, self.weight_decay))
        weights.addcmul_(steps, rate, value=-1)

    def _precondition_matrices_(
        self, grads: Tensor, state: OptimizerState, matrices: list[Matrix], num_sides: dict[int, int]
    ) -> None:
        import torch

        from tuner.optimizers.matrices import inverse_fourth_root

        for start, end, rows, columns, left, right in matrices:
            grad = grads[:, start:end].view(-1, rows, columns)
            state[_key(rows)][:, left].baddbmm_(grad, grad.mT)
            state[_key(columns)][:, right].baddbmm_(grad.mT, grad)
        roots = {
            size: inverse_fourth_root(state[_key(size)].flatten(0, 1), self.ridge).view(-1, count, size, size)
            for size, count in num_sides.items()
        }
        for start, end, rows, columns, left, right in matrices:
            grad = grads[:, start:end].view(-1, rows, columns)
            grad.copy_(torch.bmm(torch.bmm(roots[rows][:, left], grad), roots[columns][:, right]))

    def _split(self, layout: Layout) -> tuple[list[Matrix], list[tuple[int, int]], dict[int, int]]:
        """Matrices, runs of columns for the diagonal form, and the number of sides of each size."""
        matrices: list[Matrix] = []
        rest: list[tuple[int, int]] = []
        num_sides: dict[int, int] = {}
        for shape, (start, end) in zip(layout.shapes, layout.segments, strict=True):
            sides = (shape[0], prod(shape[1:])) if len(shape) >= 2 else ()
            if sides and max(sides) <= self.max_dimension and min(sides) > 0:
                places = []
                for size in sides:
                    places.append(num_sides.get(size, 0))
                    num_sides[size] = places[-1] + 1
                matrices.append((start, end, sides[0], sides[1], places[0], places[1]))
            elif rest and rest[-1][1] == start:
                rest[-1] = (rest[-1][0], end)
            else:
                rest.append((start, end))
        return matrices, rest, num_sides


def _precondition_diagonal_(grads: Tensor, diagonal: Tensor, segments: list[tuple[int, int]]) -> None:
    import torch

    widths = [end - start for start, end in segments]
    for (start, end), moments in zip(segments, torch.split(diagonal, widths, dim=1), strict=True):
        grad = grads[:, start:end]
        moments.addcmul_(grad, grad)
        grad.mul_(moments.rsqrt())


def _key(size: int) -> str:
    return f"moments_{size}"


def shampoo(
    lr: float,
    *,
    momentum: float = 0.0,
    eps: float = 1e-4,
    ridge: float = 1e-6,
    max_dimension: int = 512,
    weight_decay: float = 0.0,
    schedule: Schedule = CONSTANT,
) -> Shampoo:
    """Shampoo: ``G`` becomes ``L ** (-1/4) @ G @ R ** (-1/4)``, with ``L`` and ``R`` the sums of its moments.

    The roots are computed at every step. An interval would need a step count in Python, which a CUDA graph
    cannot follow, or both branches at every step, which saves nothing. The cost per step and side of size m is
    84 products of m x m matrices with the default ridge, all sides of one size in one stack; the state is
    m x m numbers per side. Meant for small layers; lower ``max_dimension`` to leave wide ones to Adagrad.

    Args:
        lr: learning rate, > 0.
        momentum: factor on the sum of preconditioned gradients, in [0, 1).
        eps: what the diagonal of every second moment starts with, > 0.
        ridge: share of a second moment's norm added to its eigenvalues before the root, in [1e-12, 1).
        max_dimension: longest side that gets a second moment of its own, >= 1.
        weight_decay: decoupled, >= 0.
        schedule: factor on the learning rate.

    Returns:
        The setting.

    Source:
        Gupta, Koren and Singer (2018), algorithm 1, https://arxiv.org/abs/1802.09568. Differs: tensors of three
        or more dimensions are reshaped to matrices, and the root has a ridge (Anil et al. 2020).

    Example:
        >>> shampoo(0.1).max_dimension
        512
    """
    return Shampoo(
        lr=lr,
        momentum=momentum,
        eps=eps,
        ridge=ridge,
        max_dimension=max_dimension,
        weight_decay=weight_decay,
        schedule=schedule,
    )
