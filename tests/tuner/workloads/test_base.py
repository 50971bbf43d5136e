"""Workloads: parameters become fields, parts become a workload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tuner.errors import SpecError, UnknownWorkloadError
from tuner.optimizers import sgd
from tuner.parameters import ParameterField
from tuner.training.randomness import data_generator
from tuner.workloads import AnyWorkload, Workload, describe_workloads, get_workload, parameter


def parts(**changes: object) -> AnyWorkload:
    given: dict[str, object] = {
        "model": lambda: nn.Linear(1, 1),
        "train": [torch.full((1, 1), float(number)) for number in range(5)],
        "validation": [torch.zeros(1, 1)],
        "loss": lambda model, batch: model(batch).sum(),
        "optimizer": sgd(0.1),
    }
    return Workload.of(**{**given, **changes})  # type: ignore[arg-type]


def test_fields_come_from_the_dataclass(toy: Callable[..., AnyWorkload]) -> None:
    @dataclass(frozen=True)
    class Parameters:
        plain: int = 3
        cell: str = parameter("rnn", "Kind of cell.", choices=["rnn", "gru"])
        rate: float = parameter(0.5, "Rate.", low=0.0, high=1.0)
        bias: bool = True

    class Described(type(toy())):  # type: ignore[misc]
        pass

    Described.Parameters = Parameters
    assert Described.parameter_fields() == (
        ParameterField(name="plain", type="integer", default=3),
        ParameterField(
            name="cell", type="string", default="rnn", description="Kind of cell.", choices=("rnn", "gru")
        ),
        ParameterField(name="rate", type="number", default=0.5, description="Rate.", low=0.0, high=1.0),
        ParameterField(name="bias", type="boolean", default=True),
    )
    assert Described.create({"cell": "gru"}).parameters.cell == "gru"
    with pytest.raises(SpecError, match=r"parameters\.cell must be one of rnn, gru"):
        Described.create({"cell": "lstm"})


def test_parameters_that_cannot_be_described_are_refused(toy: Callable[..., AnyWorkload]) -> None:
    @dataclass(frozen=True)
    class WrongType:
        sizes: tuple[int, ...] = (1,)

    @dataclass(frozen=True)
    class NoDefault:
        size: int

    class Undescribed(type(toy())):  # type: ignore[misc]
        pass

    for wrong, words in (
        (WrongType, "sizes must be int, float, str or bool"),
        (NoDefault, "size needs a default"),
        (int, "must be a frozen dataclass"),
    ):
        Undescribed.Parameters = wrong
        with pytest.raises(TypeError, match=words):
            Undescribed.parameter_fields()


def test_parts_walk_through_all_batches_in_another_order_each_epoch() -> None:
    workload = parts()

    def epochs(seed: int) -> list[list[float]]:
        generator = data_generator(seed)
        values = [float(workload.train_batch(step, generator)) for step in range(15)]
        return [values[:5], values[5:10], values[10:]]

    first = epochs(0)
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in first)
    assert first[0] != first[1] or first[1] != first[2]
    assert epochs(0) == first
    assert epochs(1) != first


def test_parts_take_a_data_loader_and_a_function() -> None:
    loader = DataLoader(TensorDataset(torch.arange(6.0).reshape(6, 1)), batch_size=2)
    generator = data_generator(0)
    seen = [float(parts(train=loader).train_batch(step, generator)[0].sum()) for step in range(3)]
    assert sorted(seen) == [1, 5, 9]  # 0 + 1, 2 + 3, 4 + 5
    drawn = parts(train=lambda step, generator: torch.tensor(step)).train_batch(7, generator)
    assert drawn == 7


def test_module_is_copied_for_every_run() -> None:
    module = nn.Linear(1, 1)
    workload = parts(model=module)
    one, other = workload.model(), workload.model()
    assert one is not module and one is not other
    assert torch.equal(one.weight, module.weight)


def test_function_from_parameters_is_an_optimizer() -> None:
    workload = parts(optimizer=lambda given: torch.optim.Adagrad(given, lr=0.2))
    assert isinstance(workload.optimizer().build(workload.model().parameters()), torch.optim.Adagrad)


def test_metric_of_parts_is_optional() -> None:
    model = nn.Linear(1, 1)
    assert not parts().has_metric
    assert torch.equal(parts().metric(model, torch.ones(1, 1)), parts().loss(model, torch.ones(1, 1)))
    counted = parts(metric=lambda model, batch: torch.tensor(5.0))
    assert counted.has_metric
    assert counted.metric(model, torch.ones(1, 1)) == 5


@pytest.mark.parametrize("part", ["train", "validation"])
def test_parts_without_data_are_refused(part: str) -> None:
    with pytest.raises(ValueError, match=f"{part} must hold at least one batch"):
        parts(**{part: []})


def test_unknown_workload_is_told_with_the_known_ones() -> None:
    with pytest.raises(
        UnknownWorkloadError, match="no workload is called 'mnist'; known workloads: charlm-rnn"
    ):
        get_workload("mnist")


def test_descriptions_are_json_schemas() -> None:
    charlm, digits = describe_workloads()
    assert (charlm.name, digits.name) == ("charlm-rnn", "digits-mlp")
    schema = digits.to_schema()
    assert schema["additionalProperties"] is False
    assert schema["properties"]["hidden"] == {
        "type": "integer",
        "default": 64,
        "description": "Width of the hidden layer.",
        "minimum": 1,
        "maximum": 4096,
    }
