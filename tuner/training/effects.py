"""What a workload's code does beside computing a loss, seen in two forward passes of a copy of its model.

A recorded program knows tensors that go in and come out. Running statistics are such tensors; a counter in Python, a
weight that the model writes, or a batch that the loss changes in place is not, and such a workload trains one lane
at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tuner.training.not_batchable import NotBatchableError
from tuner.training.precision import autocast
from tuner.training.randomness import GlobalStream, data_generator
from tuner.workloads.base import AnyWorkload
from tuner.workloads.batches import tensors, to_device

#: Attributes of these types decide in Python what is computed.
_PLAIN = (bool, int, float, str, type(None))


def lane_buffers(workload: AnyWorkload, models: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The buffers of which a lane needs its own, of every seed side by side.

    Those that training writes (running statistics, and averages that begin later, written with what they already
    hold), and those that differ between seeds. The others (masks, positional encodings) stay as they are and are shared
    by all lanes.

    Args:
        workload: gives the loss and the batches.
        models: the initial model of every seed.

    Returns:
        By name, shape (S, ...), with S the number of seeds.

    Raises:
        NotBatchableError: if a forward pass does what a recorded program would not repeat.
    """
    tried = copy.deepcopy(models[0]).train()
    device = next(tried.parameters()).device
    generator = data_generator(0)
    weights = {name: each.detach().clone() for name, each in tried.named_parameters()}
    seen = {name: (id(each), each._version) for name, each in tried.named_buffers()}
    before: dict[str, object] = {}
    with GlobalStream(0, "effects", device).active(), autocast(workload.precision, device), torch.no_grad():
        for index in range(2):
            batch = to_device(workload.train_batch(index, generator), device)
            versions = [each._version for each in tensors(batch)]
            workload.loss(tried, batch)
            if [each._version for each in tensors(batch)] != versions:
                raise NotBatchableError("the loss changes its batch in place: write it out of place")
            # Between the first pass and the second: the first may fill a cache.
            after = _plain_attributes(workload, tried)
            _require_same(before or after, after)
            before = after
    for name, parameter in tried.named_parameters():
        if not torch.equal(parameter, weights[name]):
            raise NotBatchableError(f"the forward pass writes parameter {name!r}: lanes can't follow that")
    named, left = [dict(model.named_buffers()) for model in models], dict(tried.named_buffers())
    # By version and by value: batch normalisation in a lower precision writes without counting versions.
    written = {
        name
        for name, first in named[0].items()
        if seen[name] != (id(left[name]), left[name]._version) or not torch.equal(first, left[name])
    }
    return {
        name: torch.stack([buffers[name] for buffers in named])
        for name, first in named[0].items()
        if name in written or not all(torch.equal(first, each[name]) for each in named[1:])
    }


def _plain_attributes(workload: AnyWorkload, model: nn.Module) -> dict[str, object]:
    """Numbers, texts and flags that the workload and the modules hold."""
    owners = [("the workload", vars(workload))]
    owners += [
        (f"module {name!r}" if name else "the model", vars(each)) for name, each in model.named_modules()
    ]
    return {
        f"{owner}'s attribute {name!r}": value
        for owner, attributes in owners
        for name, value in attributes.items()
        if isinstance(value, _PLAIN)
    }


def _require_same(before: dict[str, object], after: dict[str, object]) -> None:
    """Check that nothing changed from one forward pass to the next.

    Raises:
        NotBatchableError: if an attribute did.
    """
    for name, value in after.items():
        if name not in before or (before[name] != value and value == value):
            raise NotBatchableError(
                f"{name} changes from step to step: what depends on the step belongs into the batch"
            )
