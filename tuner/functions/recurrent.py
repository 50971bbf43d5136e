"""Stacks of recurrent layers: what nn.RNN, nn.LSTM and nn.GRU call, built on one operation per direction.

The functions take the arguments of ``torch.rnn_tanh``, ``torch.rnn_relu``, ``torch.lstm`` and ``torch.gru``.

Shape letters: T = steps, B = sequences, I = inputs, H = hidden units, D = directions (1 or 2), N = layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tuner.functions import elman, gru, lstm
from tuner.functions.dropout import dropout
from tuner.functions.errors import NotLaneFriendlyError

_Weights = Sequence[Tensor]
_States = tuple[Tensor, ...]
_Direction = Callable[[Tensor, _Weights, _States], tuple[Tensor, _States]]
"""From inputs (1, T, B, I), weights and first states (1, ...) to outputs (1, T, B, H) and last states."""


class Stack(NamedTuple):
    """How the layers are stacked, in the order of torch's arguments.

    Attributes:
        has_biases: every direction has two biases.
        num_layers: N.
        dropout: between layers, probability in [0, 1].
        train: whether dropout is applied.
        bidirectional: D is 2.
        batch_first: inputs and outputs are (B, T, ...) instead of (T, B, ...).
    """

    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool


def run_lstm(input: Tensor, hx: Any, params: Any, *stack: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.lstm` for lanes.

    Args:
        input: (T, B, I), or (B, T, I) with batch_first.
        hx: first hidden states and cells, each (N * D, B, H).
        params: weight_ih, weight_hh, bias_ih, bias_hh of each direction of each layer.
        stack: the fields of `Stack`.

    Returns:
        Outputs (T, B, D * H), last hidden states and last cells, each (N * D, B, H).

    Raises:
        NotLaneFriendlyError: for a packed sequence or projected states.
    """
    _refuse_packed("nn.LSTM", isinstance(hx, Tensor))
    outputs, (hidden, cells) = _run("nn.LSTM", _lstm_direction, input, tuple(hx), params, Stack(*stack))
    return outputs, hidden, cells


def run_gru(input: Tensor, hx: Tensor, params: Any, *stack: Any) -> tuple[Tensor, Tensor]:
    """`torch.gru` for lanes.

    Args:
        input: (T, B, I), or (B, T, I) with batch_first.
        hx: first hidden states, (N * D, B, H).
        params: weight_ih, weight_hh, bias_ih, bias_hh of each direction of each layer.
        stack: the fields of `Stack`.

    Returns:
        Outputs (T, B, D * H) and last hidden states (N * D, B, H).

    Raises:
        NotLaneFriendlyError: for a packed sequence.
    """
    return _run_single("nn.GRU", _gru_direction, input, hx, params, stack)


def run_rnn(relu: bool, input: Tensor, hx: Tensor, params: Any, *stack: Any) -> tuple[Tensor, Tensor]:
    """`torch.rnn_relu` or `torch.rnn_tanh` for lanes.

    Args:
        relu: which of them.
        input: (T, B, I), or (B, T, I) with batch_first.
        hx: first hidden states, (N * D, B, H).
        params: weight_ih, weight_hh, bias_ih, bias_hh of each direction of each layer.
        stack: the fields of `Stack`.

    Returns:
        Outputs (T, B, D * H) and last hidden states (N * D, B, H).

    Raises:
        NotLaneFriendlyError: for a packed sequence.
    """
    return _run_single("nn.RNN", partial(_elman_direction, relu), input, hx, params, stack)


def _run_single(
    name: str, direction: _Direction, input: Tensor, hx: Tensor, params: Any, stack: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    _refuse_packed(name, isinstance(params, Tensor))
    outputs, (hidden,) = _run(name, direction, input, (hx,), params, Stack(*stack))
    return outputs, hidden


def _run(
    name: str, direction: _Direction, input: Tensor, first: _States, params: Sequence[Tensor], stack: Stack
) -> tuple[Tensor, _States]:
    """Run every direction of every layer; the last states of a kind are stacked in torch's order.

    Raises:
        NotLaneFriendlyError: if there are weights of projections.
    """
    per_direction = 4 if stack.has_biases else 2
    num_directions = 2 if stack.bidirectional else 1
    if len(params) != per_direction * num_directions * stack.num_layers:
        raise NotLaneFriendlyError(
            f"{name} with proj_size",
            "projected states have no lane form",
            "use proj_size=0 and a Linear layer",
        )
    current = input.transpose(0, 1) if stack.batch_first else input
    last = []
    for layer in range(stack.num_layers):
        outputs = []
        for reverse in range(num_directions):
            index = layer * num_directions + reverse
            weights = params[index * per_direction : (index + 1) * per_direction]
            grouped = _in_one_dtype(
                [current.flip(0) if reverse else current, *weights, *(h[index] for h in first)]
            )
            states = tuple(grouped[1 + per_direction :])
            output, states = direction(grouped[0], grouped[1 : 1 + per_direction], states)
            outputs.append(output[0].flip(0) if reverse else output[0])
            last.append(states)
        current = torch.cat(outputs, -1) if stack.bidirectional else outputs[0]
        if layer + 1 < stack.num_layers:
            current = dropout(current, stack.dropout, stack.train)
    finals = tuple(torch.cat(kind) for kind in zip(*last, strict=True))
    return current.transpose(0, 1) if stack.batch_first else current, finals


def _in_one_dtype(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Give every tensor a group axis, and the dtype of autocast where that is on."""
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        tensors = [each.to(torch.get_autocast_dtype(device)) for each in tensors]
    return [each.unsqueeze(0) for each in tensors]


def _lstm_direction(inputs: Tensor, weights: _Weights, states: _States) -> tuple[Tensor, _States]:
    outputs, cell, _, _ = lstm.lstm(inputs, *weights[:2], sum(_biases(weights)), *states)
    return outputs, (outputs[:, -1], cell)


def _gru_direction(inputs: Tensor, weights: _Weights, states: _States) -> tuple[Tensor, _States]:
    outputs, _, _ = gru.gru(inputs, *weights[:2], *_biases(weights), *states)
    return outputs, (outputs[:, -1],)


def _elman_direction(
    relu: bool, inputs: Tensor, weights: _Weights, states: _States
) -> tuple[Tensor, _States]:
    outputs = elman.elman(inputs, *weights[:2], sum(_biases(weights)), *states, relu)
    return outputs, (outputs[:, -1],)


def _biases(weights: _Weights) -> Sequence[Tensor]:
    """Both biases, (1, gates * H) each; zeros where the layer has none."""
    return weights[2:] or [weights[0].new_zeros(weights[0].shape[:2])] * 2


def _refuse_packed(name: str, is_packed: bool) -> None:
    """Raise if a sequence was packed.

    Raises:
        NotLaneFriendlyError: then.
    """
    if is_packed:
        raise NotLaneFriendlyError(
            f"{name} on a PackedSequence",
            "the lanes of a step share one shape, and packing depends on the data",
            "pass the padded tensor and mask the loss",
        )


REPLACEMENTS: dict[Any, Any] = {
    torch.lstm: run_lstm,
    torch.gru: run_gru,
    torch.rnn_tanh: partial(run_rnn, False),
    torch.rnn_relu: partial(run_rnn, True),
}
"""What replaces what; see `tuner.functions.substitution`."""
