"""Lane-wise optimizers equal PyTorch's, or a slow reference where PyTorch has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from reference.optimizers import MuonReference, ShampooReference
from torch import Tensor, nn

from tuner.lanes import Layout
from tuner.optimizers import (
    OptimizerSetting,
    adagrad,
    adam,
    adamw,
    cosine,
    muon,
    rmsprop,
    sgd,
    shampoo,
    warmup,
)

SHAPES = {"matrix": (4, 3), "bias": (4,), "gain": (), "conv": (2, 3, 2, 2)}
LAYOUT = Layout(tuple(SHAPES), tuple(SHAPES.values()))
NUM_LANES = 3
TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-11}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}

every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def randn(seed: int, dtype: torch.dtype, layout: Layout = LAYOUT) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(NUM_LANES, layout.num_parameters, generator=generator, dtype=torch.float64)
    return drawn.to(dtype)


def gradients(weights: Tensor, num_step: int, layout: Layout = LAYOUT) -> Tensor:
    """Of a quadratic with noise, so that rounding does not grow from step to step."""
    return weights + 0.5 * randn(1000 + num_step, weights.dtype, layout)


def trained(
    setting: OptimizerSetting, dtype: torch.dtype, num_steps: int, layout: Layout = LAYOUT
) -> Iterator[Tensor]:
    weights = randn(0, dtype, layout)
    state = setting.initial_state(weights, layout)
    applied = torch.ones(NUM_LANES, dtype=torch.bool)
    for num_step in range(num_steps):
        lr = setting.lr * setting.schedule.factor(torch.full((NUM_LANES,), num_step))
        grads = gradients(weights, num_step, layout)
        setting.update(weights, grads, state, layout=layout, lr=lr, applied=applied)
        yield weights


def trained_by_torch(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    setting: OptimizerSetting,
    dtype: torch.dtype,
    num_steps: int,
    layout: Layout = LAYOUT,
) -> Iterator[Tensor]:
    """The lanes one after another would be the honest way; one optimizer each, stepped together, is the same."""
    start = layout.views(randn(0, dtype, layout))
    lanes = [
        {name: nn.Parameter(each[lane].clone()) for name, each in start.items()} for lane in range(NUM_LANES)
    ]
    optimizers = [make(list(lane.values())) for lane in lanes]
    for num_step in range(num_steps):
        factor = setting.schedule.factor(torch.tensor(num_step)).item()
        stacked = {name: torch.stack([lane[name].detach() for lane in lanes]) for name in layout.names}
        grads = layout.views(gradients(layout.matrix(stacked), num_step, layout))
        for number, (lane, optimizer) in enumerate(zip(lanes, optimizers, strict=True)):
            for name, parameter in lane.items():
                parameter.grad = grads[name][number].clone()
            for group in optimizer.param_groups:
                group["lr"] = factor * setting.lr
            optimizer.step()
        yield layout.matrix(
            {name: torch.stack([lane[name].detach() for lane in lanes]) for name in layout.names}
        )


PAIRS = {
    "sgd": (sgd(0.1), lambda given: torch.optim.SGD(given)),
    "sgd-decay": (sgd(0.1, weight_decay=0.1), lambda given: torch.optim.SGD(given, weight_decay=0.1)),
    "momentum": (
        sgd(0.01, momentum=0.9, weight_decay=0.01),
        lambda given: torch.optim.SGD(given, momentum=0.9, weight_decay=0.01),
    ),
    "nesterov": (
        sgd(0.01, momentum=0.9, nesterov=True, weight_decay=1e-4, schedule=cosine(200)),
        lambda given: torch.optim.SGD(given, momentum=0.9, nesterov=True, weight_decay=1e-4),
    ),
    "adam": (adam(0.01), lambda given: torch.optim.Adam(given)),
    "adam-decay": (
        adam(0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
        lambda given: torch.optim.Adam(given, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
    ),
    "adamw": (
        adamw(0.01, weight_decay=0.1, schedule=warmup(10, then=cosine(190, final=0.1))),
        lambda given: torch.optim.AdamW(given, weight_decay=0.1),
    ),
    "rmsprop": (rmsprop(0.01), lambda given: torch.optim.RMSprop(given)),
    "rmsprop-full": (
        rmsprop(0.001, alpha=0.9, eps=1e-6, momentum=0.9, centered=True, weight_decay=0.01),
        lambda given: torch.optim.RMSprop(
            given, alpha=0.9, eps=1e-6, momentum=0.9, centered=True, weight_decay=0.01
        ),
    ),
    "adagrad": (adagrad(0.1), lambda given: torch.optim.Adagrad(given)),
    "adagrad-full": (
        adagrad(0.1, lr_decay=0.01, eps=1e-6, initial_accumulator_value=0.1, weight_decay=0.01),
        lambda given: torch.optim.Adagrad(
            given, lr_decay=0.01, eps=1e-6, initial_accumulator_value=0.1, weight_decay=0.01
        ),
    ),
}


@every_type
@pytest.mark.parametrize("name", PAIRS)
def test_two_hundred_steps_equal_pytorch(name: str, dtype: torch.dtype) -> None:
    setting, make = PAIRS[name]
    ours, theirs = trained(setting, dtype, 200), trained_by_torch(make, setting, dtype, 200)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE[dtype])


def assert_lanes_equal(
    setting: OptimizerSetting, layout: Layout, make: Callable[[str], object], num_steps: int, rtol: float
) -> None:
    """Every tensor of every lane beside its own reference."""
    ours = trained(setting, torch.float64, num_steps, layout)
    slow = layout.views(randn(0, torch.float64, layout).clone())
    references = {(name, lane): make(name) for name in layout.names for lane in range(NUM_LANES)}
    for num_step, weights in enumerate(ours):
        grads = layout.views(gradients(layout.matrix(slow), num_step, layout))
        for (name, lane), reference in references.items():
            slow[name][lane] = reference.step(slow[name][lane].clone(), grads[name][lane])
        torch.testing.assert_close(weights, layout.matrix(slow), rtol=rtol, atol=rtol)


MATRICES = Layout(("wide", "tall", "tall_too", "square"), ((3, 5), (6, 2), (6, 2), (4, 4)))


@pytest.mark.parametrize(
    "options",
    [{}, {"nesterov": False, "weight_decay": 0.0}, {"adjust_lr": "match_rms_adamw", "momentum": 0.8}],
    ids=str,
)
def test_muon_equals_the_reference(options: dict[str, object]) -> None:
    assert_lanes_equal(muon(0.02, **options), MATRICES, lambda _: MuonReference(0.02, **options), 50, 1e-7)


def test_muon_is_near_pytorch() -> None:
    # PyTorch iterates in bfloat16, with a relative error of 2 ** -9 per product and five times three products
    # on top of each other; hence the tolerance of some percent of the way gone, and few steps.
    setting = muon(0.02)
    start = randn(0, torch.float32, MATRICES)
    (*_, ours) = trained(setting, torch.float32, 5, MATRICES)
    (*_, theirs) = trained_by_torch(
        lambda given: torch.optim.Muon(given), setting, torch.float32, 5, MATRICES
    )
    way = torch.linalg.vector_norm(theirs - start, dim=1)
    assert (torch.linalg.vector_norm(ours - theirs, dim=1) < 0.05 * way).all()


def test_muon_trains_the_rest_with_adamw() -> None:
    layout = Layout(("embed.weight", "hidden", "bias", "head.weight"), ((3, 2), (2, 2), (2,), (3, 2)))
    setting = muon(0.5, adamw_names=("embed", "head"), adamw_lr=0.01, adamw_weight_decay=0.2)
    alone = adamw(0.01, weight_decay=0.2)
    columns = [*range(6), *range(10, 18)]
    for one, other in zip(
        trained(setting, torch.float64, 20, layout), trained(alone, torch.float64, 20, layout), strict=True
    ):
        torch.testing.assert_close(one[:, columns], other[:, columns], rtol=1e-12, atol=1e-12)


def test_muon_of_names_alone_is_adamw() -> None:
    setting = muon(0.02, adamw_names=("matrix",), adamw_lr=0.01)
    for one, other in zip(
        trained(setting, torch.float32, 20), trained(adamw(0.01), torch.float32, 20), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9, "weight_decay": 0.1, "eps": 1e-2}, {"ridge": 1e-9}], ids=str
)
def test_shampoo_equals_the_reference(options: dict[str, float]) -> None:
    diagonal = {"bias", "gain"}
    assert_lanes_equal(
        shampoo(0.1, **options),
        LAYOUT,
        lambda name: ShampooReference(0.1, is_diagonal=name in diagonal, **options),
        50,
        1e-7,
    )


def test_shampoo_leaves_wide_matrices_to_adagrad() -> None:
    # The convolution is 2 by 12.
    diagonal = {"bias", "gain", "conv"}
    setting = shampoo(0.1, max_dimension=11)
    assert_lanes_equal(
        setting, LAYOUT, lambda name: ShampooReference(0.1, is_diagonal=name in diagonal), 20, 1e-7
    )
    (*_, ours) = trained(shampoo(0.1, eps=1e-4, max_dimension=1), torch.float64, 20)
    (*_, theirs) = trained(adagrad(0.1, initial_accumulator_value=1e-4, eps=0.0), torch.float64, 20)
    torch.testing.assert_close(ours, theirs)
