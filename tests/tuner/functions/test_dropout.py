"""Dropout and other draws: torch's own numbers, one draw for all trials of a seed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import vmap

from tuner.functions import LaneFunctions, NotLaneFriendlyError

IMAGE = (2, 5, 4, 3, 3)
DROPOUTS = {
    "dropout": (nn.Dropout(0.3), (2, 5, 7)),
    "in place": (nn.Dropout(0.3, inplace=True), (2, 5, 7)),
    "always dropped": (nn.Dropout(1.0), (2, 5, 7)),
    "dropout1d": (nn.Dropout1d(0.3), (2, 5, 4, 3)),
    "dropout1d of one sample": (nn.Dropout1d(0.3), (2, 50, 3)),
    "dropout2d": (nn.Dropout2d(0.3), IMAGE),
    "dropout3d": (nn.Dropout3d(0.3), (2, 5, 4, 3, 3, 3)),
    "alpha": (nn.AlphaDropout(0.3), (2, 5, 7)),
    "feature alpha": (nn.FeatureAlphaDropout(0.3), IMAGE),
}
DRAWS = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "randn_like": torch.randn_like,
    "rand_like": torch.rand_like,
    "normal": lambda x: torch.normal(x, 1.0) - x,
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid() * 0 + 0.5),
    "bernoulli p": lambda x: torch.bernoulli(x, 0.5),
    "rrelu": lambda x: F.rrelu(-x, training=True),
    "gumbel": lambda x: F.gumbel_softmax(x * 0, hard=True),
}


def over_lanes(function, values):
    """Trials (axis 1) inside seeds (axis 0)."""
    trials = vmap(function, randomness="same")
    with LaneFunctions():
        return vmap(trials, randomness="different")(values)


@pytest.mark.parametrize("name", DROPOUTS)
def test_masks_are_those_torch_draws(name):
    layer, (_, *shape) = DROPOUTS[name]
    inputs = torch.randn(shape)
    torch.manual_seed(1)
    expected = layer(inputs.clone())
    torch.manual_seed(1)
    with LaneFunctions():
        assert torch.equal(layer(inputs.clone()), expected)


@pytest.mark.parametrize("name", DROPOUTS)
def test_first_seed_of_many_lanes_draws_like_a_lone_training(name):
    layer, shape = DROPOUTS[name]
    inputs = torch.randn(shape[0], 3, *shape[1:])
    torch.manual_seed(1)
    expected = layer(inputs[0, 1].clone())
    torch.manual_seed(1)
    assert torch.equal(over_lanes(layer, inputs)[0, 1], expected)


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (0, 2, 1)])
def test_masks_of_permuted_inputs_are_those_torch_draws(order):
    inputs = torch.randn(4, 5, 6).permute(order)
    torch.manual_seed(1)
    expected = F.dropout(inputs, 0.3)
    torch.manual_seed(1)
    with LaneFunctions():
        assert torch.equal(F.dropout(inputs, 0.3), expected)


@pytest.mark.parametrize("name", DRAWS)
def test_trials_share_a_draw_and_seeds_do_not(name):
    drawn = over_lanes(DRAWS[name], torch.ones(2, 3, 4, 50))
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    assert torch.equal(drawn[:, 0], drawn[:, 2])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("draw", [torch.randn_like, torch.rand_like])
def test_noise_shaped_like_a_tensor_is_torchs_own(draw):
    torch.manual_seed(1)
    expected = draw(torch.ones(3, 4), dtype=torch.float64)
    torch.manual_seed(1)
    with LaneFunctions():
        assert torch.equal(draw(torch.ones(3, 4), dtype=torch.float64, memory_format=None), expected)


def test_rrelu_has_torchs_mean_slope_in_evaluation_and_its_range_in_training():
    inputs = torch.linspace(-3, 3, 1000)
    with LaneFunctions():
        torch.testing.assert_close(F.rrelu(inputs), nn.RReLU().eval()(inputs))
        slopes = (F.rrelu(inputs, 0.2, 0.4, training=True) / inputs)[inputs < 0]
    assert 0.2 <= slopes.min() < 0.21
    assert 0.39 < slopes.max() <= 0.4001


def test_gumbel_samples_follow_their_logits():
    logits = torch.tensor([0.7, 0.2, 0.1]).log().expand(20_000, 3)
    with LaneFunctions():
        frequencies = F.gumbel_softmax(logits, hard=True).mean(0)
    torch.testing.assert_close(frequencies, torch.tensor([0.7, 0.2, 0.1]), rtol=0, atol=0.02)


def test_random_nodes_carry_the_seed_axis_and_no_trial_axis(trace_lanes):
    lanes = trace_lanes(nn.Sequential(nn.Linear(7, 6), nn.Dropout(0.5)), torch.randn(2, 5, 7))
    (node,) = (each for each in lanes.graph.graph.nodes if str(each.target) == "aten.bernoulli.p")
    assert node.meta["val"].shape == (2, 5, 6)


@pytest.mark.parametrize("name", DROPOUTS)
def test_lanes_with_dropout_equal_a_loop(name, assert_equals_loop):
    layer, (*_, last) = DROPOUTS[name]
    module = nn.Sequential(nn.Linear(last, 6), layer, nn.Linear(6, 5), nn.Dropout(0.2)).double()
    assert_equals_loop(module, torch.randn(DROPOUTS[name][1], dtype=torch.float64), seeds=(3, 4))


def test_evaluation_draws_nothing(assert_equals_loop):
    module = nn.Sequential(nn.Linear(7, 6), nn.Dropout(0.5)).double().eval()
    lanes = assert_equals_loop(module, torch.randn(2, 5, 7, dtype=torch.float64))
    assert "aten.bernoulli.p" not in lanes.targets()


def test_filling_in_place_is_refused_inside_vmap_only():
    with LaneFunctions():
        torch.empty(3).normal_()
        with pytest.raises(NotLaneFriendlyError, match=r"Tensor.normal_\(\) .* torch.randn_like"):
            vmap(lambda x: x + torch.zeros(3).normal_(), randomness="same")(torch.ones(2, 3))
