"""Optimizer settings: their bounds, what a custom one refuses, and known answers of first steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tuner.errors import SpecError
from tuner.lanes import Layout
from tuner.optimizers import (
    CustomOptimizer,
    OptimizerSetting,
    OptimizerState,
    adagrad,
    adam,
    adamw,
    muon,
    rmsprop,
    sgd,
    shampoo,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sgd(0.0), "lr must be finite and > 0, got 0.0"),
        (lambda: sgd(float("inf")), "lr must be finite"),
        (lambda: sgd(0.1, momentum=-0.1), "momentum must be finite and >= 0"),
        (lambda: sgd(0.1, momentum=1.0), "momentum must be < 1"),
        (lambda: sgd(0.1, nesterov=True), "nesterov needs momentum > 0"),
        (lambda: sgd(0.1, weight_decay=-1.0), "weight_decay must be finite and >= 0"),
        (lambda: adam(-1.0), "lr must be finite and > 0"),
        (lambda: adam(0.1, betas=(0.9, 1.0)), "betas must be < 1"),
        (lambda: adam(0.1, betas=(-0.1, 0.9)), "betas must be finite and >= 0"),
        (lambda: adamw(0.1, eps=NAN), "eps must be finite"),
        (lambda: adamw(0.1, weight_decay=-0.1), "weight_decay must be finite"),
        (lambda: rmsprop(NAN), "lr must be finite and > 0, got nan"),
        (lambda: rmsprop(0.1, alpha=1.0), "alpha must be < 1, got 1.0"),
        (lambda: rmsprop(0.1, eps=-1e-8), "eps must be finite and >= 0"),
        (lambda: rmsprop(0.1, momentum=1.0), "momentum must be < 1"),
        (lambda: rmsprop(0.1, weight_decay=NAN), "weight_decay must be finite"),
        (lambda: adagrad(0.0), "lr must be finite and > 0"),
        (lambda: adagrad(0.1, lr_decay=-1.0), "lr_decay must be finite and >= 0"),
        (lambda: adagrad(0.1, eps=-1.0), "eps must be finite and >= 0"),
        (lambda: adagrad(0.1, initial_accumulator_value=-1.0), "initial_accumulator_value must be finite"),
        (lambda: adagrad(0.1, weight_decay=-1.0), "weight_decay must be finite"),
        (lambda: muon(0.0), "lr must be finite and > 0"),
        (lambda: muon(0.1, momentum=1.0), "momentum must be < 1"),
        (lambda: muon(0.1, weight_decay=-1.0), "weight_decay must be finite"),
        (lambda: muon(0.1, adjust_lr="rms"), "adjust_lr must be one of original, match_rms_adamw, got 'rms'"),
        (lambda: muon(0.1, num_iterations=0), "num_iterations must be a whole number >= 1, got 0"),
        (lambda: muon(0.1, adamw_lr=0.0), "adamw_lr must be finite and > 0"),
        (lambda: muon(0.1, adamw_betas=(0.9, 1.0)), "adamw_betas must be < 1"),
        (lambda: muon(0.1, adamw_eps=-1.0), "adamw_eps must be finite and >= 0"),
        (lambda: muon(0.1, adamw_weight_decay=-1.0), "adamw_weight_decay must be finite"),
        (lambda: muon(0.1, adamw_names="head"), "adamw_names must be a tuple of non-empty names, got 'head'"),
        (lambda: muon(0.1, adamw_names=("",)), "adamw_names must be a tuple of non-empty names"),
        (lambda: shampoo(0.0), "lr must be finite and > 0"),
        (lambda: shampoo(0.1, momentum=1.0), "momentum must be < 1"),
        (lambda: shampoo(0.1, eps=0.0), "eps must be finite and > 0"),
        (lambda: shampoo(0.1, ridge=0.0), r"ridge must be in \[1e-12, 1\), got 0.0"),
        (lambda: shampoo(0.1, ridge=1.0), r"ridge must be in \[1e-12, 1\), got 1.0"),
        (lambda: shampoo(0.1, max_dimension=0), "max_dimension must be a whole number >= 1, got 0"),
        (lambda: shampoo(0.1, weight_decay=-1.0), "weight_decay must be finite"),
    ],
)
def test_bound_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        make()


def first_step(
    setting: OptimizerSetting, weights: Tensor, grads: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor, OptimizerState]:
    layout = Layout(("weight",), (shape,))
    state = setting.initial_state(weights, layout)
    lr = torch.full((len(weights),), setting.lr, dtype=torch.float64)
    applied = torch.ones(len(weights), dtype=torch.bool)
    setting.update(weights, grads.clone(), state, layout=layout, lr=lr, applied=applied)
    return weights, state


ZEROS = torch.zeros(1, 4, dtype=torch.float64)
GRADS = torch.tensor([[2.0, -0.5, 1e-3, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (sgd(0.1), -0.1 * GRADS),
        # The first velocity is the gradient; the look-ahead adds 0.9 of it.
        (sgd(0.1, momentum=0.9), -0.1 * GRADS),
        (sgd(0.1, momentum=0.9, nesterov=True), -0.19 * GRADS),
        # Both corrected moments are those of one gradient: m / sqrt(v) is its sign.
        (adam(0.1, eps=0.0), torch.tensor([[-0.1, 0.1, -0.1, NAN]], dtype=torch.float64)),
        (adagrad(0.1), -0.1 * GRADS.sign()),
        # sqrt(v) is a tenth of the gradient's size: alpha is 0.99.
        (rmsprop(0.1, eps=1e-12), -1.0 * GRADS.sign()),
    ],
)
def test_first_step_is_known(setting: OptimizerSetting, expected: Tensor) -> None:
    moved, _ = first_step(setting, ZEROS.clone(), GRADS, (4,))
    torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-9, equal_nan=True)


def test_decoupled_decay_shrinks_weights_without_a_gradient() -> None:
    ones = torch.ones(1, 4, dtype=torch.float64)
    for setting in (adamw(0.1, weight_decay=0.5), sgd(0.1, weight_decay=0.5), shampoo(0.1, weight_decay=0.5)):
        moved, _ = first_step(setting, ones.clone(), ZEROS, (4,))
        torch.testing.assert_close(moved, 0.95 * ones)


def test_muon_steps_with_singular_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(1, 64 * 16, generator=generator, dtype=torch.float64)
    moved, _ = first_step(muon(1.0, weight_decay=0.0), torch.zeros_like(grads), grads, (64, 16))
    # max(1, 64 / 16) ** 0.5 is 2.
    values = torch.linalg.svdvals(moved.view(64, 16) / 2)
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_shampoo_of_a_diagonal_gradient_is_adagrad_on_the_diagonal() -> None:
    # L and R are both diag(g^2 + eps); the fourth roots on both sides make g / sqrt(g^2 + eps).
    grads = torch.tensor([[3.0, 0.0, 0.0, 0.5]], dtype=torch.float64)
    moved, _ = first_step(shampoo(1.0, eps=0.01, ridge=1e-12), torch.zeros_like(grads), grads, (2, 2))
    torch.testing.assert_close(moved, -grads / (grads.square() + 0.01).sqrt())


def test_centered_average_that_rounds_below_zero_moves_by_a_finite_step() -> None:
    setting = rmsprop(1e-3, alpha=0.5, centered=True)
    layout = Layout(("weight",), ((64,),))
    weights = torch.zeros(1, 64)
    state = setting.initial_state(weights, layout)
    grads = torch.linspace(0.1, 0.7, 64)[None]
    for _ in range(200):
        lr, applied = torch.full((1,), setting.lr), torch.ones(1, dtype=torch.bool)
        setting.update(weights, grads.clone(), state, layout=layout, lr=lr, applied=applied)
    assert weights.isfinite().all()


def test_tiny_rate_does_not_overflow() -> None:
    for setting in (adam(1e-3), adagrad(1e-3), rmsprop(1e-3)):
        weights, layout = torch.ones(1, 2), Layout(("weight",), ((2,),))
        state = setting.initial_state(weights, layout)
        lr = torch.full((1,), 1e-45, dtype=torch.float64)
        grads = torch.tensor([[1.0, 0.0]])
        setting.update(weights, grads, state, layout=layout, lr=lr, applied=torch.ones(1, dtype=torch.bool))
        assert weights.tolist() == [[1.0, 1.0]]


def test_custom_optimizer_builds_one_lane_and_refuses_many() -> None:
    setting = CustomOptimizer(lambda given: torch.optim.RMSprop(given, lr=0.3))
    parameter = torch.nn.Parameter(torch.zeros(2))
    (group,) = setting.build([parameter]).param_groups
    assert group["lr"] == 0.3
    assert group["params"] == [parameter]
    assert not setting.is_lane_wise
    assert math.isfinite(setting.lr)
    weights, layout = torch.zeros(1, 2), Layout(("weight",), ((2,),))
    with pytest.raises(TypeError, match="one lane at a time"):
        setting.initial_state(weights, layout)
    with pytest.raises(TypeError, match="many lanes at once"):
        setting.update(
            weights, weights, {}, layout=layout, lr=torch.ones(1), applied=torch.ones(1, dtype=torch.bool)
        )
