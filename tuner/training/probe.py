"""The probe: a short measuring run without updates, which changes nothing.

It gives the scale that thresholds are searched relative to: gradient norms at frozen initial weights, before
clipping. Not taken from a trial's own history, because a diverging run would raise its own quantiles and a
threshold below the smallest norm could not be expressed. Beside them it measures how heavy the norms' tail is and how
curvature grows with the gradient, and says what it measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tuner.errors import ProbeError, SpecError
from tuner.evidence import Reference, SeedNorms, Smoothness
from tuner.norms import l2_norm, max_abs
from tuner.training.features import features_of
from tuner.training.frozen import FrozenModel
from tuner.training.randomness import GlobalStream, data_generator
from tuner.training.sketches import finite_or_none, rank, sketch, tail_indices
from tuner.training.smoothness import estimate_smoothness
from tuner.workloads.base import AnyWorkload

#: The fewest for which Hill's estimate of the tail exists; quantiles would do with about half as many.
NUM_BATCHES = 100


def measure_reference(
    workload: AnyWorkload,
    seeds: Sequence[int],
    *,
    num_batches: int = NUM_BATCHES,
    device: torch.device | str = "cpu",
) -> Reference:
    """Measure gradients at the initial weights of every seed, and curvature near those of the first.

    The batches are the first ones each seed trains on. Non-finite gradients are left out of the quantiles. A training
    after the probe is bit for bit the one without it, of the same workload object too.

    Args:
        workload: what will be trained.
        seeds: training seeds, at least one.
        num_batches: optimizer steps' worth of batches in total, rounded up to the same number per seed, at least 1.
        device: where to measure.

    Returns:
        Sketches of the L2 norm and of the largest absolute element; the tail index is None with fewer than 100
        finite norms, the smoothness where it can't be estimated.

    Raises:
        SpecError: if there is no seed or no batch to measure.
        ProbeError: if no gradient is finite, or if the median gradient is zero.
    """
    if not seeds:
        raise SpecError("seeds", "must name at least one training seed")
    if num_batches < 1:
        raise SpecError("num_batches", f"must be >= 1, got {num_batches}")
    workload.device = torch.device(device)
    per_seed = -(-num_batches // len(seeds))
    by_seed = [measure_seed(workload, seed, per_seed).cpu() for seed in seeds]
    measured = torch.cat(by_seed)
    norms = measured[:, 0]
    l2, largest = sketch(norms), sketch(measured[:, 1])
    if l2 is None or largest is None or l2.median == 0:
        raise ProbeError(*_diagnosis(workload, seeds[0], measured))
    with FrozenModel(workload, seeds[0], casts=False) as first:
        batch = workload.train_batch(0, data_generator(seeds[0]))
        return Reference(
            l2_norm=l2,
            max_abs=largest,
            num_batches=len(measured),
            spike_ratio=finite_or_none(l2.max / l2.median),
            tail_index=tail_indices(*rank(norms[None]))[0],
            smoothness=_smoothness(workload, seeds[0], first),
            features=features_of(workload, first.model, batch),
            by_seed=seed_norms((each[:, 0], each[:, 1]) for each in by_seed),
        )


def seed_norms(seeds: Iterable[tuple[Tensor, Tensor]]) -> tuple[SeedNorms, ...]:
    """Sketches of what was measured under each seed.

    Args:
        seeds: L2 norms and largest elements of each, shape (N,); NaN and infinities are left out.

    Returns:
        One per seed that has a finite gradient.
    """
    sketches = ((sketch(norms), sketch(largest)) for norms, largest in seeds)
    return tuple(SeedNorms(l2_norm=l2, max_abs=most) for l2, most in sketches if l2 and most)


def measure_seed(workload: AnyWorkload, seed: int, num_batches: int) -> Tensor:
    """Measure the first gradients of one seed, at its initial weights.

    Args:
        workload: what will be trained, on its device.
        seed: training seed.
        num_batches: optimizer steps' worth of batches, at least 1.

    Returns:
        L2 norm, largest element and loss of each, shape (num_batches, 3).
    """
    rows = []
    generator = data_generator(seed)
    with FrozenModel(workload, seed) as frozen, GlobalStream(seed, "training", workload.device).active():
        for step in range(num_batches):
            loss, gradient = frozen.gradient(_batches(workload, step, generator))
            row = gradient.unsqueeze(0)
            rows.append(torch.cat([l2_norm(row), max_abs(row), loss.to(row.dtype).reshape(1)]))
    return torch.stack(rows)


def _batches(workload: AnyWorkload, step: int, generator: torch.Generator) -> list[object]:
    """The batches of one optimizer step."""
    count = workload.accumulation_steps
    return [workload.train_batch(index, generator) for index in range(step * count, (step + 1) * count)]


def _smoothness(workload: AnyWorkload, seed: int, frozen: FrozenModel) -> Smoothness | None:
    """The fit of `estimate_smoothness` from a seed's initial weights, on its first batches; None if it can't be had.

    Differences of gradients need full precision, so the model must not cast. Every gradient of a place begins with the
    same buffers and the same draws.
    """
    if frozen.weights.dtype not in (torch.float32, torch.float64):
        return None
    generator = data_generator(seed)
    batches: dict[int, list[object]] = {}

    def gradient(place: int, weights: Tensor) -> Tensor:
        if place not in batches:
            batches.clear()
            batches[place] = _batches(workload, place, generator)
        frozen.restore_buffers()
        frozen.write(weights)
        with GlobalStream(seed, f"smoothness {place}", workload.device).active():
            return frozen.gradient(batches[place])[1]

    try:
        return estimate_smoothness(gradient, frozen.weights)
    except Exception:
        # A model that runs in half precision alone, or not away from its initial weights: only this figure is lost.
        return None


def _diagnosis(workload: AnyWorkload, seed: int, measured: Tensor) -> tuple[str, str]:
    """What was seen instead of usable gradients, and what to change."""
    norms, losses = measured[:, 0], measured[:, 2]
    count, seen = len(measured), f"the loss is {float(losses[0]):g} in the first batch"
    if num_bad := int((~losses.isfinite()).sum()):
        return (
            f"the gradient at the initial weights is not finite in any of {count} batches, "
            f"nor is the loss in {num_bad} of them: {seen}",
            "look for NaN and infinities in the first training batches, and for log(0) or 0 / 0 in the loss",
        )
    generator = data_generator(seed)
    with FrozenModel(workload, seed) as frozen, GlobalStream(seed, "training", workload.device).active():
        faults = frozen.faults(workload.train_batch(0, generator))
    if not bool(norms.isfinite().any()):
        overflow = " or train with precision 'bf16' or 'fp32'" if workload.precision == "fp16" else ""
        return (
            f"the gradient at the initial weights is not finite in any of {count} batches, although {seen}: not finite "
            f"in {_listed(faults.not_finite)}",
            f"look for sqrt(0), 0 / 0 or an overflow in the backward pass{overflow}",
        )
    parts = [
        f"{about} {_listed(names)}"
        for about, names in (("it does not reach", faults.unreached), ("it is 0 in", faults.zero))
        if names
    ]
    return (
        f"the median gradient norm at the initial weights is 0: the gradient is 0 in {int((norms == 0).sum())} of "
        f"{count} batches; {seen}, where {' and '.join(parts) or 'it is not 0'}",
        "look for detach(), argmax or torch.no_grad() between these parameters and the loss, for units that are all "
        "inactive, and for a loss that is the same whatever the model gives",
    )


def _listed(names: Sequence[str]) -> str:
    """At most four names, and how many more."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
