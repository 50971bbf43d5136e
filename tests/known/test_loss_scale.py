"""E: what multiplying the loss, the learning rate or the threshold by a number must not change.

A perceptron 8-16-1 on 64 rows. On some steps the gradient is 20 times as large, so that rules about outliers fire: two
early ones, and two behind the longest warm-up of a method. Lanes that are permuted, and lanes beside one that is not
finite, are in ``tests/contracts`` and `tests/tuner/training/test_lane_batch.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from known.problems import clip_at, cohort_of
from torch import Tensor, nn
from toys import Outcome, bits, trained, workload_of

from tuner.clippers import clipper_class
from tuner.methods import METHODS, OFF
from tuner.optimizers import OptimizerSetting, adam, adamw, sgd
from tuner.spec import ClipSetting
from tuner.training.batched import BatchedEngine
from tuner.training.engine import LaneId
from tuner.workloads import AnyWorkload

NUM_STEPS, SPIKES, FACTOR = 140, (40, 41, 125, 126), 1024.0
REFERENCE_NORM = 1.0
#: A threshold that acts on some steps, and what has the loss's scale: the threshold, the reference norm or nothing.
CASES: dict[str, tuple[float, str | None]] = {
    "global_norm": (1.0, "threshold"),
    "global_norm_inf": (0.3, "threshold"),
    "value": (0.2, "threshold"),
    "per_tensor_norm": (1.0, "threshold"),
    "agc": (0.05, "threshold"),
    "autoclip": (30.0, None),
    "norm_growth": (1.05, None),
    "skip_step": (3.0, None),
    "zclip": (2.0, "reference"),
    "adagc": (1.05, "reference"),
    "quantile": (0.4, "reference"),
}
SCALED = [method for method, (_, what) in CASES.items() if what]
#: By loss scale; Adam's epsilon is added to a gradient, SGD's rate is multiplied with one.
OPTIMIZERS: dict[str, Callable[[float], OptimizerSetting]] = {
    "sgd": lambda scale: sgd(0.02 / scale, momentum=0.9),
    "sgd with decay": lambda scale: sgd(0.02 / scale, weight_decay=1e-2 * scale),
    "adam": lambda scale: adam(3e-3, eps=1e-8 * scale),
    "adam with decay": lambda scale: adam(3e-3, eps=1e-8 * scale, weight_decay=1e-2 * scale),
    "adamw": lambda scale: adamw(3e-3, eps=1e-8 * scale, weight_decay=1e-2),
}
Batch = tuple[Tensor, Tensor, Tensor]


def perceptron(optimizer: OptimizerSetting, loss_scale: float = 1.0) -> AnyWorkload:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(64, 8, generator=generator)
    targets = inputs[:, :1].sin() + inputs[:, 1:2] * inputs[:, 2:3]

    def train(step: int, generator: torch.Generator) -> Batch:
        rows = torch.randint(0, 64, (16,), generator=generator)
        return inputs[rows], targets[rows], torch.full((16, 1), 20.0 if step in SPIKES else 1.0)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        rows, wanted, factor = batch
        return ((model(rows) - wanted).square() * factor).mean() * loss_scale

    return workload_of(
        lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)),
        train=train,
        validation=[(inputs, targets, torch.ones(64, 1))],
        loss=loss,
        optimizer=optimizer,
    )


def run(
    workload: AnyWorkload, *settings: ClipSetting, reference_norm: float | None = None
) -> dict[ClipSetting, Outcome]:
    """All settings side by side under one seed."""
    cohort = cohort_of(workload, settings, num_steps=NUM_STEPS, reference_norm=reference_norm)
    found = trained(BatchedEngine(cohort, workload), cohort)
    return {setting: found[LaneId(str(setting), 0)] for setting in settings}


@cache
def final(optimizer: str, loss_scale: float, *, is_adapted: bool = True) -> dict[str, Tensor]:
    """Last weights by method; ``is_adapted=False`` leaves what has a scale as it is at loss scale 1."""
    factor = loss_scale if is_adapted else 1.0
    settings = {
        method: clip_at(threshold * (factor if what == "threshold" else 1.0), method=method)
        for method, (threshold, what) in CASES.items()
    } | {OFF: clip_at(math.inf)}
    workload = perceptron(OPTIMIZERS[optimizer](loss_scale), loss_scale)
    found = run(workload, *settings.values(), reference_norm=REFERENCE_NORM * factor)
    return {method: found[setting].weights for method, setting in settings.items()}


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_every_method_is_in_the_table() -> None:
    assert set(CASES) == set(METHODS) - {OFF}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", CASES)
def test_scaled_loss_trains_the_same_weights(method: str, optimizer: str) -> None:
    assert distance(final(optimizer, FACTOR)[method], final(optimizer, 1.0)[method]) < 1e-5


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", SCALED)
def test_what_has_a_scale_must_be_scaled(method: str, optimizer: str) -> None:
    found = final(optimizer, FACTOR, is_adapted=False)
    assert distance(found[method], final(optimizer, 1.0)[method]) > 1e-3


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", CASES)
def test_method_changes_this_training_at_all(method: str, optimizer: str) -> None:
    found = final(optimizer, 1.0)
    assert distance(found[method], found[OFF]) > 1e-3


@pytest.mark.parametrize("method", ["global_norm", "global_norm_inf", "per_tensor_norm"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_step_length_is_what_counts_where_every_step_is_clipped(method: str, momentum: float) -> None:
    one, other = clip_at(0.004, method=method), clip_at(0.001, scale=4.0, method=method)
    found = run(perceptron(sgd(0.05, momentum=momentum)), one, other)
    assert found[one].record.clip_fraction == found[other].record.clip_fraction == 1
    assert bits(found[one].weights) == bits(found[other].weights)


def test_adam_does_not_see_the_threshold_where_every_step_is_clipped() -> None:
    # A ratio that is a power of two and an epsilon in proportion leave rounding at most.
    pairs = ((2.0**-7, 1e-8), (2.0**-13, 1e-8 / 64))
    weights = []
    for threshold, eps in pairs:
        setting = clip_at(threshold)
        found = run(perceptron(adam(3e-3, eps=eps)), setting)[setting]
        assert found.record.clip_fraction == 1
        weights.append(found.weights)
    assert distance(*weights) <= 2e-7


def test_adam_sees_the_threshold_through_its_epsilon() -> None:
    one, other = clip_at(1e-2), clip_at(1e-4)
    found = run(perceptron(adam(3e-3, eps=1e-8)), one, other)
    # 0.9 % in the page, for another network.
    assert 1e-4 < distance(found[one].weights, found[other].weights) < 0.1


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", [each for each in CASES if clipper_class(each).is_off_until_exceeded])
def test_threshold_above_every_norm_is_off_bit_for_bit(method: str, optimizer: str) -> None:
    off = clip_at(math.inf)
    workload = perceptron(OPTIMIZERS[optimizer](1.0))
    norms = run(workload, off)[off].record.norms
    assert norms is not None
    # No element is larger than the norm, so that this is above whatever a method compares with.
    above = clip_at(norms.max + 1e-5, method=method)
    found = run(workload, off, above)
    assert bits(found[above].weights) == bits(found[off].weights)
    assert found[above].record.clip_fraction == 0


def test_threshold_just_below_the_largest_norm_is_not_off() -> None:
    off = clip_at(math.inf)
    workload = perceptron(sgd(0.02))
    norms = run(workload, off)[off].record.norms
    assert norms is not None
    below = clip_at(norms.max * 0.999)
    found = run(workload, off, below)
    assert found[below].record.clip_fraction == pytest.approx(1 / NUM_STEPS)
    assert bits(found[below].weights) != bits(found[off].weights)
