"""Batches of several seeds become one: nesting, shapes and plain values must agree, numbers need not."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tuner.training.not_batchable import NotBatchableError
from tuner.training.stacking import single, stack


class Pair(NamedTuple):
    one: Tensor
    rest: dict[str, Any]


def pair(seed: int, length: int = 2, **plain: Any) -> Pair:
    return Pair(torch.full((length, 3), float(seed)), {"labels": [torch.tensor([seed] * length)], **plain})


def test_tensors_get_a_seed_axis_in_front() -> None:
    stacked = stack([pair(1), pair(2)])
    assert [tuple(each.shape) for each in stacked.tensors] == [(2, 2, 3), (2, 2)]
    assert stacked.tensors[1].tolist() == [[1, 1], [2, 2]]


def test_lane_gets_its_batch_in_the_nesting_it_had() -> None:
    stacked = stack([pair(1, name="x", ratio=0.5, none=None), pair(2, name="x", ratio=0.5, none=None)])
    rebuilt = stacked.rebuild([each[1] for each in stacked.tensors])
    assert isinstance(rebuilt, Pair)
    assert rebuilt.one.tolist() == [[2.0] * 3] * 2
    assert rebuilt.rest["labels"][0].tolist() == [2, 2]
    assert (rebuilt.rest["name"], rebuilt.rest["ratio"], rebuilt.rest["none"]) == ("x", 0.5, None)


@pytest.mark.parametrize(
    "batch", [torch.ones(2), [torch.ones(2)], (torch.ones(2), 3), {"a": torch.ones(2)}], ids=str
)
def test_single_batch_is_as_it_was(batch: Any) -> None:
    stacked = single(batch)
    rebuilt = stacked.rebuild(stacked.tensors)
    assert type(rebuilt) is type(batch)
    assert str(rebuilt) == str(batch)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pair(1), pair(2, length=3)),
        (pair(1, power=1), pair(2, power=2)),
        (pair(1, extra=torch.ones(1)), pair(2)),
        (torch.ones(2), torch.ones(2).double()),
        ([torch.ones(2)], (torch.ones(2),)),
        (pair(1, flag=True), pair(2, flag=1)),
    ],
    ids=["shape", "plain-value", "nesting", "type", "list-and-tuple", "bool-and-int"],
)
def test_seeds_that_differ_in_anything_but_numbers_are_told(one: Any, other: Any) -> None:
    with pytest.raises(NotBatchableError, match="pad or drop the odd ones"):
        stack([one, other])


def test_shapes_of_both_seeds_are_in_the_sentence() -> None:
    with pytest.raises(NotBatchableError, match=r"\(\(2, 3\), \(2,\) and \(4, 3\), \(4,\)\)"):
        stack([pair(1), pair(2, length=4)])


def test_nesting_identifies_a_program() -> None:
    assert single(pair(1)).nesting == single(pair(9)).nesting
    assert hash(single(pair(1)).nesting) == hash(single(pair(9)).nesting)
    for other in (pair(1, length=3), pair(1, power=2), torch.ones(1)):
        assert single(pair(1)).nesting != single(other).nesting


def test_values_that_print_alike_but_differ_are_not_one_program() -> None:
    assert single((torch.ones(1), 1)).nesting != single((torch.ones(1), 1.0)).nesting
    assert single((torch.ones(1), "1")).nesting != single((torch.ones(1), 1)).nesting


def test_batch_is_given_to_the_cpu_as_it_is() -> None:
    stacked = single(pair(1))
    assert stacked.to(torch.device("cpu")) is stacked
