"""What is trained, told without the workload's name: so that answers can be compared between workloads."""

from __future__ import annotations

import hashlib
import json

from torch import nn

from tuner.evidence import Features
from tuner.lanes import Layout, trainable
from tuner.optimizers import CustomOptimizer
from tuner.workloads.base import AnyWorkload
from tuner.workloads.batches import tensors


def features_of(workload: AnyWorkload, model: nn.Module, batch: object) -> Features:
    """Describe a workload by its parts.

    Args:
        workload: what will be trained.
        model: one of its models; it is not changed.
        batch: one of its training batches.

    Returns:
        The features.
    """
    layout = Layout.of(trainable(model).items())
    setting = workload.optimizer()
    is_custom = isinstance(setting, CustomOptimizer)
    examples = next((len(each) for each in tensors(batch) if each.ndim), None)
    return Features(
        model_signature=model_signature(model),
        num_parameters=layout.num_parameters,
        num_tensors=layout.num_tensors,
        optimizer=_optimizer_name(workload, model),
        learning_rate=None if is_custom else setting.lr,
        batch_size=None if examples is None else examples * workload.accumulation_steps,
        precision=workload.precision,
    )


def model_signature(model: nn.Module) -> str:
    """A hash of what a model is made of, the values of its weights aside.

    Args:
        model: any module.

    Returns:
        16 hexadecimal characters; the same for the same names and shapes of trainable parameters and the same
        modules' types.

    Example:
        >>> model_signature(nn.Linear(2, 1)) == model_signature(nn.Linear(2, 1)) != model_signature(nn.Linear(3, 1))
        True
    """
    parameters = sorted((name, list(each.shape)) for name, each in trainable(model).items())
    modules = sorted((name, type(each).__name__) for name, each in model.named_modules())
    text = json.dumps([parameters, modules], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _optimizer_name(workload: AnyWorkload, model: nn.Module) -> str:
    """The optimizer's class in lower case; of a function's optimizer, PyTorch's class."""
    setting = workload.optimizer()
    if isinstance(setting, CustomOptimizer):
        return type(setting.build(trainable(model).values())).__name__.lower()
    return type(setting).__name__.lower()
