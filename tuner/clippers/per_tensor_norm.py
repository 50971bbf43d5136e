"""Clip every parameter tensor by its own L2 norm; the direction between tensors changes.

With T tensors and the threshold ``max_norm``, a tensor's norm is limited to ``max_norm / sqrt(T)``: the gradient that
comes out has a norm of at most ``max_norm``, so the threshold is in the same unit as that of global-norm clipping.

Source: McMahan, Ramage, Talwar and Zhang (2018), section "per-layer clipping", https://arxiv.org/abs/1710.06963;
optax's ``per_example_layer_norm_clip``. Keras calls this method ``clipnorm`` and gives every tensor the whole
threshold. Differs from both by PyTorch's 1e-6, so that one tensor alone equals `tuner.clippers.global_norm`.

Shape letters: L = lanes, P = parameters of one lane, T = parameter tensors.
"""

from __future__ import annotations

from typing import final

from torch import Tensor

from tuner.clippers.base import EPSILON, Clipper, ClipResult, ClipState, require_lanes
from tuner.clippers.scaling import scaled_by_group
from tuner.norms import tensor_norms


@final
class PerTensorNormClipper(Clipper):
    """Scale each tensor so that its L2 norm is at most the lane's ``max_norm / sqrt(T)``.

    A tensor is scaled exactly if ``norm + 1e-6 > max_norm / sqrt(T)``; a lane is clipped if one of its tensors is.

    Example:
        Each of two tensors may have norm 2: the first is scaled, the second is left alone.

        >>> import torch
        >>> from tuner.lanes import Layout
        >>> clipper = PerTensorNormClipper(torch.tensor([8.0**0.5]), Layout(("weight", "bias"), ((2,), (1,))))
        >>> grads = torch.tensor([[3.0, 4.0, 1.0]])
        >>> clipper.clip(grads, {}, weights=grads, loss=torch.zeros(1)).grads
        tensor([[1.2000, 1.6000, 1.0000]])
    """

    def clip(self, grads: Tensor, state: ClipState, *, weights: Tensor, loss: Tensor) -> ClipResult:  # noqa: D102
        del weights, loss
        require_lanes(grads, self)
        norms = tensor_norms(grads, self.layout)
        limit = (self.thresholds / self.layout.num_tensors**0.5).to(norms).unsqueeze(1)
        padded = norms + EPSILON
        return scaled_by_group(
            grads,
            state,
            norms=norms,
            coefficients=limit / padded,
            acts=padded > limit,
            expand=self.layout.expand,
        )
