"""The custom operations by themselves: derivatives, registrations, both kinds of vmap."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

from tuner.functions.elman import elman, elman_backward
from tuner.functions.gru import gru
from tuner.functions.lstm import lstm

G, T, B, I, H = 2, 3, 2, 3, 4  # noqa: E741


def tensors(*shapes):
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


CASES = {
    "tanh": (elman, ((G, T, B, I), (G, H, I), (G, H, H), (G, H), (G, B, H)), (False,)),
    "relu": (elman, ((G, T, B, I), (G, H, I), (G, H, H), (G, H), (G, B, H)), (True,)),
    "lstm": (lstm, ((G, T, B, I), (G, 4 * H, I), (G, 4 * H, H), (G, 4 * H), (G, B, H), (G, B, H)), ()),
    "gru": (gru, ((G, T, B, I), (G, 3 * H, I), (G, 3 * H, H), (G, 3 * H), (G, 3 * H), (G, B, H)), ()),
}


def differentiable(name):
    """The operation without the outputs that only its backward pass reads, and its arguments' shapes."""
    operation, shapes, options = CASES[name]
    num_outputs = {"lstm": 2, "gru": 1}.get(name)

    def call(*arguments):
        outputs = operation(*arguments, *options)
        return outputs if num_outputs is None else outputs[:num_outputs]

    return call, shapes


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_finite_differences(name):
    call, shapes = differentiable(name)
    assert torch.autograd.gradcheck(call, tensors(*shapes))


def test_lstm_gradient_comes_through_the_last_cell_alone():
    call, shapes = differentiable("lstm")
    assert torch.autograd.gradcheck(lambda *arguments: call(*arguments)[1], tensors(*shapes))


@pytest.mark.parametrize("name", CASES)
def test_one_step_sequences_have_gradients(name):
    call, ((g, _, b, i), *shapes) = differentiable(name)
    assert torch.autograd.gradcheck(call, tensors((g, 1, b, i), *shapes))


@pytest.mark.parametrize("name", CASES)
def test_operations_are_registered_completely(name):
    operation, shapes, options = CASES[name]
    torch.library.opcheck(operation, (*tensors(*shapes), *options))


@pytest.mark.parametrize("name", CASES)
def test_vmap_folds_into_the_group_axis_each_way(name):
    call, shapes = differentiable(name)
    first, *others = tensors(*shapes)
    lanes = torch.randn(*first.shape[:1], 3, *first.shape[1:], dtype=torch.float64, requires_grad=True)

    def total(outputs):
        return sum(each.square().sum() for each in (outputs if isinstance(outputs, tuple) else (outputs,)))

    batched = vmap(lambda inputs: total(call(inputs, *others)), in_dims=1)(lanes)
    alone = torch.stack([total(call(each, *others)) for each in lanes.unbind(1)])
    torch.testing.assert_close(batched, alone)
    leaves = (lanes, *others)
    torch.testing.assert_close(
        torch.autograd.grad(batched.sum(), leaves), torch.autograd.grad(alone.sum(), leaves)
    )


def test_backward_operations_have_a_vmap_rule_too():
    grads, outputs, weights = (torch.randn(5, 2, 3, 2, 4), torch.rand(2, 3, 2, 4), torch.randn(2, 4, 4))
    batched = vmap(lambda grad: elman_backward(grad, outputs, weights, False))(grads)
    alone = torch.stack([elman_backward(grad, outputs, weights, False) for grad in grads])
    torch.testing.assert_close(batched, alone)
