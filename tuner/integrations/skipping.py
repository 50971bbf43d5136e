"""Steps that a method asks not to be taken, where the framework takes the step itself."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from tuner.inline import Clipper


def drop_skipped(clipper: Clipper, parameters: Iterable[Tensor]) -> None:
    """Take the gradients away if the clipper's last call skipped the step, so that the optimizer changes nothing.

    An optimizer passes over parameters without a gradient: no momentum, no weight decay, no step count. For methods
    that skip this waits for the device; for the others it costs nothing.

    Args:
        clipper: which was just called.
        parameters: whose gradients it clipped.
    """
    if clipper.can_skip and bool(clipper.last.skipped):
        for each in parameters:
            each.grad = None
