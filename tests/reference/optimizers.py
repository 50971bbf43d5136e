"""One lane's Muon and Shampoo, from the formulas: slow, readable, no masks, no batching."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class MuonReference:
    """Muon of one matrix: average the gradient, look ahead, orthogonalise, decay, step."""

    lr: float
    momentum: float = 0.95
    nesterov: bool = True
    weight_decay: float = 0.1
    adjust_lr: str = "original"
    average: Tensor | None = None

    def step(self, weight: Tensor, grad: Tensor) -> Tensor:
        """The weight after one step."""
        previous = torch.zeros_like(grad) if self.average is None else self.average
        self.average = self.momentum * previous + (1 - self.momentum) * grad
        towards = self.average
        if self.nesterov:
            towards = (1 - self.momentum) * grad + self.momentum * self.average
        rows, columns = weight.shape
        factor = {
            "original": math.sqrt(max(1, rows / columns)),
            "match_rms_adamw": 0.2 * math.sqrt(max(rows, columns)),
        }[self.adjust_lr]
        return weight - self.lr * self.weight_decay * weight - self.lr * factor * quintic(towards)


def quintic(matrix: Tensor) -> Tensor:
    """Five times ``a s + b s^3 + c s^5`` on the singular values, by a decomposition and not by products."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / torch.linalg.vector_norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ torch.diag(values) @ right


@dataclass
class ShampooReference:
    """Shampoo of one tensor: algorithm 1 of Gupta, Koren and Singer (2018), or Adagrad if ``is_diagonal``."""

    lr: float
    momentum: float = 0.0
    eps: float = 1e-4
    ridge: float = 1e-6
    weight_decay: float = 0.0
    is_diagonal: bool = False
    moments: list[Tensor] = field(default_factory=list)
    velocity: Tensor | None = None

    def step(self, weight: Tensor, grad: Tensor) -> Tensor:
        """The weight after one step."""
        direction = self._adagrad(grad) if self.is_diagonal else self._precondition(grad)
        previous = torch.zeros_like(grad) if self.velocity is None else self.velocity
        self.velocity = self.momentum * previous + direction
        return weight - self.lr * self.weight_decay * weight - self.lr * self.velocity

    def _adagrad(self, grad: Tensor) -> Tensor:
        if not self.moments:
            self.moments = [torch.full_like(grad, self.eps)]
        self.moments[0] = self.moments[0] + grad**2
        return grad / self.moments[0].sqrt()

    def _precondition(self, grad: Tensor) -> Tensor:
        matrix = grad.reshape(len(grad), -1)
        if not self.moments:
            self.moments = [self.eps * torch.eye(size, dtype=grad.dtype) for size in matrix.shape]
        self.moments = [self.moments[0] + matrix @ matrix.T, self.moments[1] + matrix.T @ matrix]
        left, right = (self._root(each) for each in self.moments)
        return (left @ matrix @ right).reshape(grad.shape)

    def _root(self, moment: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(moment)
        values = values + self.ridge * torch.linalg.vector_norm(values)
        return vectors @ torch.diag(values**-0.25) @ vectors.T
