"""The clippers on an ordinary module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tuner.clippers.plain import PlainClipper
from tuner.errors import SpecError


def model_with_gradients(value: float = 100.0) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    for each in model.parameters():
        each.grad = torch.full_like(each, value)
    return model


def test_gradients_are_clipped_in_place() -> None:
    model = model_with_gradients()
    before = [each.grad for each in model.parameters()]
    result = PlainClipper("global_norm:0.5", model).clip()
    assert bool(result.clipped)
    assert all(each.grad is old for each, old in zip(model.parameters(), before, strict=True))
    assert torch.cat([each.grad.reshape(-1) for each in model.parameters()]).norm() == pytest.approx(0.5)


def test_parameter_without_a_gradient_stays_without() -> None:
    model = model_with_gradients(1.0)
    model[0].weight.grad = None
    rest = [each for each in model.parameters() if each.grad is not None]
    result = PlainClipper("global_norm:0.5", model).clip()
    assert model[0].weight.grad is None
    assert float(result.norm) == pytest.approx(sum(each.numel() for each in rest) ** 0.5)


def test_frozen_parameters_are_not_part_of_the_norm() -> None:
    model = model_with_gradients(1.0)
    model[0].requires_grad_(False)
    assert float(PlainClipper("none", model).clip().norm) == pytest.approx(3**0.5)


def test_module_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="there is nothing to clip"):
        PlainClipper("none", nn.ReLU())


def test_skipped_step_keeps_the_gradients() -> None:
    weight = nn.Parameter(torch.zeros(1))
    clipper = PlainClipper("skip_step:3", [("weight", weight)], window=4)
    for norm in (1.0, 1.1, 0.9, 50.0):
        weight.grad = torch.tensor([norm])
        result = clipper.clip()
    assert result.skipped
    assert weight.grad.tolist() == [50.0]


def test_constants_of_the_method_are_passed_on() -> None:
    with pytest.raises(ValueError, match="window must be finite and >= 1"):
        PlainClipper("autoclip:10", model_with_gradients(), window=0)
    with pytest.raises(SpecError, match=r"got 100\.0"):
        PlainClipper("autoclip:100", model_with_gradients())


def test_state_goes_on_from_a_checkpoint() -> None:
    one, other = (PlainClipper("norm_growth:1.5", model_with_gradients()) for _ in range(2))
    one.clip()
    other.load_state_dict(one.state_dict())
    assert float(other.state_dict()["norm"]) == float(one.state_dict()["norm"]) < 1e4


def test_state_of_another_method_is_refused() -> None:
    state = PlainClipper("zclip:2", model_with_gradients()).state_dict()
    with pytest.raises(ValueError, match=r"this is not the state of norm_growth:1\.5"):
        PlainClipper("norm_growth:1.5", model_with_gradients()).load_state_dict(state)


def test_parameters_may_be_of_a_low_precision() -> None:
    model = model_with_gradients().to(torch.bfloat16)
    for each in model.parameters():
        each.grad = torch.ones_like(each)
    PlainClipper("zclip:2", model).clip(1.5)
    assert {each.grad.dtype for each in model.parameters()} == {torch.bfloat16}
