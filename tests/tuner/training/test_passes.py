"""Shorter programs that compute the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from tuner.training.streams import SeedStreams
from tuner.training.tracing import Recorded, record

CPU = torch.device("cpu")


def called(program: Recorded) -> list[object]:
    return [node.target for node in program.graph.graph.nodes if node.op == "call_function"]


def result(program: Recorded, *args: Tensor) -> Tensor:
    found: Tensor = program(SeedStreams((0,), "test", CPU), *args)
    return found


def test_weight_gradient_is_multiplied_in_the_order_it_is_needed_in() -> None:
    def gradient(x: Tensor, dy: Tensor) -> Tensor:
        product = torch.bmm(x.transpose(1, 2), dy)
        return product.view(2, 3, 5, 4).transpose(2, 3).contiguous().view(6, 20)

    x, dy = torch.randn(6, 7, 5), torch.randn(6, 7, 4)
    program = record(gradient, x, dy)
    assert torch.clone not in called(program) and torch.ops.aten.clone.default not in called(program)
    torch.testing.assert_close(result(program, x, dy), gradient(x, dy))


@pytest.mark.parametrize(
    "function",
    [
        # Read again after the copy; another pair of axes; the view cuts a swapped axis; a copy of no product.
        lambda x, y: (product := torch.bmm(x, y)).transpose(1, 2).clone() + product.transpose(1, 2),
        lambda x, y: torch.bmm(x, y).transpose(0, 2).clone(),
        lambda x, y: torch.bmm(x, y).view(4, 2, 2, 4).transpose(2, 3).clone(),
        lambda x, y: (x + y).transpose(1, 2).clone(),
    ],
)
def test_other_copies_stay_as_they_are(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, y = torch.randn(4, 4, 4), torch.randn(4, 4, 4)
    program = record(function, x, y)
    assert torch.ops.aten.clone.default in called(program)
    assert torch.equal(result(program, x, y), function(x, y))


def test_what_is_computed_twice_is_computed_once() -> None:
    program = record(lambda x: (x + 1) * (x + 1), torch.ones(3))
    assert called(program) == [torch.add, torch.mul]
    assert result(program, torch.full((3,), 2.0)).tolist() == [9.0] * 3


def test_two_draws_are_never_one() -> None:
    program = record(lambda x: torch.rand_like(x) - torch.rand_like(x), torch.ones(1, 8))
    assert program.num_draws == 2
    assert result(program, torch.ones(1, 8)).abs().max() > 0


def test_program_that_writes_in_place_repeats_itself() -> None:
    def function(x: Tensor) -> Tensor:
        before = x + 1
        x.mul_(2)
        return before + (x + 1)

    program = record(function, torch.ones(1))
    assert result(program, torch.ones(1)).tolist() == [5.0]


def test_view_of_a_view_and_a_product_with_one_leave_nothing() -> None:
    program = record(lambda x: (x.view(2, 6).view(3, 4) * 1).view(12).cos(), torch.ones(12))
    assert called(program) == [torch.ops.aten.cos.default]


def test_product_with_one_that_changes_the_type_stays() -> None:
    program = record(lambda x: x * 1.0, torch.ones(3, dtype=torch.int64))
    assert result(program, torch.ones(3, dtype=torch.int64)).dtype == torch.float32


def test_passes_keep_every_name_that_a_graph_needs() -> None:
    program = record(lambda x: x.view(4).view(2, 2), torch.ones(4))
    assert isinstance(program.graph, fx.GraphModule)
    program.graph.graph.lint()
    assert result(program, torch.arange(4.0)).tolist() == [[0.0, 1.0], [2.0, 3.0]]
