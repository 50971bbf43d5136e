"""The model every trial of a seed starts from, and what a model must be like to be trained at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tuner.errors import UnsupportedModelError
from tuner.lanes import trainable
from tuner.training.randomness import GlobalStream
from tuner.workloads.base import AnyWorkload


def initial_model(workload: AnyWorkload, seed: int, device: torch.device) -> nn.Module:
    """A workload's model with the initial weights of a seed.

    Args:
        workload: whose model.
        seed: the training seed.
        device: where it will train; the weights are drawn on the CPU, so that devices start alike.

    Returns:
        A fresh module on the device.

    Raises:
        UnsupportedModelError: if it can't be trained under clip settings; see `require_trainable`.
    """
    with GlobalStream(seed, "model", torch.device("cpu")).active():
        model = workload.model()
    require_trainable(model)
    return model.to(device)


def require_trainable(model: nn.Module) -> None:
    """Check what every engine needs: parameters to train, of one type, with dense gradients.

    Args:
        model: any module.

    Raises:
        UnsupportedModelError: if there is no trainable parameter, if their types differ, or if an embedding
            has sparse gradients, whose norm torch can't clip either.
    """
    parameters = trainable(model)
    if not parameters:
        raise UnsupportedModelError(
            "the model", "has no parameter that requires a gradient: nothing can be trained"
        )
    types = {each.dtype for each in parameters.values()}
    if len(types) > 1:
        first = next(iter(parameters.values())).dtype
        odd = next(name for name, each in parameters.items() if each.dtype != first)
        raise UnsupportedModelError(
            f"parameter {odd!r}",
            f"is {parameters[odd].dtype} where others are {first}: convert the model to one type with model.to(...), "
            "and choose the precision of forward and backward with Workload.precision",
        )
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.Embedding | nn.EmbeddingBag)
            and module.sparse
            and module.weight.requires_grad
        ):
            raise UnsupportedModelError(
                f"module {name!r} ({type(module).__name__})",
                "has sparse gradients: build it with sparse=False",
            )


def require_scalar(loss: object) -> None:
    """Check a workload's loss.

    Args:
        loss: what it returned.

    Raises:
        UnsupportedModelError: if it is no tensor of one element.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UnsupportedModelError(
            "the loss", f"must be one number, got {got}: take the mean over the batch"
        )
