"""One direction of one GRU layer for many lanes, as one opaque operation.

    r, z = sigmoid(W x_t + b + U h_(t-1) + d);   n = tanh(W x_t + b + r (U h_(t-1) + d))
    h_t = (1 - z) n + z h_(t-1)

A step is one batched product and six elementwise kernels. All of a step's gradients are multiples of the
gradient of h_t; the multiples are computed for all steps at once, so that a step of the backward pass is one
batched product and two elementwise kernels.

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


@torch.library.custom_op("cliptune::gru", mutates_args=())
def gru(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The states of a GRU layer at every step.

    Args:
        inputs: (G, T, B, I), T > 0.
        weight_ih: (G, 3H, I), gates in the order (r, z, n).
        weight_hh: (G, 3H, H).
        bias_ih: (G, 3H).
        bias_hh: (G, 3H).
        hidden: (G, B, H), before the first step.

    Returns:
        The states (G, T, B, H), and for the backward pass alone the gates (G, T, B, 3H) and the recurrent
        part of n (G, T, B, H).

    Source:
        Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014,
        https://arxiv.org/abs/1406.1078; in the variant of `torch.nn.GRU`, which multiplies r after U h.
    """
    size = hidden.shape[-1]
    gates = project(inputs, weight_ih, bias_ih)
    recurrent, offset = weight_hh.mT, bias_hh.unsqueeze(1)
    outputs = gates.new_empty(*gates.shape[:3], size)
    candidates = torch.empty_like(outputs)
    product = gates.new_empty(gates[:, 0].shape)
    product_rz, product_n = product[..., : 2 * size], product[..., 2 * size :]
    per_step = (gates[..., : 2 * size], *torch.split(gates, size, -1), candidates, outputs)
    for rz, r, z, n, candidate, output in zip(*(each.unbind(1) for each in per_step), strict=True):
        torch.baddbmm(offset, hidden, recurrent, out=product)
        rz.add_(product_rz).sigmoid_()
        candidate.copy_(product_n)
        n.addcmul_(r, product_n).tanh_()
        hidden = torch.lerp(n, hidden, z, out=output)
    return outputs, gates, candidates


@torch.library.custom_op("cliptune::gru_backward", mutates_args=())
def gru_backward(
    grad: Tensor, weight_hh: Tensor, hidden: Tensor, outputs: Tensor, gates: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Back-propagation through time.

    Args:
        grad: (G, T, B, H), with respect to the states.
        weight_hh: (G, 3H, H).
        hidden: (G, B, H), before the first step.
        outputs: (G, T, B, H), what `gru` returned.
        gates: (G, T, B, 3H), what `gru` returned.
        candidates: (G, T, B, H), what `gru` returned.

    Returns:
        The gradients with respect to the gates' arguments from the input (G, T, B, 3H) and from the state
        (G, T, B, 3H), and with respect to `hidden`.
    """
    size = hidden.shape[-1]
    factor, on_n = _factors(hidden, outputs, gates, candidates)
    rows = torch.unflatten(factor, -1, (3, size)).unbind(1)
    update = gates[..., size : 2 * size].unbind(1)
    states = grad.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    state, last = states[-1], len(rows) - 1
    for step in range(last, -1, -1):
        rows[step].mul_(state.unsqueeze(2))
        earlier = states[step - 1] if step > 0 else torch.zeros_like(state)
        earlier.addcmul_(state, update[step])
        state = earlier.baddbmm_(factor[:, step], weight_hh)
    from_input = torch.cat((factor[..., : 2 * size], on_n.mul_(states.transpose(0, 1))), -1)
    return from_input, factor, state


def _factors(hidden: Tensor, outputs: Tensor, gates: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """What multiplies the gradient of h_t.

    Returns:
        For the recurrent arguments of (r, z, n), (G, T, B, 3H); for the whole argument of n, (G, T, B, H).
    """
    r, z, n = gates.chunk(3, -1)
    factor = torch.addcmul(gates, gates, gates, value=-1)  # s (1 - s); the tanh gate is overwritten below
    on_r, on_z, recurrent_n = factor.chunk(3, -1)
    on_n = torch.addcmul(n.new_ones(()), n, n, value=-1).mul_(1 - z)
    on_z[:, 0].mul_(hidden - n[:, 0])
    on_z[:, 1:].mul_(outputs[:, :-1] - n[:, 1:])
    on_r.mul_(candidates).mul_(on_n)
    torch.mul(on_n, r, out=recurrent_n)
    return factor, on_n


@gru.register_fake
def _(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    del weight_ih, weight_hh, bias_ih, bias_hh
    size = hidden.shape[-1]
    states, gates = (inputs.new_empty(*inputs.shape[:3], width) for width in (size, 3 * size))
    return states, gates, torch.empty_like(states)


@gru_backward.register_fake
def _(
    grad: Tensor, weight_hh: Tensor, hidden: Tensor, outputs: Tensor, gates: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    del grad, weight_hh, outputs, candidates
    return gates.new_empty(gates.shape), gates.new_empty(gates.shape), hidden.new_empty(hidden.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    outputs, gates, candidates = output
    ctx.mark_non_differentiable(gates, candidates)
    ctx.save_for_backward(*inputs, outputs, gates, candidates)


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    inputs, weight_ih, weight_hh, _bias_ih, _bias_hh, hidden, outputs, gates, candidates = ctx.saved_tensors
    from_input, from_state, first = gru_backward(grad, weight_hh, hidden, outputs, gates, candidates)
    needs = ctx.needs_input_grad
    return (
        project_backward(from_input, weight_ih) if needs[0] else None,
        weight_gradient(from_input, inputs) if needs[1] else None,
        recurrent_weight_gradient(from_state, outputs, hidden) if needs[2] else None,
        from_input.sum((1, 2)) if needs[3] else None,
        from_state.sum((1, 2)) if needs[4] else None,
        first if needs[5] else None,
    )


gru.register_autograd(_differentiate, setup_context=_save)
register_group_axis(gru)
register_group_axis(gru_backward)
