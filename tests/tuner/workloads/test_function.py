"""A function as a workload: what it says of itself, and what is not taken for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tuner.errors import SpecError
from tuner.workloads import FunctionWorkload, parameter, training_function


@dataclass(frozen=True)
class Parameters:
    width: int = parameter(4, "Units.", low=1, high=64)
    learning_rate: float = parameter(0.1, "Step size.", low=0.0)


@training_function(name="mine", objective="val_error", parameters=Parameters)
def train(trial: Any) -> float:
    """A model of mine.

    With more to say.
    """
    return trial * 2.0


def test_decorated_function_is_a_workload_and_still_a_function() -> None:
    assert isinstance(train, FunctionWorkload)
    assert (train.name, train.objective, train.description) == ("mine", "val_error", "A model of mine.")
    assert [each.name for each in train.parameter_fields()] == ["width", "learning_rate"]
    assert train.parameter_values == {"width": 4, "learning_rate": 0.1}
    assert train(4.0) == 8.0


def test_parameters_are_set_on_a_copy() -> None:
    made = train.create({"width": 8, "learning_rate": 1})
    assert made.parameter_values == {"width": 8, "learning_rate": 1.0}
    assert train.parameter_values["width"] == 4
    with pytest.raises(SpecError, match=r"parameters.width must be >= 1, got 0"):
        train.create({"width": 0})


def test_plain_function_has_defaults() -> None:
    def loop(trial: Any, verbose: bool = False) -> None:
        del trial, verbose

    made = FunctionWorkload.of(loop)
    assert (made.name, made.objective, made.description) == ("loop", "val_loss", "")
    assert made.parameter_fields() == () and made.parameter_values == {}
    assert FunctionWorkload.of(loop, name="other", description="Mine.").description == "Mine."


class Loop:
    """A callable object."""

    def __call__(self, trial: Any) -> None:
        del trial


def test_callable_object_is_a_function() -> None:
    made = FunctionWorkload.of(Loop())
    assert (made.name, made.description) == ("Loop", "A callable object.")


async def coroutine(trial: Any) -> None:
    del trial


def generator(trial: Any) -> Any:
    yield trial


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda: None, r"must take exactly one argument, the trial, got \(\)"),
        (lambda trial, data: None, r"must take exactly one argument, the trial, got \(trial, data\)"),
        (lambda *, trial: None, "must take exactly one argument"),
        (coroutine, "must be a plain function: no async def"),
        (generator, "must be a plain function: no async def, no yield"),
        (3, "must be a workload, the name of one, or a function"),
    ],
)
def test_what_can_not_be_called_with_a_trial_is_refused(function: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        FunctionWorkload.of(function)


def test_parameters_are_a_dataclass_of_plain_types() -> None:
    with pytest.raises(TypeError, match=r"f.Parameters must be a frozen dataclass"):
        FunctionWorkload.of(lambda trial: None, name="f", parameters=dict)
