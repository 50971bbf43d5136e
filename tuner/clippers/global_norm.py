"""Clip the whole gradient by its norm, lane by lane; the direction is kept.

Both clippers do what ``torch.nn.utils.clip_grad_norm_`` does to a plain module, with the same 1e-6 in the
denominator: ``grad *= min(1, max_norm / (norm + 1e-6))``. A lane is clipped exactly if ``norm + 1e-6 > max_norm``.

Source: Pascanu, Mikolov and Bengio (2013), algorithm 1, https://arxiv.org/abs/1211.5063; PyTorch's
``torch/nn/utils/clip_grad.py``. Differs from it for non-finite norms: PyTorch multiplies by 0 or NaN, we select
the unscaled gradient, because scaling would erase it before the training loop can see it.

Shape letters: L = lanes, P = parameters of one lane.
"""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor

from tuner.clippers.base import EPSILON, Clipper, ClipResult, ClipState, require_lanes
from tuner.clippers.scaling import scaled
from tuner.norms import l2_norm, max_abs


@final
class GlobalNormClipper(Clipper):
    """Scale a lane so that its L2 norm is at most its threshold ``max_norm``.

    Example:
        Lane 0 has norm 5 and is halved; lane 1 has norm 1 and is left alone.

        >>> import torch
        >>> from tuner.lanes import Layout
        >>> clipper = GlobalNormClipper(torch.tensor([2.5, 2.5]), Layout(("weight",), ((2,),)))
        >>> grads = torch.tensor([[3.0, 4.0], [0.6, 0.8]])
        >>> result = clipper.clip(grads, {}, weights=grads, loss=torch.zeros(2))
        >>> result.grads
        tensor([[1.5000, 2.0000],
                [0.6000, 0.8000]])
        >>> result.clipped
        tensor([ True, False])
    """

    is_off_until_exceeded: ClassVar[bool] = True

    def clip(self, grads: Tensor, state: ClipState, *, weights: Tensor, loss: Tensor) -> ClipResult:  # noqa: D102
        del weights, loss
        require_lanes(grads, self)
        norm = l2_norm(grads)
        return _limited(grads, state, norm=norm, compared=norm, max_norm=self.thresholds)

    @classmethod
    def is_exceeded(cls, grads: Tensor, norm: Tensor, thresholds: Tensor) -> Tensor:  # noqa: D102
        del grads
        return _is_above(norm, norm, thresholds)


@final
class GlobalNormInfClipper(Clipper):
    """Scale a lane so that its largest element is at most its threshold ``max_norm``.

    This is ``clip_grad_norm_`` with ``norm_type=inf``. It is not value clipping: the whole gradient is scaled.

    Example:
        >>> import torch
        >>> from tuner.lanes import Layout
        >>> clipper = GlobalNormInfClipper(torch.tensor([2.0]), Layout(("weight",), ((2,),)))
        >>> grads = torch.tensor([[3.0, 4.0]])
        >>> clipper.clip(grads, {}, weights=grads, loss=torch.zeros(1)).grads
        tensor([[1.5000, 2.0000]])
    """

    is_off_until_exceeded: ClassVar[bool] = True

    def clip(self, grads: Tensor, state: ClipState, *, weights: Tensor, loss: Tensor) -> ClipResult:  # noqa: D102
        del weights, loss
        require_lanes(grads, self)
        return _limited(grads, state, norm=l2_norm(grads), compared=max_abs(grads), max_norm=self.thresholds)

    @classmethod
    def is_exceeded(cls, grads: Tensor, norm: Tensor, thresholds: Tensor) -> Tensor:  # noqa: D102
        return _is_above(max_abs(grads), norm, thresholds)


def _limited(
    grads: Tensor, state: ClipState, *, norm: Tensor, compared: Tensor, max_norm: Tensor
) -> ClipResult:
    """Multiply each lane by ``min(1, max_norm / (compared + 1e-6))`` if its norm is finite."""
    max_norm = max_norm.to(compared)
    padded = compared + EPSILON
    return scaled(grads, state, norm=norm, coefficient=max_norm / padded, acts=padded > max_norm)


def _is_above(compared: Tensor, norm: Tensor, thresholds: Tensor) -> Tensor:
    above = (compared + EPSILON).unsqueeze(1) > thresholds.to(compared)
    return above & norm.isfinite().unsqueeze(1)
