"""One direction of one Elman layer (nn.RNN, tanh or relu) for many lanes, as one opaque operation.

    h_t = f(W_ih x_t + W_hh h_(t-1) + b),   f = tanh or relu

The projection of all inputs is one product before the time loop; a step is then one batched product and one
elementwise kernel. The backward pass is written out: a loop for the gradient of the state, weight gradients
in one product over all steps afterwards.

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


@torch.library.custom_op("cliptune::elman", mutates_args=())
def elman(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, hidden: Tensor, relu: bool
) -> Tensor:
    """The states of an Elman layer at every step.

    Args:
        inputs: (G, T, B, I), T > 0.
        weight_ih: (G, H, I).
        weight_hh: (G, H, H).
        bias: (G, H), the sum of torch's two.
        hidden: (G, B, H), the state before the first step.
        relu: relu instead of tanh.

    Returns:
        (G, T, B, H); the last step is the final state.

    Source:
        Elman, Finding Structure in Time, 1990; equations of `torch.nn.RNN`.
    """
    outputs = project(inputs, weight_ih, bias)
    product = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    recurrent = weight_hh.mT
    for output in outputs.unbind(1):
        # Contiguous `out`: a batched product into a strided slice falls back to one product per lane.
        torch.baddbmm(output, hidden, recurrent, out=product)
        hidden = torch.clamp_min(product, 0, out=output) if relu else torch.tanh(product, out=output)
    return outputs


@torch.library.custom_op("cliptune::elman_backward", mutates_args=())
def elman_backward(grad: Tensor, outputs: Tensor, weight_hh: Tensor, relu: bool) -> Tensor:
    """Back-propagation through time.

    Args:
        grad: (G, T, B, H), with respect to the states.
        outputs: (G, T, B, H), what `elman` returned.
        weight_hh: (G, H, H).
        relu: as in the forward pass.

    Returns:
        (G, T, B, H), the gradient with respect to the argument of f.
    """
    slope = (
        (outputs > 0).to(outputs.dtype) if relu else torch.addcmul(_one(outputs), outputs, outputs, value=-1)
    )
    # The slopes of a step are read once, just before its gradient is known: one buffer holds both.
    steps = slope.unbind(1)
    state = torch.empty_like(outputs[:, 0], memory_format=torch.contiguous_format)
    state.copy_(grad[:, -1])
    steps[-1].mul_(state)
    for step in range(len(steps) - 2, -1, -1):
        torch.baddbmm(grad[:, step], steps[step + 1], weight_hh, out=state)
        steps[step].mul_(state)
    return slope


def _one(like: Tensor) -> Tensor:
    return like.new_ones(())


@elman.register_fake
def _(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, hidden: Tensor, relu: bool
) -> Tensor:
    del weight_ih, weight_hh, bias, relu
    return inputs.new_empty(*inputs.shape[:3], hidden.shape[-1])


@elman_backward.register_fake
def _(grad: Tensor, outputs: Tensor, weight_hh: Tensor, relu: bool) -> Tensor:
    del grad, weight_hh, relu
    return outputs.new_empty(outputs.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, relu = inputs
    ctx.save_for_backward(*tensors, output)
    ctx.relu = relu


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    inputs, weight_ih, weight_hh, _bias, hidden, outputs = ctx.saved_tensors
    inner = elman_backward(grad, outputs, weight_hh, ctx.relu)
    needs = ctx.needs_input_grad
    return (
        project_backward(inner, weight_ih) if needs[0] else None,
        weight_gradient(inner, inputs) if needs[1] else None,
        recurrent_weight_gradient(inner, outputs, hidden) if needs[2] else None,
        inner.sum((1, 2)) if needs[3] else None,
        torch.bmm(inner[:, 0], weight_hh) if needs[4] else None,
        None,
    )


elman.register_autograd(_differentiate, setup_context=_save)
register_group_axis(elman)
register_group_axis(elman_backward)
