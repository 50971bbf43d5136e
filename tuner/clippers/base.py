"""What a clipping method is: a pure function of gradients and state, lane by lane.

A clipper is built for a batch of lanes from one threshold per lane. It keeps nothing itself: state goes in and
comes out, so that the training loop can checkpoint, mask and compact it. Gradients are rows of a matrix (see
`tuner.lanes.Layout`); one lane is a matrix of one row.

What every clipper guarantees, and ``tests/contracts/test_clippers.py`` checks:

- a lane that it leaves alone comes back bit for bit, and a lane with threshold ``inf`` is always left alone; no
  norm ever grows; lane k of a batch gets what it gets alone, up to the rounding of its norm;
- a lane whose gradient or norm is NaN or infinite comes back unscaled, counts as non-finite, never as clipped,
  and leaves that lane's state as it was. What becomes of the step is the training loop's decision;
- every state tensor has the lane axis in front, and nothing is read back to the host. Statistics are kept in
  double precision whatever the gradients' type: an average of thousands of norms must not drown in rounding.

Shape letters: L = lanes, P = trainable parameters of one lane, F = thresholds asked about.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import inf, isfinite
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tuner.lanes import Layout, per_lane

#: What a clipper remembers between steps: tensors whose first dimension is L.
ClipState = Mapping[str, Tensor]

#: PyTorch's own constant in ``clip_grad_norm_``: added to the norm before dividing.
EPSILON = 1e-6


class ClipResult(NamedTuple):
    """What one clipping step did.

    Attributes:
        grads: the clipped gradients, shape (L, P).
        state: the clipper's state after this step.
        norm: L2 gradient norm before clipping, shape (L,).
        scale: norm after clipping / norm before, in [0, 1], shape (L,); 1 in lanes that were left alone, 0 in
            skipped ones.
        clipped: True in lanes that were scaled, clamped or skipped, shape (L,), bool.
        finite: True in lanes whose gradient and norm are finite, shape (L,), bool.
        skipped: True in lanes whose update must not be taken: weights and optimizer state stay, shape (L,), bool.
    """

    grads: Tensor
    state: ClipState
    norm: Tensor
    scale: Tensor
    clipped: Tensor
    finite: Tensor
    skipped: Tensor


class Clipper(ABC):
    """A clipping method with one threshold per lane.

    Attributes:
        thresholds: shape (L,), > 0, in the unit that `tuner.methods` states for the method; ``inf`` = never act.
        layout: where the parameter tensors lie in a row.
        reference_norm: median L2 gradient norm that the probe measured, > 0: the scale of whatever a method needs
            beside its threshold; None takes the constants of the method's paper.
        is_on: False in lanes that never act, whatever caps the method has beside its threshold, shape (L,), bool.
        is_off_until_exceeded: whether a lane is bit for bit the run without clipping until `is_exceeded` first
            holds; True only for methods without a state.
    """

    is_off_until_exceeded: ClassVar[bool] = False

    def __init__(self, thresholds: Tensor, layout: Layout, *, reference_norm: float | None = None) -> None:
        if thresholds.ndim != 1:
            raise ValueError(f"thresholds must have shape (lanes,), got {tuple(thresholds.shape)}")
        if reference_norm is not None:
            require_inside("reference_norm", reference_norm, low=0.0)
        self.thresholds = thresholds
        self.layout = layout
        self.reference_norm = reference_norm
        self.is_on = thresholds.isfinite()

    @property
    def num_lanes(self) -> int:
        """Length of the lane axis."""
        return len(self.thresholds)

    @property
    def epsilon(self) -> float:
        """`EPSILON` in units of the reference norm, for methods that need not equal PyTorch's functions.

        A constant of the gradient's own scale would distort the smallest gradients, and tie a result to the scale of
        the loss.
        """
        return EPSILON if self.reference_norm is None else EPSILON * self.reference_norm

    def initial_state(self, weights: Tensor) -> ClipState:
        """State before the first step; empty for a stateless method.

        Args:
            weights: the lanes' parameters, shape (L, P); gives the type and the device.

        Returns:
            Tensors whose first dimension is L.
        """
        del weights
        return {}

    @abstractmethod
    def clip(self, grads: Tensor, state: ClipState, *, weights: Tensor, loss: Tensor) -> ClipResult:
        """Clip each lane's gradient.

        Args:
            grads: shape (L, P). Not modified.
            state: what `initial_state` or the previous step gave. Not modified.
            weights: the lanes' parameters before the step, shape (L, P). Not modified.
            loss: training loss of the step, shape (L,).

        Returns:
            The clipped gradients, the new state and what was done, all on the gradients' device.

        Raises:
            ValueError: if the gradients do not have as many rows as there are thresholds.
        """

    @classmethod
    def is_exceeded(cls, grads: Tensor, norm: Tensor, thresholds: Tensor) -> Tensor:
        """Whether this method would act on given gradients under given thresholds.

        Args:
            grads: shape (L, P).
            norm: their L2 norms, shape (L,).
            thresholds: shape (F,).

        Returns:
            Shape (L, F), bool; False where the norm is not finite.

        Raises:
            NotImplementedError: if the method has no such test (``is_off_until_exceeded`` is False).
        """
        raise NotImplementedError(f"{cls.__name__} can act without its threshold being exceeded")


def require_lanes(grads: Tensor, clipper: Clipper) -> None:
    """Check that the gradients are this clipper's.

    Args:
        grads: shape (L, P).
        clipper: whose thresholds and layout they must fit.

    Raises:
        ValueError: if the number of rows or columns differs, or if there is no column.
    """
    if grads.ndim != 2 or len(grads) != clipper.num_lanes:
        raise ValueError(
            f"gradients have shape {tuple(grads.shape)}, but there are {clipper.num_lanes} thresholds"
        )
    if grads.shape[1] == 0:
        raise ValueError("there is no gradient to clip: no parameter requires one")
    if grads.shape[1] != clipper.layout.num_parameters:
        raise ValueError(
            f"gradients have {grads.shape[1]} columns, but the layout has {clipper.layout.num_parameters}"
        )


def advanced(before: ClipState, after: ClipState, finite: Tensor) -> ClipState:
    """The state after a step: new in lanes whose step was finite, bit for bit the old one in the others.

    Args:
        before: the state before the step.
        after: the same tensors after it, computed for every lane.
        finite: shape (L,), bool.

    Returns:
        One tensor per name of ``after``.

    Example:
        >>> before, after = {"count": torch.tensor([5, 5])}, {"count": torch.tensor([6, 6])}
        >>> advanced(before, after, torch.tensor([True, False]))["count"]
        tensor([6, 5])
    """
    return {name: torch.where(per_lane(finite, rows), rows, before[name]) for name, rows in after.items()}


def require_inside(
    name: str, value: float, *, low: float, high: float = inf, low_included: bool = False
) -> None:
    """Check a constant of a method.

    Args:
        name: the caller's spelling.
        value: what was given.
        low: lower bound.
        high: upper bound, included unless infinite.
        low_included: whether ``low`` itself is allowed.

    Raises:
        ValueError: if the value is not finite or out of its bounds.

    Example:
        >>> require_inside("alpha", 1.5, low=0.0, high=1.0)
        Traceback (most recent call last):
        ValueError: alpha must be finite, > 0 and <= 1, got 1.5; leave it out for the default
    """
    if isfinite(value) and (value >= low if low_included else value > low) and value <= high:
        return
    bounds = f"{'>=' if low_included else '>'} {low:g}" + (f" and <= {high:g}" if isfinite(high) else "")
    joint = ", " if isfinite(high) else " and "
    raise ValueError(f"{name} must be finite{joint}{bounds}, got {value}; leave it out for the default")
