"""Number formats of forward and backward: fp32, bf16, fp16. Weights, gradients and optimizer states stay as they are.

fp16 gradients underflow, so the loss is multiplied by a scale and the gradient divided by it again, before norms
are measured and clippers see it. Every lane has its own scale: where one lane overflows, that lane skips its
step and halves its scale, and no other lane notices (`torch.amp.GradScaler` would skip the step of all).

Source: Micikevicius et al. (2018), section 3.2, https://arxiv.org/abs/1710.03740; the constants are those of
``torch.amp.GradScaler``.

Shape letters: L = lanes.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from tuner.workloads.base import Precision

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

INITIAL_SCALE = 2.0**16
GROWTH_FACTOR = 2.0
BACKOFF_FACTOR = 0.5
GROWTH_INTERVAL = 2000
#: A lane that overflows at this scale overflows without help: it has diverged.
LOWEST_SCALE = 1.0


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context in which forward runs.

    Args:
        precision: fp32 changes nothing.
        device: where it runs.

    Returns:
        `torch.autocast` for the lower precisions; its cache of cast weights is off, because it would outlive the step.
    """
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision], cache_enabled=False)


class LossScale:
    """A scale per lane, and how long it has held.

    Attributes:
        scale: shape (L,), a power of two.
        streak: steps since the lane last overflowed or its scale grew, shape (L,), int64.
    """

    def __init__(self, scale: Tensor, streak: Tensor) -> None:
        self.scale = scale
        self.streak = streak

    @classmethod
    def initial(cls, num_lanes: int, device: torch.device) -> LossScale:
        """The scale of lanes that have not taken a step."""
        return cls(
            torch.full((num_lanes,), INITIAL_SCALE, device=device),
            torch.zeros(num_lanes, dtype=torch.int64, device=device),
        )

    def forgives(self, overflowed: Tensor) -> Tensor:
        """Whether an overflow is the scale's fault, so that a smaller one is worth a try; shape (L,), bool."""
        return overflowed & (self.scale > LOWEST_SCALE)

    def update(self, overflowed: Tensor) -> None:
        """Back off where a lane overflowed, grow after long enough without; in place, no host synchronization.

        Args:
            overflowed: shape (L,), bool.
        """
        self.streak.add_(1).masked_fill_(overflowed, 0)
        grows = self.streak >= GROWTH_INTERVAL
        self.streak.masked_fill_(grows, 0)
        factor = torch.where(grows, GROWTH_FACTOR, 1.0).masked_fill(overflowed, BACKOFF_FACTOR)
        self.scale.mul_(factor).clamp_(min=LOWEST_SCALE)
