"""A model at its initial weights, to take gradients of and to leave as it was.

A workload may hand out one module every time: weights and buffers are therefore put back at the end.

Shape letters: P = trainable parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tuner.errors import ProbeError
from tuner.lanes import Layout, row_of, trainable
from tuner.training.initial import initial_model, require_scalar
from tuner.training.precision import INITIAL_SCALE, LOWEST_SCALE, autocast
from tuner.workloads.base import AnyWorkload
from tuner.workloads.batches import to_device

#: Factor on the loss scale where fp16 overflows; smaller than in training, which has more steps to find a scale in.
_BACKOFF = 1 / 16


class Faults(NamedTuple):
    """Names of the parameter tensors whose gradient is of no use.

    Attributes:
        unreached: the loss does not depend on them.
        zero: their gradient is 0.
        not_finite: their gradient holds NaN or an infinity.
    """

    unreached: tuple[str, ...]
    zero: tuple[str, ...]
    not_finite: tuple[str, ...]


class _Buffer(NamedTuple):
    """A buffer, where it hangs, and what it held."""

    owner: nn.Module
    name: str
    tensor: Tensor
    value: Tensor


class FrozenModel:
    """A context manager: inside, gradients at any weights; afterwards weights and buffers are as before.

    Args:
        workload: whose model and loss; its ``device`` is where this runs.
        seed: training seed.
        casts: whether forward and backward run in the workload's precision; otherwise in the weights' own.

    Attributes:
        model: in training mode.
        weights: its initial weights, shape (P,).
    """

    def __init__(self, workload: AnyWorkload, seed: int, *, casts: bool = True) -> None:
        self._workload = workload
        self._device = workload.device
        self._precision = workload.precision if casts else "fp32"
        self.model = initial_model(workload, seed, self._device).train()
        self._parameters = trainable(self.model)
        self._layout = Layout.of(self._parameters.items())
        self.weights = row_of(self._parameters)
        self._buffers = [
            _Buffer(owner, name, each, each.clone())
            for owner in self.model.modules()
            for name, each in owner.named_buffers(recurse=False)
        ]
        self._scale = INITIAL_SCALE if self._precision == "fp16" else 1.0

    def __enter__(self) -> FrozenModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore_buffers()
        self.write(self.weights)

    def write(self, weights: Tensor) -> None:
        """Put weights into the model.

        Args:
            weights: shape (P,).
        """
        with torch.no_grad():
            for name, view in self._layout.views(weights.unsqueeze(0)).items():
                self._parameters[name].copy_(view[0])

    def restore_buffers(self) -> None:
        """Put the buffers back, those that the model changed in place and those that it replaced."""
        with torch.no_grad():
            for each in self._buffers:
                each.tensor.copy_(each.value)
                setattr(each.owner, each.name, each.tensor)

    def gradient(self, batches: list[object]) -> tuple[Tensor, Tensor]:
        """Mean loss and mean gradient of some batches.

        In fp16 a batch that overflows is tried again with smaller loss scales; one that overflows at every scale
        leaves the scale as it was.

        Args:
            batches: of one optimizer step, at least one.

        Returns:
            Loss, a scalar; gradient, shape (P,).

        Raises:
            ProbeError: if the loss depends on no trainable parameter.
        """
        parts = [self._row(batch) for batch in batches]
        losses, rows = (torch.stack(each) for each in zip(*parts, strict=True))
        return losses.mean(), rows.mean(dim=0)

    def faults(self, batch: object) -> Faults:
        """Which tensors get no usable gradient from a batch.

        Args:
            batch: a training batch.

        Returns:
            Their names, in the model's order.
        """
        found = dict(zip(self._parameters, self._backward(batch, self._scale)[1], strict=True))
        return Faults(
            unreached=tuple(name for name, grad in found.items() if grad is None),
            zero=tuple(name for name, grad in found.items() if grad is not None and not bool(grad.any())),
            not_finite=tuple(
                name for name, grad in found.items() if grad is not None and not bool(grad.isfinite().all())
            ),
        )

    def _row(self, batch: object) -> tuple[Tensor, Tensor]:
        """Loss and gradient of one batch, shapes () and (P,)."""
        scale = self._scale
        loss, row = self._flat(batch, scale)
        while self._precision == "fp16" and scale > LOWEST_SCALE and not bool(row.isfinite().all()):
            scale = max(scale * _BACKOFF, LOWEST_SCALE)
            loss, row = self._flat(batch, scale)
            if bool(row.isfinite().all()):
                self._scale = scale
        return loss, row

    def _flat(self, batch: object, scale: float) -> tuple[Tensor, Tensor]:
        loss, found = self._backward(batch, scale)
        rows = [
            (torch.zeros_like(each) if grad is None else grad).reshape(-1)
            for each, grad in zip(self._parameters.values(), found, strict=True)
        ]
        return loss, torch.cat(rows) / scale

    def _backward(self, batch: object, scale: float) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Loss, and the gradient of the scaled loss by parameter; None where the loss does not depend on it.

        Raises:
            ProbeError: if it depends on none.
        """
        with autocast(self._precision, self._device):
            loss = self._workload.loss(self.model, to_device(batch, self._device))
        require_scalar(loss)
        if not loss.requires_grad:
            raise ProbeError(
                f"the loss ({float(loss):g}) depends on none of the {len(self._parameters)} trainable parameter "
                f"tensors ({next(iter(self._parameters))}, ...), so it has no gradient",
                "compute it from the model's output without detach(), item(), argmax or torch.no_grad()",
            )
        scaled = loss.reshape(()) * scale
        found = torch.autograd.grad(scaled, list(self._parameters.values()), allow_unused=True)
        return loss.detach().reshape(()), found
