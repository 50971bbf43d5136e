"""What a clipping method is: a pure function of gradients and state, lane by lane.

A clipper is built for a batch of lanes from one threshold per lane. It keeps nothing itself: state goes in and
comes out, so that the training loop can checkpoint, mask and compact it. One lane is a batch of length one
(`unbatched` and `batched` convert a plain module's gradients).

What every clipper guarantees, and ``tests/contracts/test_clippers.py`` checks:

- a lane below its threshold comes back bit for bit; no norm ever grows; lane k of a batch gets what it gets
  alone, up to the rounding of its norm;
- a lane whose gradient or norm is NaN or infinite comes back unscaled and counts as non-finite, never as
  clipped. Whether to skip that step or to retire the lane is the training loop's decision;
- nothing is read back to the host.

Shape letters: L = lanes, ... = one parameter's own shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

#: One tensor per parameter, by name, each of shape (L, ...).
Gradients = Mapping[str, Tensor]
#: What a clipper remembers between steps: tensors whose first dimension is L.
ClipState = Mapping[str, Tensor]

#: PyTorch's own constant in ``clip_grad_norm_``: added to the norm before dividing.
EPSILON = 1e-6


class ClipResult(NamedTuple):
    """What one clipping step did.

    Attributes:
        grads: the clipped gradients; same names and shapes as the input.
        state: the clipper's state after this step.
        norm: L2 gradient norm before clipping, shape (L,).
        scale: norm after clipping / norm before, in (0, 1], shape (L,); 1 in lanes that were left alone.
        clipped: True in lanes that were scaled or clamped, shape (L,), bool.
        finite: True in lanes whose gradient and norm are finite, shape (L,), bool.
    """

    grads: dict[str, Tensor]
    state: ClipState
    norm: Tensor
    scale: Tensor
    clipped: Tensor
    finite: Tensor


class Clipper(ABC):
    """A clipping method with one threshold per lane.

    Attributes:
        thresholds: shape (L,), > 0, in the unit that `tuner.methods` states for the method.
    """

    def __init__(self, thresholds: Tensor) -> None:
        if thresholds.ndim != 1:
            raise ValueError(f"thresholds must have shape (lanes,), got {tuple(thresholds.shape)}")
        self.thresholds = thresholds

    @property
    def num_lanes(self) -> int:
        """Length of the lane axis."""
        return len(self.thresholds)

    def initial_state(self) -> ClipState:
        """State before the first step; empty for a stateless method."""
        return {}

    @abstractmethod
    def clip(self, grads: Gradients, state: ClipState) -> ClipResult:
        """Clip each lane's gradient.

        Args:
            grads: one tensor per parameter (at least one), each of shape (L, ...). Not modified.
            state: what `initial_state` or the previous step gave.

        Returns:
            The clipped gradients, the new state and what was done, all on the gradients' device.

        Raises:
            ValueError: if a gradient's first dimension is not the number of lanes.
        """


def require_lanes(grads: Gradients, num_lanes: int) -> None:
    """Check that every gradient has the lane axis in front.

    Args:
        grads: one tensor per parameter.
        num_lanes: the expected first dimension.

    Raises:
        ValueError: if there is no gradient, or if a first dimension differs.
    """
    if not grads:
        raise ValueError("there is no gradient to clip: no parameter requires one")
    for name, grad in grads.items():
        if grad.shape[:1] != (num_lanes,):
            raise ValueError(
                f"gradient {name!r} has shape {tuple(grad.shape)}, but there are {num_lanes} thresholds"
            )


def l2_norm(grads: Gradients) -> Tensor:
    """L2 norm of each lane's whole gradient: the norm of the vector of per-parameter norms, as PyTorch's.

    Args:
        grads: at least one tensor of shape (L, ...).

    Returns:
        Shape (L,); infinite if the sum of squares overflows.

    Example:
        >>> l2_norm({"weight": torch.tensor([[3.0, 4.0], [0.6, 0.8]])})
        tensor([5., 1.])
    """
    per_parameter = [torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in _with_columns(grads)]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(per_parameter), dim=0)
    return norm


def max_abs(grads: Gradients) -> Tensor:
    """Largest absolute element of each lane's whole gradient.

    Args:
        grads: at least one tensor of shape (L, ...).

    Returns:
        Shape (L,); NaN if an element is NaN.

    Example:
        >>> max_abs({"weight": torch.tensor([[3.0, -4.0], [0.6, 0.8]])})
        tensor([4.0000, 0.8000])
    """
    return torch.stack([grad.flatten(1).abs().amax(dim=1) for grad in _with_columns(grads)]).amax(dim=0)


def per_lane(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (L,) to (L, 1, ..., 1) so that it broadcasts against a gradient.

    Args:
        values: shape (L,).
        like: a gradient of shape (L, ...).

    Returns:
        A view of ``values`` with as many dimensions as ``like``.
    """
    return values.reshape(-1, *[1] * (like.ndim - 1))


def batched(grads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A plain module's gradients as a batch of one lane (views).

    Args:
        grads: one tensor per parameter, in the parameter's own shape.

    Returns:
        The same tensors with a leading dimension of 1.
    """
    return {name: grad.unsqueeze(0) for name, grad in grads.items()}


def unbatched(grads: Gradients) -> dict[str, Tensor]:
    """Undo `batched`.

    Args:
        grads: tensors of shape (1, ...).

    Returns:
        The same tensors without the lane axis.
    """
    return {name: grad.squeeze(0) for name, grad in grads.items()}


def _with_columns(grads: Gradients) -> list[Tensor]:
    """Gradients of shape (L,) (scalar parameters) as (L, 1), so that a lane is always a row."""
    return [grad.unsqueeze(1) if grad.ndim == 1 else grad for grad in grads.values()]
