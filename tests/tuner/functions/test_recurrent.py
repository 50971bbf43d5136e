"""nn.RNN, nn.LSTM and nn.GRU in lanes equal a loop over the plain modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.nn.utils.rnn import pack_sequence

from tuner.functions import Gru, LaneFunctions, Lstm, NotLaneFriendlyError, Rnn

KINDS = {
    "tanh": lambda **options: nn.RNN(3, 4, **options),
    "relu": lambda **options: nn.RNN(3, 4, nonlinearity="relu", **options),
    "lstm": lambda **options: nn.LSTM(3, 4, **options),
    "gru": lambda **options: nn.GRU(3, 4, **options),
}
STACKS = {
    "one layer": {},
    "batch first, no bias": {"batch_first": True, "bias": False},
    "everything": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}
CELLS = {
    "tanh": lambda: nn.RNNCell(3, 4),
    "relu": lambda: nn.RNNCell(3, 4, nonlinearity="relu"),
    "lstm": lambda: nn.LSTMCell(3, 4, bias=False),
    "gru": lambda: nn.GRUCell(3, 4),
}
DROP_IN = {"tanh": (Rnn, nn.RNN), "lstm": (Lstm, nn.LSTM), "gru": (Gru, nn.GRU)}


class LearnedStart(nn.Module):
    """A recurrent module whose first states are parameters."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        num_states = module.num_layers * (2 if module.bidirectional else 1)
        self.first = nn.Parameter(torch.randn(2, num_states, 5, module.hidden_size))

    def forward(self, inputs):
        return self.module(
            inputs, tuple(self.first) if isinstance(self.module, nn.LSTM) else self.first[0] + self.first[1]
        )


class Unrolled(nn.Module):
    """A loop over a cell."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, inputs):
        state = None
        for step in inputs:
            state = self.cell(step, state)
        return state


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("kind", KINDS)
def test_lanes_equal_a_loop(kind, stack, assert_equals_loop):
    module = KINDS[kind](**STACKS[stack]).double()
    assert_equals_loop(module, torch.randn(2, 5, 6, 3, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_first_states(kind, assert_equals_loop):
    module = LearnedStart(KINDS[kind](num_layers=2, bidirectional=True)).double()
    assert_equals_loop(module, torch.randn(2, 6, 5, 3, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_lanes_equal_a_loop(kind, assert_equals_loop):
    assert_equals_loop(KINDS[kind](num_layers=2), torch.randn(2, 5, 6, 3), tolerance=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_direction_is_one_node_each_way(kind, trace_lanes):
    targets = trace_lanes(KINDS[kind](bidirectional=True), torch.randn(2, 50, 6, 3)).targets()
    ours = sorted(target for target in targets if "cliptune" in target)
    name = "elman" if kind in ("tanh", "relu") else kind
    assert ours == [f"cliptune.{name}.default"] * 2 + [f"cliptune.{name}_backward.default"] * 2
    assert len(targets) < 300


def test_a_traced_step_runs_in_inference_mode(trace_lanes):
    lanes = trace_lanes(nn.LSTM(3, 4), torch.randn(2, 5, 6, 3))
    with torch.inference_mode():
        losses, gradients = lanes.graph(*lanes.arguments)
    torch.testing.assert_close((losses, gradients), lanes.run()[:2])


@pytest.mark.parametrize("cell", CELLS)
def test_cells_equal_a_loop(cell, assert_equals_loop):
    assert_equals_loop(Unrolled(CELLS[cell]()).double(), torch.randn(2, 3, 6, 3, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers_is_that_of_a_lone_training(kind, assert_equals_loop):
    module = KINDS[kind](num_layers=3, dropout=0.4, bidirectional=True).double()
    assert_equals_loop(module, torch.randn(2, 5, 6, 3, dtype=torch.float64), seeds=(3, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_runs_in_the_lower_precision(kind):
    module, inputs = KINDS[kind](), torch.randn(2, 5, 6, 3)
    with torch.autocast("cpu", torch.bfloat16), LaneFunctions():
        outputs = vmap(lambda sequence: module(sequence)[0])(inputs)
    exact = torch.stack([module(each)[0] for each in inputs])
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", DROP_IN)
def test_drop_in_layers_are_their_parents(kind):
    ours, theirs = (cls(3, 4, num_layers=2, batch_first=True).double() for cls in DROP_IN[kind])
    ours.load_state_dict(theirs.state_dict())
    inputs = torch.randn(6, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", DROP_IN)
def test_drop_in_layers_batch_without_a_context(kind):
    layer = DROP_IN[kind][0](3, 4)
    inputs = torch.randn(2, 5, 6, 3)
    outputs = vmap(lambda sequence: layer(sequence)[0])(inputs)
    torch.testing.assert_close(outputs, torch.stack([layer(each)[0] for each in inputs]))


def test_projected_states_are_refused_with_a_remedy():
    with LaneFunctions(), pytest.raises(NotLaneFriendlyError, match=r"proj_size cannot be .* a Linear layer"):
        nn.LSTM(3, 4, proj_size=2)(torch.randn(5, 6, 3))
    with pytest.raises(NotLaneFriendlyError, match=r"Lstm\(proj_size=2\)"):
        Lstm(3, 4, proj_size=2)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_are_refused_with_a_remedy(kind):
    packed = pack_sequence([torch.randn(3, 3), torch.randn(2, 3)])
    with LaneFunctions(), pytest.raises(NotLaneFriendlyError, match=r"PackedSequence .* the padded tensor"):
        KINDS[kind]()(packed)
