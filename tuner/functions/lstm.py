"""One direction of one LSTM layer for many lanes, as one opaque operation.

    i, f, o = sigmoid(W x_t + U h_(t-1) + b);   g = tanh(...)
    c_t = f c_(t-1) + i g;   h_t = o tanh(c_t)

A step is one batched product and six elementwise kernels. Inside, the gates are in the order (o, i, f, g),
torch's (i, f, g, o) turned by one: the three sigmoids are neighbours, and so are the three gates whose
gradient comes through the cell.

Shape letters: G = groups (lanes), T = steps, B = sequences, I = inputs, H = hidden units.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tuner.functions.grouping import (
    project,
    project_backward,
    recurrent_weight_gradient,
    register_group_axis,
    weight_gradient,
)


@torch.library.custom_op("cliptune::lstm", mutates_args=())
def lstm(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The states of an LSTM layer at every step.

    Args:
        inputs: (G, T, B, I), T > 0.
        weight_ih: (G, 4H, I), torch's gate order.
        weight_hh: (G, 4H, H).
        bias: (G, 4H), the sum of torch's two.
        hidden: (G, B, H), before the first step.
        cell: (G, B, H), before the first step.

    Returns:
        The hidden states (G, T, B, H), the last cell (G, B, H), and for the backward pass alone the gates
        (G, T, B, 4H) and all cells (G, T, B, H).

    Source:
        Hochreiter and Schmidhuber, Long Short-Term Memory, 1997; equations of `torch.nn.LSTM`.
    """
    size = hidden.shape[-1]
    gates = project(inputs, _turn(weight_ih, 1), _turn(bias, 1))
    recurrent = _turn(weight_hh, 1).mT
    outputs = gates.new_empty(*gates.shape[:3], size)
    cells = torch.empty_like(outputs)
    product = gates.new_empty(gates[:, 0].shape)
    product_sigmoid, product_tanh = product[..., : 3 * size], product[..., 3 * size :]
    per_step = (gates, gates[..., : 3 * size], *torch.split(gates, size, -1), cells, outputs)
    for gate, sigmoid, o, i, f, g, new_cell, output in zip(
        *(each.unbind(1) for each in per_step), strict=True
    ):
        # Contiguous `out`: a batched product into a strided slice falls back to one product per lane.
        torch.baddbmm(gate, hidden, recurrent, out=product)
        torch.sigmoid(product_sigmoid, out=sigmoid)
        torch.tanh(product_tanh, out=g)
        cell = torch.mul(f, cell, out=new_cell).addcmul_(i, g)
        hidden = torch.tanh(cell, out=output).mul_(o)
    return outputs, cells[:, -1].clone(), gates, cells


@torch.library.custom_op("cliptune::lstm_backward", mutates_args=())
def lstm_backward(
    grad: Tensor | None,
    grad_cell: Tensor | None,
    weight_hh: Tensor,
    cell: Tensor,
    gates: Tensor,
    cells: Tensor,
) -> tuple[Tensor, Tensor]:
    """Back-propagation through time.

    Every factor that does not depend on the gradient is computed for all steps at once; what is left of a
    step is one batched product and four elementwise kernels.

    Args:
        grad: (G, T, B, H), with respect to the hidden states; None is zero.
        grad_cell: (G, B, H), with respect to the last cell; None is zero.
        weight_hh: (G, 4H, H), torch's gate order.
        cell: (G, B, H), before the first step.
        gates: (G, T, B, 4H), what `lstm` returned.
        cells: (G, T, B, H), what `lstm` returned.

    Returns:
        The gradient with respect to the gates' arguments (G, T, B, 4H) in the order (o, i, f, g), and with
        respect to `cell`.
    """
    size = cells.shape[-1]
    grad = torch.zeros_like(cells) if grad is None else grad
    forget = gates[..., 2 * size : 3 * size].unbind(1)
    factor, through = _factors(cell, gates, cells)
    # A step's factors are read just before its gradient is known: one buffer holds both.
    by_hidden = factor[..., :size].unbind(1)
    by_cell = torch.unflatten(factor[..., size:], -1, (3, size)).unbind(1)
    recurrent = _turn(weight_hh, 1)
    state = cells.new_empty(cell.shape)
    carried = cells.new_zeros(cell.shape) if grad_cell is None else grad_cell.clone()
    carried_rows = carried.unsqueeze(2)
    last = len(forget) - 1
    for step in range(last, -1, -1):
        if step == last:
            state.copy_(grad[:, step])
        else:
            torch.baddbmm(grad[:, step], factor[:, step + 1], recurrent, out=state)
        carried.addcmul_(state, through[:, step])
        by_hidden[step].mul_(state)
        by_cell[step].mul_(carried_rows)
        carried.mul_(forget[step])
    return factor, carried


def _factors(cell: Tensor, gates: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """What multiplies the gradients: of h for gate o, of c for the gates i, f, g; and dh/dc.

    Returns:
        (G, T, B, 4H) and (G, T, B, H).
    """
    o, i, _f, g = gates.chunk(4, -1)
    squashed = cells.tanh()
    factor = torch.addcmul(gates, gates, gates, value=-1)  # s (1 - s); the tanh gate is overwritten below
    on_o, on_i, on_f, on_g = factor.chunk(4, -1)
    on_o.mul_(squashed)
    on_i.mul_(g)
    on_f[:, 0].mul_(cell)
    on_f[:, 1:].mul_(cells[:, :-1])
    torch.addcmul(i, g * g, i, value=-1, out=on_g)
    return factor, torch.addcmul(o, squashed.square_(), o, value=-1)


def _turn(weight: Tensor, by: int) -> Tensor:
    """(i, f, g, o) to (o, i, f, g) along axis 1 for by = 1, back for by = -1."""
    return torch.unflatten(weight, 1, (4, -1)).roll(by, 1).flatten(1, 2)


@lstm.register_fake
def _(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    del weight_ih, weight_hh, bias, cell
    size = hidden.shape[-1]
    states, gates = (inputs.new_empty(*inputs.shape[:3], width) for width in (size, 4 * size))
    return states, inputs.new_empty(hidden.shape), gates, torch.empty_like(states)


@lstm_backward.register_fake
def _(
    grad: Tensor | None,
    grad_cell: Tensor | None,
    weight_hh: Tensor,
    cell: Tensor,
    gates: Tensor,
    cells: Tensor,
) -> tuple[Tensor, Tensor]:
    del grad, grad_cell, weight_hh, cells
    return gates.new_empty(gates.shape), cell.new_empty(cell.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    outputs, _last, gates, cells = output
    ctx.mark_non_differentiable(gates, cells)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, outputs, gates, cells)


def _differentiate(
    ctx: Any, grad: Tensor | None, grad_cell: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    inputs, weight_ih, weight_hh, _bias, hidden, cell, outputs, gates, cells = ctx.saved_tensors
    inner, first_cell = lstm_backward(grad, grad_cell, weight_hh, cell, gates, cells)
    needs = ctx.needs_input_grad
    return (
        project_backward(inner, _turn(weight_ih, 1)) if needs[0] else None,
        _turn(weight_gradient(inner, inputs), -1) if needs[1] else None,
        _turn(recurrent_weight_gradient(inner, outputs, hidden), -1) if needs[2] else None,
        _turn(inner.sum((1, 2)), -1) if needs[3] else None,
        torch.bmm(inner[:, 0], _turn(weight_hh, 1)) if needs[4] else None,
        first_cell if needs[5] else None,
    )


lstm.register_autograd(_differentiate, setup_context=_save)
register_group_axis(lstm)
register_group_axis(lstm_backward)
