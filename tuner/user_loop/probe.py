"""The probe of a training function: its first gradient norms, at weights that stay where they are.

A function owns its loop, so it is run as it stands, without clipping, under the study's seeds, and stopped from
``trial.clip`` once enough was measured. What it would have trained on the way is undone by taking the gradients away
after measuring them: a diverging start would raise its own quantiles, and a workload's class is measured at frozen
weights too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from tuner.errors import ProbeError, SpecError
from tuner.evidence import Features, Reference
from tuner.inline import Clipper, Parameters
from tuner.spec import OFF_SETTING, canonical_digest
from tuner.training.cohort import Progressed
from tuner.training.features import model_signature
from tuner.training.probe import NUM_BATCHES, seed_norms
from tuner.training.sketches import finite_or_none, rank, sketch, tail_indices
from tuner.user_loop import lane
from tuner.user_loop.trial import FunctionTrial
from tuner.workloads.function import FunctionWorkload

_PRECISIONS: Mapping[torch.dtype, str] = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class ProbeClipper(Clipper):
    """Measures gradients and takes them away, so that the optimizer's step finds none.

    Attributes:
        largest: the largest absolute element of each gradient, 0-dim tensors.
        subject: what was given first: a module, or its tensors; None before the first call.
    """

    def __init__(self) -> None:
        super().__init__(OFF_SETTING)
        self.largest: list[Tensor] = []
        self.subject: nn.Module | list[Tensor] | None = None

    @torch.no_grad()
    def clip(
        self, parameters: Parameters, *, loss: Tensor | float | None = None, error_if_nonfinite: bool = False
    ) -> Tensor:
        """See `tuner.inline.Clipper.clip`."""
        given = parameters if isinstance(parameters, nn.Module | Tensor) else list(parameters)
        norm = super().clip(given, loss=loss, error_if_nonfinite=error_if_nonfinite)
        if self.subject is None:
            self.subject = [given] if isinstance(given, Tensor) else given
        grads = [each.grad for each in _tensors(given) if each.grad is not None]
        if grads:
            filled = [each.abs().amax().float().to(norm.device) for each in grads if each.numel()]
            self.largest.append(torch.stack(filled).amax() if filled else norm.float())
            torch._foreach_zero_(grads)
        return norm

    __call__ = clip


def measure_function(
    workload: FunctionWorkload,
    seeds: Sequence[int],
    *,
    num_steps: int,
    num_batches: int = NUM_BATCHES,
    tell: Callable[[Progressed], None] | None = None,
) -> Reference:
    """Measure the first gradients that a training function clips, under every seed.

    Args:
        workload: the function with its parameters.
        seeds: training seeds, at least one.
        num_steps: optimizer steps of a full run, as the function is told.
        num_batches: gradients to measure in total, rounded up to the same number per seed, at least 1.
        tell: called after every gradient, as a sign of life.

    Returns:
        Sketches of the L2 norm and of the largest absolute element; the tail index is None with fewer than 100 finite
        norms. There is no smoothness, and there are features only if a PyTorch optimizer took a step.

    Raises:
        SpecError: if there is no seed.
        ProbeError: if ``trial.clip`` was not called, no gradient is finite, or the median gradient is zero.
        LaneError: if the function raised; its trial is ``probe``.
    """
    if not seeds:
        raise SpecError("seeds", "must name at least one training seed")
    per_seed = -(-num_batches // len(seeds))
    with _watched_optimizers() as optimizers:
        clippers = []
        for number, seed in enumerate(seeds):
            alive = None if tell is None else _SignOfLife(tell, number * per_seed, len(seeds) * per_seed)
            clippers.append(_measure(workload, seed, num_steps, per_seed, alive))
    by_seed = [torch.tensor(each.drain_norms(), dtype=torch.float64) for each in clippers]
    norms = torch.cat(by_seed)
    l2 = sketch(norms)
    most = [torch.stack(each.largest).cpu() if each.largest else torch.zeros(0) for each in clippers]
    largest = torch.cat(most)
    max_abs = sketch(largest)
    num_steps_seen = sum(each.num_steps for each in clippers)
    if l2 is None or max_abs is None or l2.median == 0:
        raise ProbeError(*_diagnosis(num_steps_seen, len(norms), bool(len(largest))))
    return Reference(
        l2_norm=l2,
        max_abs=max_abs,
        num_batches=num_steps_seen,
        spike_ratio=finite_or_none(l2.max / l2.median),
        tail_index=tail_indices(*rank(norms[None]))[0],
        features=_features(clippers[0].subject, optimizers),
        by_seed=seed_norms(zip(by_seed, most, strict=True)),
    )


@dataclass(frozen=True)
class _SignOfLife:
    """Tells how many gradients were measured, of how many, those of earlier seeds included."""

    tell: Callable[[Progressed], None]
    before: int
    total: int

    def __call__(self, num_calls: int) -> None:
        done = min(self.before + num_calls, self.total)
        self.tell(Progressed(lane_steps=done, total_lane_steps=self.total, step=num_calls))


def _measure(
    workload: FunctionWorkload, seed: int, num_steps: int, num_batches: int, alive: _SignOfLife | None
) -> ProbeClipper:
    """Run the function under one seed until it clipped so often."""
    clipper = ProbeClipper()

    def enough(*_: Any) -> str | None:
        if alive is not None:
            alive(clipper.num_steps)
        return "the probe has measured enough" if clipper.num_steps >= num_batches else None

    trial = FunctionTrial(
        setting=OFF_SETTING,
        seed=seed,
        parameters=workload.parameter_values,
        num_steps=num_steps,
        clipper=clipper,
        on_clip=enough,
        on_report=enough,
    )
    lane.call(workload, trial, "probe")
    return clipper


@contextmanager
def _watched_optimizers() -> Iterator[list[tuple[str, float | None]]]:
    """Class and learning rate of the first optimizer that takes a step inside the block."""
    seen: list[tuple[str, float | None]] = []

    def note(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        if not seen:
            rate = optimizer.param_groups[0].get("lr")
            seen.append((type(optimizer).__name__.lower(), None if rate is None else float(rate)))

    hook = register_optimizer_step_pre_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


def _features(
    subject: nn.Module | list[Tensor] | None, optimizers: Sequence[tuple[str, float | None]]
) -> Features | None:
    """What can be said of a training whose loop is the user's; None without its optimizer."""
    if subject is None or not optimizers:
        return None
    tensors = [each for each in _tensors(subject) if each.requires_grad]
    optimizer, rate = optimizers[0]
    if isinstance(subject, nn.Module):
        signature = model_signature(subject)
    else:
        signature = canonical_digest({"shapes": sorted(list(each.shape) for each in tensors)})[:16]
    return Features(
        model_signature=signature,
        num_parameters=sum(each.numel() for each in tensors),
        num_tensors=len(tensors),
        optimizer=optimizer,
        learning_rate=rate,
        batch_size=None,
        precision=_PRECISIONS.get(tensors[0].dtype, "fp32") if tensors else "fp32",
    )


def _tensors(subject: nn.Module | Tensor | Sequence[Tensor]) -> list[Tensor]:
    if isinstance(subject, nn.Module):
        return list(subject.parameters())
    return [subject] if isinstance(subject, Tensor) else list(subject)


def _diagnosis(num_calls: int, num_finite: int, has_gradient: bool) -> tuple[str, str]:
    """What was seen instead of usable gradients, and what to change."""
    if num_calls == 0:
        return (
            "the function ended without a call of trial.clip",
            "call trial.clip(model) between loss.backward() and optimizer.step(), in every step",
        )
    if num_finite == 0:
        return (
            f"the gradient is not finite in any of {num_calls} calls of trial.clip",
            "look for NaN and infinities in the first batches and in the loss; with a GradScaler, unscale_ before it",
        )
    what = "is 0" if has_gradient else "is missing"
    return (
        f"the gradient {what} in most of {num_calls} calls of trial.clip",
        "call it after loss.backward(), before optimizer.step() and zero_grad(), with the parameters that are trained",
    )
