"""Common layers and losses, unchanged, equal a loop over lanes: losses, gradients and buffers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from tuner.functions import LaneFunctions, NotLaneFriendlyError
from tuner.functions.rebinding import rebind


class Scaled(nn.Module):
    """A function without parameters, of inputs times a parameter."""

    def __init__(self, function):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))
        self.function = function

    def forward(self, inputs):
        return self.function(inputs * self.scale)


class Tied(nn.Module):
    """An embedding that is the output layer too."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.output = nn.Linear(4, 5, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        return self.output(self.embedding(tokens).tanh())


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.bilinear = nn.Bilinear(6, 6, 3)

    def forward(self, inputs):
        return self.bilinear(inputs, inputs.flip(-1))


IMAGE, SEQUENCE, ROWS = torch.randn(2, 4, 6, 8, 8), torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6)
CLASSES = torch.tensor([1, 0, 5, 2])
LAYERS = {
    "group norm": (lambda: nn.GroupNorm(2, 6), IMAGE),
    "layer norm": (lambda: nn.LayerNorm(8), IMAGE),
    "batch norm 1d": (lambda: nn.BatchNorm1d(6), SEQUENCE),
    "batch norm 2d": (lambda: nn.BatchNorm2d(6), IMAGE),
    "conv 1d": (lambda: nn.Sequential(nn.Conv1d(6, 4, 3, padding="same"), nn.MaxPool1d(2)), SEQUENCE),
    "conv 2d": (lambda: nn.Sequential(nn.Conv2d(6, 4, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2)), IMAGE),
    "transposed conv 2d": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2), IMAGE),
    "pooling": (lambda: nn.Sequential(nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1)), IMAGE),
    "bilinear": (Pair, ROWS),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 3)), ROWS),
    "weight norm of all": (lambda: parametrizations.weight_norm(nn.Linear(6, 3), dim=-1), ROWS),
    "prelu": (lambda: nn.Sequential(nn.Linear(6, 4), nn.PReLU(), nn.GELU(), nn.SiLU()), ROWS),
    "cross entropy": (
        lambda: Scaled(lambda x: F.cross_entropy(x, CLASSES, ignore_index=2, label_smoothing=0.1)),
        ROWS,
    ),
    "kl_div": (lambda: Scaled(lambda x: F.kl_div(x, x.softmax(-1), reduction="batchmean")), ROWS),
    "kl_div of logs": (
        lambda: Scaled(lambda x: F.kl_div(x, x.cos(), reduction="sum", log_target=True)),
        ROWS,
    ),
}
TOKENS = torch.randint(0, 5, (2, 3, 7))
EMBEDDINGS = {
    "plain": lambda: nn.Embedding(5, 4),
    "padding": lambda: nn.Embedding(5, 4, padding_idx=1),
    "last row is padding": lambda: nn.Embedding(5, 4, padding_idx=-1),
    "scaled by frequency": lambda: nn.Embedding(5, 4, scale_grad_by_freq=True),
    "tied": Tied,
}


@pytest.mark.parametrize("name", LAYERS)
def test_lanes_equal_a_loop(name, assert_equals_loop):
    build, inputs = LAYERS[name]
    assert_equals_loop(build().double(), inputs.double())


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_look_ups_equal_a_loop(name, assert_equals_loop):
    assert_equals_loop(EMBEDDINGS[name]().double(), TOKENS)


def test_padding_row_has_no_gradient_in_any_lane(trace_lanes):
    lanes = trace_lanes(nn.Embedding(5, 4, padding_idx=1), torch.ones(2, 3, 7, dtype=torch.long))
    (gradient,) = lanes.run()[1]
    assert gradient.count_nonzero() == 0


def test_gaussian_loss_is_torchs_own():
    inputs, target, variance = torch.randn(4, 6), torch.randn(4, 6), torch.rand(4, 6)
    expected = F.gaussian_nll_loss(inputs, target, variance, full=True)
    with LaneFunctions():
        assert torch.equal(F.gaussian_nll_loss(inputs, target, variance, full=True), expected)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"max_norm": 1.0}, r"max_norm=1.0\) .* leave max_norm out"), ({"sparse": True}, "use sparse=False")],
)
def test_embedding_options_are_refused_with_a_remedy(options, sentence):
    layer = nn.Embedding(5, 4, **options)
    with LaneFunctions(), pytest.raises(NotLaneFriendlyError, match=sentence):
        layer(TOKENS[0])


def test_only_python_functions_can_be_rebound():
    with pytest.raises(TypeError, match="written in Python"):
        rebind(torch.add)


def test_outside_the_context_nothing_is_replaced():
    layer = nn.LSTM(3, 4)
    inputs = torch.randn(5, 6, 3)
    before = layer(inputs)[0]
    with LaneFunctions():
        torch.func.vmap(lambda x: layer(x)[0])(inputs[None])
    assert torch.equal(layer(inputs)[0], before)
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.func.vmap(lambda x: layer(x)[0])(inputs[None])
