"""Batches keep their nesting."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tuner.workloads.batches import batch_size, tensors, to_device


class Pair(NamedTuple):
    inputs: torch.Tensor
    name: str


def test_nesting_is_kept() -> None:
    batch = {"pair": Pair(torch.ones(2), "a"), "list": [torch.zeros(3), (torch.ones(1), 5)]}
    moved = to_device(batch, torch.device("meta"))
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].name == "a"
    assert isinstance(moved["list"], list)
    assert moved["list"][1][1] == 5
    assert [each.device.type for each in tensors(moved)] == ["meta"] * 3


def test_batch_size_is_that_of_the_first_tensor_with_a_dimension() -> None:
    assert batch_size([torch.tensor(1.0), torch.zeros(4, 2)]) == 4
    assert batch_size("nothing") == 1
