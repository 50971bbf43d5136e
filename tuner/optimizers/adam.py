"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.errors import SpecError
from tuner.optimizers.base import OptimizerSetting, require_at_least

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Adam(OptimizerSetting):
    """``torch.optim.Adam`` or ``torch.optim.AdamW`` as frozen numbers.

    Attributes:
        lr: learning rate, > 0.
        betas: decay of the first and the second moment, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: >= 0.
        decoupled: True subtracts the decay from the weights (AdamW), False adds it to the gradient (Adam).
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def __post_init__(self) -> None:
        require_at_least("lr", self.lr, 0, is_open=True)
        require_at_least("eps", self.eps, 0)
        require_at_least("weight_decay", self.weight_decay, 0)
        for beta in self.betas:
            require_at_least("betas", beta, 0)
            if beta >= 1:
                raise SpecError("betas", f"must be < 1, got {beta}")

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:  # noqa: D102
        import torch

        family = torch.optim.AdamW if self.decoupled else torch.optim.Adam
        return family(parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)


def adam(
    lr: float, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
) -> Adam:
    """Adam, with weight decay as an L2 penalty.

    Args:
        lr: learning rate, > 0.
        betas: decay of the first and the second moment, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: >= 0.

    Returns:
        The setting.

    Source:
        Kingma and Ba (2015), algorithm 1, https://arxiv.org/abs/1412.6980.

    Example:
        >>> adam(1e-3).decoupled
        False
    """
    return Adam(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def adamw(
    lr: float, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01
) -> Adam:
    """Adam with decoupled weight decay.

    Args:
        lr: learning rate, > 0.
        betas: decay of the first and the second moment, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: >= 0; 0.01 as in PyTorch.

    Returns:
        The setting.

    Source:
        Loshchilov and Hutter (2019), algorithm 2, https://arxiv.org/abs/1711.05101.

    Example:
        >>> adamw(1e-3).weight_decay
        0.01
    """
    return Adam(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled=True)
