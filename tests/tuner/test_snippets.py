"""Snippets: what can be run is run against the real function."""

from __future__ import annotations

import pytest
import torch

from tuner.methods import METHODS
from tuner.snippets import snippets
from tuner.spec import OFF_SETTING, ClipSetting


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].has_threshold])
def test_pytorch_line_clips_a_model(method: str) -> None:
    model = torch.nn.Linear(3, 1)
    for each in model.parameters():
        each.grad = torch.full_like(each, 100.0)
    exec(snippets(ClipSetting(method=method, threshold=0.5))["pytorch"], {"torch": torch, "model": model})
    assert all((each.grad.abs() <= 0.5).all() for each in model.parameters())


@pytest.mark.parametrize(
    ("setting", "frameworks"),
    [
        ("none", {"pytorch", "huggingface", "lightning"}),
        ("global_norm:0.42", {"pytorch", "huggingface", "lightning"}),
        ("global_norm_inf:0.42", {"pytorch"}),
        ("value:0.42", {"pytorch", "lightning"}),
    ],
)
def test_framework_without_the_method_is_left_out(setting: str, frameworks: set[str]) -> None:
    assert set(snippets(ClipSetting.parse(setting))) == frameworks


def test_every_method_has_a_pytorch_line() -> None:
    for name, method in METHODS.items():
        assert "pytorch" in snippets(
            ClipSetting(method=name, threshold=1.0 if method.has_threshold else None)
        )


def test_spelling_of_each_framework() -> None:
    found = snippets(ClipSetting.parse("global_norm:0.42"))
    assert found["huggingface"] == "max_grad_norm: 0.42"
    assert found["lightning"] == "gradient_clip_val: 0.42"
    assert snippets(ClipSetting.parse("value:0.42"))["lightning"].endswith("gradient_clip_algorithm: value")
    assert snippets(OFF_SETTING)["huggingface"] == "max_grad_norm: 0"  # the Trainer's default is 1.0
