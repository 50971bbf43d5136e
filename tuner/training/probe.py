"""The probe: a short measuring run without updates, which changes nothing.

It gives the scale that thresholds are searched relative to: gradient norms at frozen initial weights, before
clipping. Not taken from a trial's own history, because a diverging run would raise its own quantiles and a
threshold below the smallest norm could not be expressed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tuner.errors import ProbeError
from tuner.evidence import Reference
from tuner.lanes import trainable
from tuner.norms import l2_norm, max_abs
from tuner.training.initial import initial_model, require_scalar
from tuner.training.precision import INITIAL_SCALE, autocast
from tuner.training.randomness import GlobalStream, data_generator
from tuner.training.trace import sketch
from tuner.workloads.base import AnyWorkload
from tuner.workloads.batches import to_device

NUM_BATCHES = 64


def measure_reference(
    workload: AnyWorkload,
    seeds: Sequence[int],
    *,
    num_batches: int = NUM_BATCHES,
    device: torch.device | str = "cpu",
) -> Reference:
    """Measure gradient norms at the initial weights of every seed.

    The batches are the first ones each seed trains on. Non-finite gradients are left out of the quantiles.

    Args:
        workload: what will be trained.
        seeds: training seeds, at least one.
        num_batches: batches in total, rounded up to the same number per seed.
        device: where to measure.

    Returns:
        Sketches of the L2 norm and of the largest absolute element.

    Raises:
        ProbeError: if no gradient is finite, or if the median gradient is zero.
    """
    per_seed = -(-num_batches // len(seeds))
    measured = torch.cat([_norms(workload, seed, per_seed, torch.device(device)) for seed in seeds]).cpu()
    l2, largest = sketch(measured[:, 0]), sketch(measured[:, 1])
    if l2 is None or largest is None:
        raise ProbeError(
            f"the gradient at the initial weights is not finite in any of {len(measured)} batches"
        )
    if l2.median == 0:
        raise ProbeError(f"the median gradient norm at the initial weights is 0 over {len(measured)} batches")
    return Reference(l2_norm=l2, max_abs=largest, num_batches=len(measured))


def _norms(workload: AnyWorkload, seed: int, num_batches: int, device: torch.device) -> Tensor:
    """L2 norm and largest element of one seed's first gradients, shape (num_batches, 2)."""
    model = initial_model(workload, seed, device).train()
    workload.device = device
    generator = data_generator(seed)
    rows = []
    with GlobalStream(seed, "training", device).active():
        for step in range(num_batches):
            found = [_gradient(workload, model, index, generator, device) for index in _parts(workload, step)]
            row = (sum(found[1:], start=found[0]) / len(found)).unsqueeze(0)
            rows.append(torch.cat([l2_norm(row), max_abs(row)]))
    return torch.stack(rows)


def _parts(workload: AnyWorkload, step: int) -> range:
    """The batches of one optimizer step."""
    return range(step * workload.accumulation_steps, (step + 1) * workload.accumulation_steps)


def _gradient(
    workload: AnyWorkload, model: nn.Module, index: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """The gradient of one batch as a row, shape (P,)."""
    parameters = trainable(model)
    batch = to_device(workload.train_batch(index, generator), device)
    with autocast(workload.precision, device):
        loss = workload.loss(model, batch)
    require_scalar(loss)
    # fp16 gradients underflow without the scale that training has too.
    scale = INITIAL_SCALE if workload.precision == "fp16" else 1.0
    found = torch.autograd.grad(loss.reshape(()) * scale, list(parameters.values()), allow_unused=True)
    rows = [
        (torch.zeros_like(each) if grad is None else grad).reshape(-1)
        for each, grad in zip(parameters.values(), found, strict=True)
    ]
    return torch.cat(rows) / scale
