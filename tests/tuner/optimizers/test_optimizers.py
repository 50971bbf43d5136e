"""Optimizer settings: bounds, and the PyTorch optimizer they build."""

from __future__ import annotations

import pytest
import torch

from tuner.errors import SpecError
from tuner.optimizers import CustomOptimizer, OptimizerSetting, adam, adamw, sgd


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
        (lambda: adamw(0.1, eps=float("nan")), "eps must be finite"),
        (lambda: adamw(0.1, weight_decay=-0.1), "weight_decay must be finite"),
    ],
)
def test_bound_is_refused(make: object, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("setting", "family", "expected"),
    [
        (
            sgd(0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
            torch.optim.SGD,
            {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
        ),
        (
            adam(0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2),
            torch.optim.Adam,
            {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2},
        ),
        (adamw(0.1), torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.01}),
        (CustomOptimizer(lambda given: torch.optim.RMSprop(given, lr=0.3)), torch.optim.RMSprop, {"lr": 0.3}),
    ],
)
def test_setting_builds_the_pytorch_optimizer(
    setting: OptimizerSetting, family: type, expected: dict[str, object]
) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    built = setting.build([parameter])
    assert type(built) is family
    (group,) = built.param_groups
    assert {name: group[name] for name in expected} == expected
    assert group["params"] == [parameter]
