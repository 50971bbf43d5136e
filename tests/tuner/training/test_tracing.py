"""Recordings: the operations of a function and nothing else, with random numbers drawn per seed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from tuner.training.not_batchable import NotBatchableError
from tuner.training.streams import SeedStreams
from tuner.training.tracing import are_alike, explain, record

CPU = torch.device("cpu")


def streams(*seeds: int) -> SeedStreams:
    return SeedStreams(seeds or (0, 1), "training", CPU)


def test_recording_does_what_the_function_does_on_other_numbers() -> None:
    def function(x: Tensor, named: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return x @ named["weight"], x.sum()

    recorded = record(function, torch.ones(2, 3), {"weight": torch.ones(3, 4)})
    x, weight = torch.randn(2, 3), torch.randn(3, 4)
    found = recorded(streams(), x, {"weight": weight})
    torch.testing.assert_close(tuple(found), function(x, {"weight": weight}))


def test_gradients_are_recorded_as_plain_operations() -> None:
    def function(x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad((leaf**3).sum(), leaf)[0]

    recorded = record(function, torch.ones(4))
    x = torch.randn(4)
    found = recorded(streams(), x)
    torch.testing.assert_close(found, 3 * x**2)
    assert not found.requires_grad


def test_changes_in_place_are_made_again() -> None:
    def function(x: Tensor, total: Tensor) -> Tensor:
        total.add_(x.sum())
        return total * 2

    total = torch.zeros(())
    recorded = record(function, torch.ones(3), total)
    assert total == 3
    assert recorded(streams(), torch.full((3,), 2.0), total) == 18
    assert total == 9


def test_captured_tensor_is_a_constant() -> None:
    weight = torch.tensor([1.0, 2.0])
    recorded = record(lambda x: x * weight, torch.ones(2))
    assert recorded(streams(), torch.full((2,), 3.0)).tolist() == [3.0, 6.0]


def test_what_nobody_reads_is_left_out() -> None:
    def function(x: Tensor) -> Tensor:
        x.exp().detach().cos()
        return x.detach().view(x.shape) + 1

    called = [
        node.target
        for node in record(function, torch.ones(3)).graph.graph.nodes
        if node.op == "call_function"
    ]
    assert called == [torch.add]


DRAWS: dict[str, Callable[..., Tensor]] = {
    "rand": lambda **given: torch.rand(4, **given),
    "randn": lambda **given: torch.randn(4, **given),
    "bernoulli": lambda **given: torch.bernoulli(torch.empty(4), 0.5, **given),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draw_is_made_per_seed_with_the_numbers_of_a_plain_run(name: str) -> None:
    def function(x: Tensor) -> Tensor:
        return vmap(lambda row: row + DRAWS[name](), randomness="different")(x)

    recorded = record(function, torch.zeros(2, 4))
    assert recorded.num_draws == 1
    source = streams(3, 7)
    found = [recorded(source, torch.zeros(2, 4)) for _ in range(2)]
    for row, seed in enumerate((3, 7)):
        generator = SeedStreams((seed,), "training", CPU).generators[0]
        for each in found:
            assert torch.equal(each[row], DRAWS[name](generator=generator))


def test_draw_whose_numbers_nobody_reads_still_moves_the_stream() -> None:
    def function(x: Tensor) -> Tensor:
        torch.rand(2, 4)
        return x + torch.rand(2, 4)

    recorded = record(function, torch.zeros(2, 4))
    assert recorded.num_draws == 2


def test_random_operation_without_a_rule_is_refused() -> None:
    with pytest.raises(
        NotBatchableError, match=r"draws random numbers with aten\.\w+.*, which has no rule per seed"
    ):
        record(lambda x: x + torch.empty_like(x).exponential_(), torch.ones(2, 3))


def test_recording_leaves_the_callers_tensors_without_history() -> None:
    weight = torch.ones(3, requires_grad=True)
    recorded = record(lambda x: (x * weight).sum(), torch.ones(3))
    assert not recorded(streams(), torch.ones(3)).requires_grad
    assert weight.grad is None


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (
            lambda x: x * x.sum().item(),
            r"reads a tensor's value with .item\(\) or float\(\): keep it a tensor",
        ),
        (lambda x: x.nonzero(), "selects by a mask, whose result has no fixed shape"),
        (lambda x: x.unique(), "depends on a tensor's values"),
        (lambda x: torch.ones(2, 3) @ x, "RuntimeError: "),
    ],
    ids=["item", "nonzero", "unique", "shape"],
)
def test_function_that_cannot_be_recorded_is_told(
    function: Callable[[Tensor], Tensor], sentence: str
) -> None:
    with pytest.raises(NotBatchableError, match=sentence):
        record(function, torch.ones(2))


def test_memory_that_ends_is_not_the_functions_fault() -> None:
    def function(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        record(function, torch.ones(2))


def test_same_function_gives_the_same_program() -> None:
    assert are_alike(record(torch.sin, torch.ones(2)), record(torch.sin, torch.ones(2)))


@pytest.mark.parametrize(
    "make",
    [
        lambda number: lambda x: x * number,
        lambda number: lambda x: x * torch.tensor(float(number)),
        lambda number: (torch.sin, torch.cos)[number],
    ],
    ids=["number", "constant", "operation"],
)
def test_other_programs_are_noticed(make: Callable[[int], Callable[[Tensor], Tensor]]) -> None:
    assert not are_alike(record(make(0), torch.ones(2)), record(make(1), torch.ones(2)))


def test_unknown_error_is_explained_by_its_first_line() -> None:
    assert explain(ValueError("one\ntwo")) == "ValueError: one"
    assert len(explain(ValueError("x" * 1000))) < 350
