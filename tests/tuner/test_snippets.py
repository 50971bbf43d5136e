"""Snippets: what can be run is run against the real function."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tuner.methods import METHODS
from tuner.snippets import snippets
from tuner.spec import OFF_SETTING, ClipSetting

WITH_THRESHOLD = [name for name in METHODS if METHODS[name].has_threshold]


def setting_of(method: str) -> ClipSetting:
    known = METHODS[method]
    return ClipSetting(method=method, threshold=known.at_coordinate(0.25) if known.has_threshold else None)


def run(code: str, **names: Any) -> dict[str, Any]:
    """Run a snippet on a model whose gradients are far too large."""
    model = torch.nn.Linear(3, 1)
    for each in model.parameters():
        each.grad = torch.full_like(each, 100.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    space = {"torch": torch, "model": model, "loss": torch.tensor(1.0), "optimizer": optimizer, **names}
    exec(code, space)
    return space


@pytest.mark.parametrize("method", ["global_norm", "global_norm_inf", "value", "per_tensor_norm"])
def test_pytorch_line_clips_a_model(method: str) -> None:
    space = run(snippets(setting_of(method))["pytorch"])
    assert all((each.grad.abs() <= 0.5).all() for each in space["model"].parameters())


@pytest.mark.parametrize("method", [name for name in METHODS if "tuner" in snippets(setting_of(name))])
def test_own_clipper_runs(method: str) -> None:
    space = run(snippets(setting_of(method), reference_norm=2.5)["tuner"])
    assert space["clipper"].setting == setting_of(method)
    assert space["clipper"]._clipper.reference_norm == 2.5
    assert space["result"].norm == 200.0


def test_own_clipper_keeps_every_digit_of_the_threshold() -> None:
    setting = ClipSetting(method="norm_growth", threshold=1.00012345)
    assert run(snippets(setting)["tuner"])["clipper"].setting == setting


def test_timm_line_calls_its_function_with_the_ratio() -> None:
    calls = []
    agc = SimpleNamespace(adaptive_clip_grad=lambda parameters, **given: calls.append(given))
    timm = SimpleNamespace(utils=SimpleNamespace(agc=agc))
    run(snippets(ClipSetting.parse("agc:0.02"))["timm"], timm=timm)
    assert calls == [{"clip_factor": 0.02}]


@pytest.mark.parametrize(
    ("setting", "frameworks"),
    [
        ("none", {"pytorch", "huggingface", "lightning"}),
        ("global_norm:0.42", {"pytorch", "huggingface", "lightning"}),
        ("global_norm_inf:0.42", {"pytorch"}),
        ("value:0.42", {"pytorch", "lightning"}),
        ("per_tensor_norm:0.42", {"pytorch", "tuner"}),
        ("agc:0.01", {"timm", "tuner"}),
        ("autoclip:10", {"tuner"}),
    ],
)
def test_framework_without_the_method_is_left_out(setting: str, frameworks: set[str]) -> None:
    assert set(snippets(ClipSetting.parse(setting))) == frameworks


def test_every_method_can_be_used() -> None:
    for name in METHODS:
        assert {"pytorch", "tuner"} & set(snippets(setting_of(name)))


def test_step_that_may_be_skipped_is_guarded() -> None:
    assert "if not result.skipped:\n    optimizer.step()" in snippets(setting_of("skip_step"))["tuner"]


def test_spelling_of_each_framework() -> None:
    found = snippets(ClipSetting.parse("global_norm:0.42"))
    assert found["huggingface"] == "max_grad_norm: 0.42"
    assert found["lightning"] == "gradient_clip_val: 0.42"
    assert snippets(ClipSetting.parse("value:0.42"))["lightning"].endswith("gradient_clip_algorithm: value")
    assert snippets(OFF_SETTING)["huggingface"] == "max_grad_norm: 0"  # the Trainer's default is 1.0
