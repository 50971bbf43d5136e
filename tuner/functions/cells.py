"""One step of a recurrent cell: what nn.RNNCell, nn.LSTMCell and nn.GRUCell call.

Torch's cells have no batching rule. A loop of cells costs a handful of kernels per step; a whole sequence is
cheaper in nn.RNN, nn.LSTM or nn.GRU.

Shape letters: B = sequences, I = inputs, H = hidden units.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`torch.lstm_cell` for lanes.

    Args:
        input: (B, I).
        hx: hidden state and cell, each (B, H).
        w_ih: (4H, I), gates in the order (i, f, g, o).
        w_hh: (4H, H).
        b_ih: (4H,).
        b_hh: (4H,).

    Returns:
        The next hidden state and cell, each (B, H).
    """
    hidden, cell = hx
    i, f, g, o = (linear(input, w_ih, b_ih) + linear(hidden, w_hh, b_hh)).chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """`torch.gru_cell` for lanes.

    Args:
        input: (B, I).
        hx: (B, H).
        w_ih: (3H, I), gates in the order (r, z, n).
        w_hh: (3H, H).
        b_ih: (3H,).
        b_hh: (3H,).

    Returns:
        The next hidden state, (B, H).
    """
    from_input, from_state = linear(input, w_ih, b_ih).chunk(3, -1), linear(hx, w_hh, b_hh).chunk(3, -1)
    r, z = ((a + b).sigmoid() for a, b in zip(from_input[:2], from_state[:2], strict=True))
    n = (from_input[2] + r * from_state[2]).tanh()
    return n + z * (hx - n)


def rnn_cell(
    relu: bool,
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """`torch.rnn_relu_cell` or `torch.rnn_tanh_cell` for lanes.

    Args:
        relu: which of them.
        input: (B, I).
        hx: (B, H).
        w_ih: (H, I).
        w_hh: (H, H).
        b_ih: (H,).
        b_hh: (H,).

    Returns:
        The next hidden state, (B, H).
    """
    argument = linear(input, w_ih, b_ih) + linear(hx, w_hh, b_hh)
    return argument.relu() if relu else argument.tanh()


REPLACEMENTS: dict[Any, Any] = {
    torch.lstm_cell: lstm_cell,
    torch.gru_cell: gru_cell,
    torch.rnn_tanh_cell: partial(rnn_cell, False),
    torch.rnn_relu_cell: partial(rnn_cell, True),
}
"""What replaces what; see `tuner.functions.substitution`."""
