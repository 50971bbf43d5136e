"""Clip in a training loop that Hugging Face Accelerate prepared."""

from __future__ import annotations

from collections.abc import Iterable

from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn

from tuner.inline import Clipper
from tuner.integrations.attached import Attached, Trial
from tuner.integrations.errors import TrainerSetupError

#: Where no process holds a whole gradient, or where the engine clips by itself; Accelerate's names.
_UNSUPPORTED = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA")


def clip_after_unscale(
    accelerator: Accelerator,
    clipper_or_trial: Clipper | Trial,
    parameters: nn.Module | Iterable[Tensor],
    *,
    loss: Tensor | None = None,
) -> Tensor | None:
    """Stand where ``accelerator.clip_grad_norm_`` stood: after ``backward``, before ``optimizer.step``.

    Unscales fp16 gradients first. Between the steps of a gradient accumulation, where Accelerate's optimizer does
    nothing either, it does nothing: ``if accelerator.sync_gradients`` around it is not needed. Where the method skips a
    step the gradients are taken away, so that the ``optimizer.step()`` that follows changes nothing.

    Args:
        accelerator: which prepared model and optimizer.
        clipper_or_trial: what to clip with.
        parameters: the prepared module, or its parameters.
        loss: the step's training loss, for methods that look at it.

    Returns:
        The gradient norm before clipping, shape (), on the device; None between the steps of an accumulation.

    Raises:
        TrainerSetupError: if parameters or gradients are sharded, or something else clips by itself.
    """
    kind = accelerator.distributed_type.value
    if kind in _UNSUPPORTED:
        raise TrainerSetupError(
            f"Accelerator.distributed_type {kind}",
            "clips by itself or splits gradients over devices, where each sees a part's norm only: use "
            "accelerator.clip_grad_norm_ with the recommended threshold",
        )
    if not accelerator.sync_gradients:
        return None
    accelerator.unscale_gradients()
    whole = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
    return Attached(clipper_or_trial).clip(whole, loss=loss)
