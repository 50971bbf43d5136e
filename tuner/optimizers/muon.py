"""Muon: momentum, orthogonalised, for hidden matrices; AdamW for the rest.

Shape letters: L = lanes, P = parameters of one lane, K = matrices of one shape, m, n = rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from tuner.errors import SpecError
from tuner.optimizers.adam import BETAS, initial_moments, update_moments_
from tuner.optimizers.base import OptimizerSetting, OptimizerState
from tuner.optimizers.bounds import require_at_least, require_count, require_decay
from tuner.optimizers.schedules import CONSTANT, Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from tuner.lanes import Layout

AdjustLr = Literal["original", "match_rms_adamw"]


@dataclass(frozen=True, kw_only=True)
class Muon(OptimizerSetting):
    """Keller Jordan's Muon for all lanes at once, with AdamW for what is no hidden matrix.

    A tensor of two dimensions is a hidden matrix, unless its name contains one of ``adamw_names``. Embeddings
    and the output layer have two dimensions too; by the author's advice they belong to AdamW, so name them.

    Attributes:
        momentum: decay of the average gradient, in [0, 1).
        nesterov: whether to look ahead.
        weight_decay: of hidden matrices, decoupled, >= 0.
        adjust_lr: factor on the rate by a matrix's shape: ``original`` is ``max(1, m / n) ** 0.5``,
            ``match_rms_adamw`` is ``0.2 * max(m, n) ** 0.5``.
        num_iterations: Newton-Schulz iterations, >= 1.
        coefficients: of its polynomial.
        eps: smallest norm that a matrix is divided by, > 0.
        adamw_names: parts of the names of matrices that AdamW trains.
        adamw_lr: rate of AdamW, > 0; a lane's rate and the schedule scale it as they scale ``lr``.
        adamw_betas: decay of its moments, each in [0, 1).
        adamw_eps: added to its denominator, >= 0.
        adamw_weight_decay: decoupled, >= 0.
    """

    momentum: float = 0.95
    nesterov: bool = True
    weight_decay: float = 0.1
    adjust_lr: AdjustLr = "original"
    num_iterations: int = 5
    coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    eps: float = 1e-7
    adamw_names: tuple[str, ...] = ()
    adamw_lr: float = 3e-4
    adamw_betas: tuple[float, float] = BETAS
    adamw_eps: float = 1e-8
    adamw_weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require_decay("momentum", self.momentum)
        if self.adjust_lr not in get_args(AdjustLr):
            raise SpecError(
                "adjust_lr", f"must be one of {', '.join(get_args(AdjustLr))}, got {self.adjust_lr!r}"
            )
        require_count("num_iterations", self.num_iterations)
        require_at_least("eps", self.eps, 0, is_open=True)
        require_at_least("adamw_lr", self.adamw_lr, 0, is_open=True)
        require_at_least("adamw_eps", self.adamw_eps, 0)
        require_at_least("weight_decay", self.weight_decay, 0)
        require_at_least("adamw_weight_decay", self.adamw_weight_decay, 0)
        for beta in self.adamw_betas:
            require_decay("adamw_betas", beta)
        # A bare string would be read as its letters.
        if not isinstance(self.adamw_names, tuple) or "" in self.adamw_names:
            raise SpecError("adamw_names", f"must be a tuple of non-empty names, got {self.adamw_names!r}")

    def initial_state(self, weights: Tensor, layout: Layout) -> OptimizerState:  # noqa: D102
        matrices, rest = self._split(layout)
        num_lanes = len(weights)
        state = {
            _key(shape): weights.new_zeros(num_lanes, len(segments), *shape)
            for shape, segments in matrices.items()
        }
        if rest:
            width = sum(end - start for start, end in rest)
            state |= initial_moments(weights.new_empty(num_lanes, width))
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
        from tuner.optimizers.coefficients import mask_of, rate_of, shrinkage

        matrices, rest = self._split(layout)
        mask = mask_of(applied, weights)
        rate = rate_of(lr, mask)
        keep = shrinkage(rate, self.weight_decay)
        for shape, segments in matrices.items():
            steps = self._orthogonal_steps(grads, state[_key(shape)], segments, mask)
            adjusted = rate * self._rate_factor(shape)
            for (start, end), step in zip(segments, steps.unbind(1), strict=True):
                weights[:, start:end].mul_(keep).addcmul_(step.flatten(1), adjusted, value=-1)
        if rest:
            self._adamw(weights, grads, state, rest, mask, lr * (self.adamw_lr / self.lr))

    def _orthogonal_steps(
        self, grads: Tensor, momentum: Tensor, segments: list[tuple[int, int]], mask: Tensor
    ) -> Tensor:
        """The steps of K matrices of one shape, before the rate: (L, K, m, n)."""
        import torch

        from tuner.optimizers.coefficients import average_
        from tuner.optimizers.matrices import orthogonalize

        shape = momentum.shape[2:]
        stacked = torch.stack([grads[:, start:end].view(-1, *shape) for start, end in segments], dim=1)
        average_(momentum, stacked, mask[..., None, None], self.momentum)
        towards = stacked.lerp_(momentum, self.momentum) if self.nesterov else momentum
        steps = orthogonalize(
            towards.flatten(0, 1),
            num_iterations=self.num_iterations,
            coefficients=self.coefficients,
            eps=self.eps,
        )
        return steps.view(momentum.shape)

    def _rate_factor(self, shape: tuple[int, ...]) -> float:
        rows, columns = shape
        if self.adjust_lr == "original":
            return math.sqrt(max(1.0, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))

    def _adamw(
        self,
        weights: Tensor,
        grads: Tensor,
        state: OptimizerState,
        segments: list[tuple[int, int]],
        mask: Tensor,
        lr: Tensor,
    ) -> None:
        import torch

        from tuner.optimizers.coefficients import rate_of, shrinkage

        gathered = torch.cat([grads[:, start:end] for start, end in segments], dim=1)
        denominator = update_moments_(
            gathered, state, mask, lr=lr, betas=self.adamw_betas, eps=self.adamw_eps
        )
        steps = torch.div(state["first"], denominator, out=denominator)
        keep = shrinkage(rate_of(lr, mask), self.adamw_weight_decay)
        widths = [end - start for start, end in segments]
        for (start, end), step in zip(segments, torch.split(steps, widths, dim=1), strict=True):
            weights[:, start:end].mul_(keep).sub_(step)

    def _split(
        self, layout: Layout
    ) -> tuple[dict[tuple[int, ...], list[tuple[int, int]]], list[tuple[int, int]]]:
        """Columns of hidden matrices by shape, and runs of columns for AdamW."""
        matrices: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        rest: list[tuple[int, int]] = []
        for name, shape, (start, end) in zip(layout.names, layout.shapes, layout.segments, strict=True):
            if len(shape) == 2 and not any(part in name for part in self.adamw_names):
                matrices.setdefault(shape, []).append((start, end))
            elif rest and rest[-1][1] == start:
                rest[-1] = (rest[-1][0], end)
            else:
                rest.append((start, end))
        return matrices, rest


def _key(shape: tuple[int, ...]) -> str:
    return "momentum_" + "x".join(map(str, shape))


def muon(
    lr: float,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.1,
    adjust_lr: AdjustLr = "original",
    num_iterations: int = 5,
    adamw_names: tuple[str, ...] = (),
    adamw_lr: float = 3e-4,
    adamw_betas: tuple[float, float] = BETAS,
    adamw_eps: float = 1e-8,
    adamw_weight_decay: float = 0.01,
    schedule: Schedule = CONSTANT,
) -> Muon:
    """Muon for hidden matrices, AdamW for the rest.

    Tensors that do not have two dimensions go to AdamW. So should, by the author's advice, embeddings and the
    output layer: name them in ``adamw_names``.

    Args:
        lr: learning rate of Muon, > 0; about 0.02 with ``original``, an AdamW rate with ``match_rms_adamw``.
        momentum: decay of the average gradient, in [0, 1).
        nesterov: whether to look ahead.
        weight_decay: of hidden matrices, decoupled, >= 0.
        adjust_lr: ``original`` or ``match_rms_adamw``.
        num_iterations: Newton-Schulz iterations, >= 1; each is three products of matrices.
        adamw_names: parts of the names of matrices that AdamW trains.
        adamw_lr: rate of AdamW, > 0; scaled with ``lr`` by a lane's own rate and the schedule.
        adamw_betas: decay of its moments, each in [0, 1).
        adamw_eps: added to its denominator, >= 0.
        adamw_weight_decay: decoupled, >= 0.
        schedule: factor on both rates.

    Returns:
        The setting.

    Source:
        Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/; ``match_rms_adamw`` is Liu et al.
        (2025), https://arxiv.org/abs/2502.16982. Equals ``torch.optim.Muon`` but for the type of the
        iteration: that of the weights here, bfloat16 there.

    Example:
        >>> muon(0.02, adamw_names=("embedding", "head")).adjust_lr
        'original'
    """
    return Muon(
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        adjust_lr=adjust_lr,
        num_iterations=num_iterations,
        adamw_names=adamw_names,
        adamw_lr=adamw_lr,
        adamw_betas=adamw_betas,
        adamw_eps=adamw_eps,
        adamw_weight_decay=adamw_weight_decay,
        schedule=schedule,
    )
