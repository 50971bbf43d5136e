"""Is the batched program the same training as the plain module? Asked before the first step, of every workload.

vmap is silently wrong for a few operations, and a recording freezes whatever is no tensor. Both would spoil a
study without an error. So the program is recorded twice, and its last lane is compared with the plain module
(the last, because a faulty rule may treat the first lane alone correctly).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.func import functional_call

from tuner.functions import LaneFunctions
from tuner.training.lane_program import LanePrograms, LossModule, Tensors
from tuner.training.not_batchable import NotBatchableError
from tuner.training.precision import autocast
from tuner.training.randomness import GlobalStream
from tuner.training.stacking import Stacked
from tuner.training.streams import SeedStreams
from tuner.workloads.base import AnyWorkload, Precision

#: Largest relative difference that rounding explains, by precision; fp32 also covers TF32 convolutions.
TOLERANCE: Mapping[Precision, float] = {"fp32": 5e-3, "bf16": 0.1, "fp16": 0.05}


def require_agreement(
    programs: LanePrograms,
    workload: AnyWorkload,
    weights: Tensor,
    buffers: Tensors,
    first: Stacked,
    batch: Stacked,
    seeds: Sequence[int],
) -> None:
    """Compare a workload's program with its plain module on one step.

    Args:
        programs: of the workload.
        workload: what is trained.
        weights: initial weights, shape (L, P).
        buffers: each of shape (L, ...); not changed.
        first: a batch of all seeds, on which the program is recorded.
        batch: another one, on which it is compared.
        seeds: the training seeds.

    Raises:
        NotBatchableError: if the program can't be recorded, or is not the same training.
    """
    # Recorded on one batch and compared on another: a recording must not have kept anything of its first batch.
    programs.losses_and_gradients(weights, _copies(buffers), first, _streams(seeds, weights), None)
    if not programs.is_reproducible(weights, buffers, first):
        raise NotBatchableError(
            "the loss or the model depends on something besides weights, batch and torch's random numbers, for "
            "example a counter or Python's random module: give it to the batch"
        )
    losses, grads = programs.losses_and_gradients(
        weights, _copies(buffers), batch, _streams(seeds, weights), None
    )
    loss, expected = _plain(programs, workload, weights, buffers, batch, seeds[-1])
    if not bool(expected.isfinite().all()):
        return
    gap = max(_relative(grads[-1], expected), _relative(losses[-1], loss))
    if gap > TOLERANCE[programs.precision]:
        raise NotBatchableError(
            f"batched and plain training differ by {gap:.1e} in the first step (up to "
            f"{TOLERANCE[programs.precision]:g} is rounding): an operation of the model has a faulty batched form"
        )


def _plain(
    programs: LanePrograms,
    workload: AnyWorkload,
    weights: Tensor,
    buffers: Tensors,
    batch: Stacked,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Loss and gradient row of the last lane, from the module itself."""
    device = weights.device
    programs.model.train()
    views = {
        name: each[-1].detach().clone().requires_grad_()
        for name, each in programs.layout.views(weights).items()
    }
    values: Tensors = (
        views | programs.frozen_of(-1) | {name: each[-1].clone() for name, each in buffers.items()}
    )
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(GlobalStream(seed, "agreement", device).active())
        stack.enter_context(autocast(programs.precision, device))
        if device.type == "cuda":
            # Fused dropout draws other numbers than the per-seed streams; the substituted one draws the same.
            stack.enter_context(LaneFunctions())
        loss = functional_call(
            LossModule(programs.model, workload.loss),
            {f"model.{name}": each for name, each in values.items()},
            (batch.rebuild([each[-1] for each in batch.tensors]),),
        )
        found = torch.autograd.grad(loss, list(views.values()), allow_unused=True)
    rows = [
        (torch.zeros_like(view) if grad is None else grad).reshape(-1)
        for view, grad in zip(views.values(), found, strict=True)
    ]
    return loss.detach(), torch.cat(rows)


def _copies(buffers: Tensors) -> Tensors:
    return {name: each.clone() for name, each in buffers.items()}


def _streams(seeds: Sequence[int], weights: Tensor) -> SeedStreams:
    return SeedStreams(seeds, "agreement", weights.device)


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).double().norm() / other.double().norm().clamp_min(1e-12))
