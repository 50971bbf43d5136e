"""The probe of a training function measures its first gradients and trains nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import regression
import torch
from regression import Regression, spoiled, train
from torch import nn

from tuner.errors import LaneError, ProbeError, SpecError
from tuner.evidence import Reference
from tuner.training.cohort import Progressed
from tuner.training.features import model_signature
from tuner.user_loop.probe import measure_function
from tuner.workloads.function import FunctionWorkload

Function = Callable[[Any], float | None]


def probe(function: Function, *, seeds: tuple[int, ...] = (0, 1), **sizes: int) -> Reference:
    return measure_function(FunctionWorkload.of(function), seeds, **{"num_steps": 400} | sizes)


def frozen_norms(seed: int, count: int) -> list[tuple[float, float]]:
    """L2 norm and largest element of a seed's first gradients at its initial weights."""
    torch.manual_seed(seed)
    model = nn.Linear(regression.NUM_FEATURES, 1)
    found = []
    for _ in range(count):
        inputs = torch.randn(8, regression.NUM_FEATURES)
        model.zero_grad()
        (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean().backward()
        grads = torch.cat([each.grad.reshape(-1) for each in model.parameters()])
        found.append((float(grads.norm()), float(grads.abs().max())))
    return found


def test_norms_are_those_of_the_initial_weights() -> None:
    reference = probe(train)
    expected = [pair for seed in (0, 1) for pair in frozen_norms(seed, 50)]
    assert reference.num_batches == 100
    norms, largest = (torch.tensor(each, dtype=torch.float64) for each in zip(*expected, strict=True))
    assert reference.norms.median == pytest.approx(float(norms.quantile(0.5)), rel=1e-6)
    assert reference.norms.max == pytest.approx(float(norms.max()), rel=1e-6)
    assert reference.max_abs is not None
    assert reference.max_abs.median == pytest.approx(float(largest.quantile(0.5)), rel=1e-6)
    assert reference.spike_ratio == pytest.approx(float(norms.max() / norms.quantile(0.5)), rel=1e-6)
    assert reference.tail_index is not None and reference.smoothness is None
    assert len(reference.by_seed) == 2
    first = [norm for norm, _ in expected[:50]]
    assert reference.by_seed[0].l2_norm.max == pytest.approx(max(first), rel=1e-6)


def test_function_is_stopped_once_enough_was_measured() -> None:
    steps: list[int] = []

    def counted(self: Regression, trial: Any, step: int) -> None:
        steps.append(step)
        Regression.step(self, trial, step)

    assert probe(spoiled(step=counted), seeds=(0, 1, 2)).num_batches == 102
    assert steps == [*range(1, 35)] * 3


def test_each_gradient_is_a_sign_of_life() -> None:
    told: list[Progressed] = []
    measure_function(FunctionWorkload.of(train), (0, 1), num_steps=400, num_batches=6, tell=told.append)
    assert [each.lane_steps for each in told] == [0, 1, 2, 3, 3, 4, 5, 6]
    assert [each.step for each in told] == [0, 1, 2, 3] * 2
    assert {each.total_lane_steps for each in told} == {6}


def test_short_function_is_measured_as_far_as_it_goes() -> None:
    reference = probe(train, num_steps=7)
    assert (reference.num_batches, reference.tail_index) == (14, None)


def test_features_say_what_took_the_steps() -> None:
    features = probe(train).features
    assert features is not None
    assert (features.num_parameters, features.num_tensors) == (5, 2)
    assert (features.optimizer, features.learning_rate) == ("sgd", 0.05)
    assert (features.batch_size, features.precision) == (None, "fp32")

    whole = spoiled(clip=lambda self, trial, loss: trial.clip(self.model))
    found = probe(whole).features
    assert found is not None and found.model_signature == model_signature(nn.Linear(4, 1))
    assert found.model_signature != features.model_signature


def test_features_are_unknown_without_a_pytorch_optimizer() -> None:
    def by_hand(self: Regression, trial: Any, step: int) -> None:
        del step
        inputs = self.batch(trial)
        self.model.zero_grad()
        (self.model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean().backward()
        trial.clip(self.model)
        with torch.no_grad():
            for each in self.model.parameters():
                each -= 0.1 * each.grad

    assert probe(spoiled(step=by_hand)).features is None


def test_one_tensor_is_enough() -> None:
    def one(trial: Any) -> None:
        weight = torch.nn.Parameter(torch.ones(3))
        for step in range(trial.num_steps):
            weight.grad = torch.full((3,), 1.0 + step)
            trial.clip(weight)
            trial.report(step, 1.0)

    reference = probe(one)
    assert reference.norms.min == pytest.approx(math.sqrt(3))
    assert reference.max_abs is not None and reference.max_abs.max == 50.0


def nan_gradient(self: Regression, trial: Any, loss: torch.Tensor) -> None:
    del loss
    self.model.weight.grad.fill_(math.nan)
    trial.clip(self.model)


def clip_after_zero_grad(self: Regression, trial: Any, loss: torch.Tensor) -> None:
    del loss
    self.optimizer.zero_grad(set_to_none=False)
    trial.clip(self.model)


def clip_nothing(self: Regression, trial: Any, loss: torch.Tensor) -> None:
    del loss
    self.optimizer.zero_grad(set_to_none=True)
    trial.clip(self.model)


@pytest.mark.parametrize(
    ("clip", "reason", "remedy"),
    [
        (lambda self, trial, loss: None, "the function ended without a call of trial.clip", "in every step"),
        (nan_gradient, "the gradient is not finite in any of 100 calls of trial.clip", "unscale_ before it"),
        (
            clip_after_zero_grad,
            "the gradient is 0 in most of 100 calls of trial.clip",
            "before optimizer.step",
        ),
        (clip_nothing, "the gradient is missing in most of 100 calls of trial.clip", "after loss.backward"),
    ],
)
def test_no_usable_gradient_says_what_to_change(clip: Any, reason: str, remedy: str) -> None:
    with pytest.raises(ProbeError) as caught:
        probe(spoiled(clip=clip))
    assert caught.value.reason == reason
    assert remedy in caught.value.remedy


def test_exception_of_the_function_is_a_lane_error() -> None:
    def broken(trial: Any) -> None:
        raise ValueError(f"no data for seed {trial.seed}")

    with pytest.raises(LaneError, match="no data for seed 0"):
        probe(broken)


def test_seeds_are_needed() -> None:
    with pytest.raises(SpecError, match="seeds must name at least one"):
        probe(train, seeds=())
