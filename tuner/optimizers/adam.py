"""Adam and AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.optimizers.base import OptimizerSetting, OptimizerState
from tuner.optimizers.bounds import require_at_least, require_decay
from tuner.optimizers.schedules import CONSTANT, Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from tuner.lanes import Layout

BETAS = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class Adam(OptimizerSetting):
    """``torch.optim.Adam`` or ``torch.optim.AdamW``, for all lanes at once; each lane counts its own steps.

    Attributes:
        betas: decay of the first and the second moment, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: >= 0.
        decoupled: True subtracts the decay from the weights (AdamW), False adds it to the gradient (Adam).
    """

    betas: tuple[float, float] = BETAS
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("eps", self.eps, 0)
        require_at_least("weight_decay", self.weight_decay, 0)
        for beta in self.betas:
            require_decay("betas", beta)

    def initial_state(self, weights: Tensor, layout: Layout) -> OptimizerState:  # noqa: D102
        del layout
        return initial_moments(weights)

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

        del layout
        mask = mask_of(applied, weights)
        if self.weight_decay and self.decoupled:
            weights.mul_(shrinkage(rate_of(lr, mask), self.weight_decay))
        elif self.weight_decay:
            grads.addcmul_(weights, mask, value=self.weight_decay)
        denominator = update_moments_(grads, state, mask, lr=lr, betas=self.betas, eps=self.eps)
        weights.addcdiv_(state["first"], denominator, value=-1)


def initial_moments(weights: Tensor) -> OptimizerState:
    """The state of Adam before the first step.

    Args:
        weights: shape (L, P).

    Returns:
        ``first`` and ``second`` moment of shape (L, P), and ``step``, the steps of each lane, shape (L,).
    """
    import torch

    return {
        "first": torch.zeros_like(weights),
        "second": torch.zeros_like(weights),
        # float64: in float32, 1 - 0.999 ** 1 is wrong in the fifth digit.
        "step": weights.new_zeros(len(weights), dtype=torch.float64),
    }


def update_moments_(
    grads: Tensor, state: OptimizerState, mask: Tensor, *, lr: Tensor, betas: tuple[float, float], eps: float
) -> Tensor:
    """Advance the moments; the step to subtract from the weights is then ``state["first"] / result``.

    Args:
        grads: shape (L, P); becomes the result.
        state: from `initial_moments`, changed in place.
        mask: 1 or 0, shape (L, 1).
        lr: shape (L,).
        betas: decay of the moments.
        eps: added to the root of the second moment, >= 0.

    Returns:
        Shape (L, P), the learning rate included; infinite for lanes that take no step.
    """
    import torch

    from tuner.optimizers.coefficients import average_, divide_by_rate_, square_average_

    step = state["step"].add_(mask[:, 0])
    average_(state["first"], grads, mask, betas[0])
    second = square_average_(state["second"], grads, mask, betas[1])
    # A lane that never stepped has 0 / 0 here; `divide_by_rate_` reads that as a rate of 0.
    rate = (lr.double() * mask[:, 0]).div_(torch.rsub(torch.pow(betas[0], step), 1))
    scale = torch.rsub(torch.pow(betas[1], step), 1).rsqrt_()
    return divide_by_rate_(torch.sqrt(second, out=grads), rate, eps, scale)


def adam(
    lr: float,
    *,
    betas: tuple[float, float] = BETAS,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    schedule: Schedule = CONSTANT,
) -> Adam:
    """Adam, with weight decay as an L2 penalty.

    Args:
        lr: learning rate, > 0.
        betas: decay of the first and the second moment, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: >= 0.
        schedule: factor on the learning rate.

    Returns:
        The setting.

    Source:
        Kingma and Ba (2015), algorithm 1, https://arxiv.org/abs/1412.6980.

    Example:
        >>> adam(1e-3).decoupled
        False
    """
    return Adam(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, schedule=schedule)


def adamw(
    lr: float,
    *,
    betas: tuple[float, float] = BETAS,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    schedule: Schedule = CONSTANT,
) -> Adam:
    """Adam with decoupled weight decay.

    Args:
        lr: learning rate, > 0.
        betas: decay of the first and the second moment, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: >= 0; 0.01 as in PyTorch.
        schedule: factor on the learning rate, and so on the decay.

    Returns:
        The setting.

    Source:
        Loshchilov and Hutter (2019), algorithm 2, https://arxiv.org/abs/1711.05101.

    Example:
        >>> adamw(1e-3).weight_decay
        0.01
    """
    return Adam(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled=True, schedule=schedule)
