"""The probe: norms at frozen weights, the same whoever asks, and a clear answer when there are none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tuner.errors import ProbeError
from tuner.optimizers import sgd
from tuner.training.probe import measure_reference
from tuner.training.randomness import data_generator
from tuner.training.solo import initial_model
from tuner.workloads import AnyWorkload, Workload


def test_norms_are_those_of_the_initial_weights(toy: Callable[..., AnyWorkload]) -> None:
    workload = toy(dropout=0.0)
    reference = measure_reference(workload, (3,), num_batches=5)
    model = initial_model(workload, 3, torch.device("cpu"))
    generator = data_generator(3)
    norms, largest = [], []
    for step in range(5):
        model.zero_grad()
        workload.loss(model, workload.train_batch(step, generator)).backward()
        gradient = torch.cat([each.grad.flatten() for each in model.parameters()])
        norms.append(float(gradient.norm()))
        largest.append(float(gradient.abs().max()))
    assert reference.l2_norm.median == pytest.approx(sorted(norms)[2], rel=1e-6)
    assert reference.l2_norm.max == pytest.approx(max(norms), rel=1e-6)
    assert reference.max_abs.median == pytest.approx(sorted(largest)[2], rel=1e-6)
    assert reference.num_batches == 5


def test_every_seed_gives_the_same_number_of_batches(toy: Callable[..., AnyWorkload]) -> None:
    assert measure_reference(toy(), (0, 1, 2), num_batches=64).num_batches == 66


def test_non_finite_batches_are_left_out(toy: Callable[..., AnyWorkload]) -> None:
    reference = measure_reference(toy(nan_step=1), (0,), num_batches=4)
    assert reference.l2_norm.max < 1e6


def constant(value: float) -> AnyWorkload:
    return Workload.of(
        model=lambda: nn.Linear(1, 1),
        train=[torch.zeros(1, 1)],
        validation=[torch.zeros(1, 1)],
        loss=lambda model, batch: (model(batch) * value).sum(),
        optimizer=sgd(0.1),
    )


def test_gradient_that_is_never_finite_is_told() -> None:
    with pytest.raises(ProbeError, match="not finite in any of 4 batches; check the loss") as caught:
        measure_reference(constant(float("nan")), (0, 1), num_batches=4)
    assert caught.value.code == "probe_failed"


def test_gradient_that_is_zero_is_told() -> None:
    with pytest.raises(ProbeError, match="median gradient norm at the initial weights is 0"):
        measure_reference(constant(0.0), (0,), num_batches=4)
